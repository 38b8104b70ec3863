"""Sealing of bytes at rest."""

import base64
import secrets
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltamem_agents.errors import CorruptState, StoreKeyError
from deltamem_agents.store.cipher import (
    HEADER_BYTES,
    HOW,
    KEY_VARIABLE,
    MAGIC,
    NONCE_BYTES,
    OVERHEAD,
    TAG_BYTES,
    Cipher,
    keys_from,
    new_key,
)

OLD, NEW, OTHER = bytes(range(32)), bytes(range(32, 64)), b"\xff" * 32
old, new, both, null = Cipher.of([OLD]), Cipher.of([NEW]), Cipher.of([NEW, OLD]), Cipher.of([])


@given(st.binary(max_size=200), st.binary(max_size=50), st.sampled_from([old, new, both, null]))
def test_what_is_sealed_opens(data: bytes, context: bytes, cipher: Cipher) -> None:
    sealed = cipher.seal(data, context)
    assert cipher.open(sealed, context) == data
    assert len(sealed) == len(data) + (OVERHEAD if cipher.encrypts else 0)
    assert len(data) < 8 or not cipher.encrypts or data not in sealed[HEADER_BYTES:]


def test_the_same_value_is_sealed_differently_each_time() -> None:
    assert len({new.seal(b"x", b"") for _ in range(100)}) == 100


def test_sealed_values_of_this_format_stay_readable() -> None:
    sealed = bytes.fromhex(
        "d3444d01 0f529fbd6d9c2162 17f37baeda53b75c147239c41a6b32b80e8a77e830c0e2e94f1aa3a41e1fdfd5aec10dd457cbc55eec02"
    )
    assert old.open(sealed, b"blob:x") == b"kept for years"


@given(st.binary(max_size=40), st.integers(1, 255), st.data())
def test_no_changed_byte_is_handed_out(data: bytes, flip: int, draw: st.DataObject) -> None:
    sealed = bytearray(new.seal(data, b"c"))
    position = draw.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= flip
    with pytest.raises(StoreKeyError if position < HEADER_BYTES else CorruptState):
        new.open(bytes(sealed), b"c")


@pytest.mark.parametrize(
    ("position", "error", "message"),
    [
        (0, StoreKeyError, "not encrypted, and a key is set"),
        (len(MAGIC) - 1, StoreKeyError, "not encrypted, and a key is set"),
        (len(MAGIC), StoreKeyError, "another key .key id [0-9a-f]{16}.*DELTAMEM_STORE_KEY"),
        (HEADER_BYTES, CorruptState, "damaged.*backup"),
        (HEADER_BYTES + NONCE_BYTES, CorruptState, "damaged.*backup"),
        (-TAG_BYTES, CorruptState, "damaged.*backup"),
        (-1, CorruptState, "damaged.*backup"),
    ],
)
def test_what_is_said_of_a_changed_byte(position: int, error: type[Exception], message: str) -> None:
    sealed = bytearray(new.seal(b"some text", b"c"))
    sealed[position] ^= 1
    with pytest.raises(error, match=message):
        new.open(bytes(sealed), b"c")


def test_cut_or_longer_values_do_not_open() -> None:
    sealed = new.seal(b"some text", b"c")
    for length in range(len(sealed)):
        with pytest.raises(StoreKeyError if length < len(MAGIC) else CorruptState):
            new.open(sealed[:length], b"c")
    with pytest.raises(CorruptState):
        new.open(sealed + b"\0", b"c")


def test_a_value_opens_in_its_context_only() -> None:
    one, two = new.seal(b"one", b"entry:1"), new.seal(b"two", b"entry:2")
    for sealed, context in ((two, b"entry:1"), (one, b"entry:2"), (one, b""), (one, b"entry:10")):
        with pytest.raises(CorruptState, match="another's place"):
            new.open(sealed, context)


def test_the_key_id_cannot_be_exchanged() -> None:
    sealed = old.seal(b"x", b"c")
    with pytest.raises(CorruptState):
        both.open(new.seal(b"", b"")[:HEADER_BYTES] + sealed[HEADER_BYTES:], b"c")


def test_keys_change() -> None:
    sealed = old.seal(b"x", b"c")
    with pytest.raises(StoreKeyError, match="another key"):
        new.open(sealed, b"c")
    assert old.needs_reseal(sealed) is False and both.needs_reseal(sealed) is True
    again = both.seal(both.open(sealed, b"c"), b"c")
    assert both.needs_reseal(again) is False and new.open(again, b"c") == b"x"
    with pytest.raises(StoreKeyError, match="another key"):
        old.open(again, b"c")


def test_from_clear_to_sealed_and_back() -> None:
    assert null.seal(b"x", b"c") == null.open(b"x", b"c") == b"x" and not null.encrypts
    assert null.needs_reseal(b"x") is False and new.needs_reseal(b"x") is True
    with pytest.raises(StoreKeyError, match="not encrypted, and a key is set"):
        new.open(b"x", b"c")
    assert null.needs_reseal(new.seal(b"", b"c")) is True


