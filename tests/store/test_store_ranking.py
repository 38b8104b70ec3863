"""Words and ranking: any text is taken, no syntax gets through, the order is that of BM25 and always the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.store.ranking import MOST_TERMS, clean, rank, terms, tokens

ANY = st.text(st.characters(), max_size=60)  # lone surrogates and NUL, too
FEW = st.lists(st.sampled_from("rice room seven the is".split()), max_size=6).map(" ".join)


def keys(query, texts):
    return [key for key, _ in rank(terms(query), texts)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Where's the RICE?", ["where", "s", "the", "rice"]),
        ("crème BRÛLÉE e\u0301te\u0301", ["creme", "brulee", "ete"]),
        ("Straße, İstanbul, Ђука, 東京", ["straße", "istanbul", "ђука", "東京"]),
        ("room-7 a_b 3.14", ["room", "7", "a", "b", "3", "14"]),
        ('"a" AND (b OR NOT c*) NEAR(d e) text:f ^g', "a and b or not c near d e text f g".split()),
        ("x x X\0x", ["x"]),
        ("", []),
        ("  ?! \0 \ud800 «…»", []),
    ],
)
def test_words_of_a_query(query, words):
    assert terms(query) == words


def test_a_query_is_bounded():
    assert terms(" ".join(f"w{i}" for i in range(10_000))) == [f"w{i}" for i in range(MOST_TERMS)]
    assert terms("x" * 1_000_000)


@given(ANY)
def test_any_text_is_words(text):
    words = terms(text)
    assert terms(" ".join(words)) == words
    for word in words:
        assert all(c.isalnum() or ord(c) > 127 for c in word)  # nothing that a query language knows
    clean(text).encode()


@given(st.lists(ANY, max_size=5))
def test_texts_are_split_each_on_its_own(texts):
    assert tokens(texts) == [tokens([text])[0] for text in texts]


def test_rare_words_count_more():
    texts = [(i, "the rice is in the room") for i in range(20)] + [(50, "seven it is, as we said at noon")]
    assert keys("is the seven", texts)[0] == 50


def test_more_of_a_word_and_shorter_texts_are_better():
    texts = [(1, "rice and rice"), (2, "rice and beans"), (3, "rice and beans and much more of it"), (4, "x")]
    assert keys("rice", texts) == [1, 2, 3]


def test_more_of_the_words_are_better():
    assert keys("rice room", [(1, "rice room"), (2, "rice beds"), (3, "room door")])[0] == 1


def test_equal_texts_come_newest_first():
    assert keys("rice", [(2, "rice"), (9, "rice"), (-5, "Rice!"), (2**62, "ríce")]) == [2**62, 9, 2, -5]


def test_nothing_asked_or_nothing_there():
    assert rank([], [(1, "rice")]) == []
    assert rank(["rice"], []) == []
    assert rank(["rice"], [(1, "beans"), (2, "")]) == []
    assert rank(['"', "OR", "a*"], [(1, 'a "or" b'), (2, "ab")]) != []


def test_a_stream_of_texts_is_enough():
    assert keys("rice", iter([(1, "rice")])) == [1]


@given(FEW, st.lists(FEW, max_size=12), st.randoms(use_true_random=False))
def test_ranking(query, texts, random):
    rows = list(enumerate(texts))
    found = rank(terms(query), rows)
    assert {key for key, _ in found} == {key for key, text in rows if set(text.split()) & set(query.split())}
    assert found == sorted(found, key=lambda pair: (-pair[1], -pair[0]))
    assert all(score > 0 for _, score in found)

    words = terms(query)
    random.shuffle(words)
    random.shuffle(rows)
    assert rank(words, [*rows, (99, "beans")]) == found


@given(ANY, st.lists(ANY, max_size=5))
def test_any_query_ranks_any_texts(query, texts):
    found = keys(query, list(enumerate(texts)))
    assert set(found) == {key for key, words in enumerate(tokens(texts)) if set(words) & set(terms(query))}