def test_the_check_tells_keys_apart() -> None:
    for cipher in (old, new, both, null):
        cipher.check(cipher.check_value())
    both.check(old.check_value())
    null.check(None)
    for cipher in (old, null):
        with pytest.raises(StoreKeyError, match=f"key id [0-9a-f]{{16}}.*set {KEY_VARIABLE}"):
            cipher.check(both.check_value())
    for clear in (null.check_value(), None):
        with pytest.raises(StoreKeyError, match="not encrypted, and a key is set"):
            new.check(clear)


@pytest.mark.parametrize(
    "value",
    ["", "CLEAR", "ä", "\udc80", "AAAA", new.check_value()[:-4], "A" + old.check_value()[1:]],
    ids=["empty", "word", "letter", "surrogate", "base64", "cut", "changed"],  # the last two are new in each process
)
def test_a_damaged_check_is_damage(value: str) -> None:
    for cipher in (old, new, null):
        with pytest.raises(CorruptState, match="damaged"):
            cipher.check(value)


def test_a_check_with_another_tag_is_damage() -> None:
    sealed = bytearray(base64.b64decode(new.check_value()))
    sealed[-1] ^= 1
    with pytest.raises(CorruptState, match="damaged"):
        new.check(base64.b64encode(sealed).decode())


def test_threads_share_a_cipher() -> None:
    def many(number: int) -> bool:
        data = [secrets.token_bytes(1000) for _ in range(200)]
        context = str(number).encode()
        return [both.open(both.seal(d, context), context) for d in data] == data

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(many, range(8)))


def test_representations_show_no_key() -> None:
    for cipher in (both, null):
        shown = f"{cipher!r} {cipher} {vars(cipher)}"
        assert repr(cipher).startswith("Cipher(")
        for key in (OLD, NEW):
            assert key.hex() not in shown and repr(key) not in shown and base64.b64encode(key).decode() not in shown


# Where keys come from


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ([], []),
        ((), []),
        (NEW, [NEW]),
        (bytearray(NEW), [NEW]),
        (text_of(NEW), [NEW]),
        (f" {text_of(NEW)}\n", [NEW]),
        (f"{text_of(NEW)}, {text_of(OLD)}", [NEW, OLD]),
        (base64.urlsafe_b64encode(OTHER).decode(), [OTHER]),
        (base64.urlsafe_b64encode(OTHER).decode().rstrip("="), [OTHER]),
        ([NEW, text_of(OLD)], [NEW, OLD]),
        (lambda: NEW, [NEW]),
        (lambda: [NEW, text_of(OLD)], [NEW, OLD]),
    ],
)
def test_sources_of_keys(source: object, keys: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, text_of(OTHER))
    assert keys_from(source) == keys


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert keys_from() == keys_from(None) == []
    for text, keys in (("", []), (" ", []), (text_of(NEW), [NEW]), (f"{text_of(NEW)},{text_of(OLD)}", [NEW, OLD])):
        monkeypatch.setenv(KEY_VARIABLE, text)
        assert keys_from() == keys
    monkeypatch.setenv(KEY_VARIABLE, f"{text_of(NEW)},")
    with pytest.raises(StoreKeyError, match=rf"{KEY_VARIABLE} \(2 of 2\) is not 32 bytes"):
        keys_from()


BAD = "c2VjcmV0IHNlY3JldCBzZWNyZXQ"


@pytest.mark.parametrize(
    "source",
    [
        *("", ",", BAD, BAD + "!" * 17, BAD * 2 + "é", "\udc80" + BAD, text_of(NEW + b"x"), text_of(NEW)[:-3]),
        *(BAD.encode(), NEW[:31], NEW + b"x", [NEW, BAD], [b""], 5, [None], [[NEW]], {NEW}),
        *(lambda: BAD, lambda: [BAD, 5]),
    ],
)
def test_what_is_no_key_is_said_but_not_shown(source: object) -> None:
    with pytest.raises(StoreKeyError) as caught:
        keys_from(source)
    message = "".join(traceback.format_exception(caught.value)).split("StoreKeyError: ", 1)[1]
    assert "32 bytes" in message and HOW in message
    assert BAD[:10] not in message and "secret secret" not in message and text_of(NEW)[:10] not in message
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize("nothing", [None, "", b"", []])
def test_a_function_without_a_key_does_not_mean_no_encryption(nothing: object) -> None:
    with pytest.raises(StoreKeyError, match="returned none"):
        keys_from(lambda: nothing)


def test_errors_of_a_function_come_through() -> None:
    def vault() -> bytes:
        raise PermissionError("vault")

    with pytest.raises(PermissionError, match="vault"):
        keys_from(vault)


def test_ciphers_take_keys_of_the_right_length_only() -> None:
    for key in (b"", NEW[:16], NEW * 2):
        with pytest.raises(StoreKeyError, match="key 2 is not 32 bytes"):
            Cipher.of([NEW, key])


def test_new_keys_are_keys() -> None:
    made = {new_key() for _ in range(10)}
    assert len(made) == 10 and all(len(keys_from(key)[0]) == 32 for key in made)


def test_the_library_is_needed_for_encryption_only(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from deltamem_agents.store.cipher import Cipher; Cipher.of([]).seal(b'', b''); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"cryptography", "torch"}.isdisjoint(done.stdout.split())
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(StoreKeyError, match=r"pip install deltamem-agents\[encryption\]"):
        Cipher.of([NEW])
    assert Cipher.of([]).seal(b"x", b"") == b"x"
