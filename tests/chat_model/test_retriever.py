"""The journal as a retriever: whose messages, which of them, and what a document tells of them."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from deltamem_agents.chat_model.retriever import JournalRetriever
from deltamem_agents.errors import JournalNotKept
from deltamem_agents.store import Entry, open_store

SAID = [
    Entry("user", "The rice is in room seven.", ("facts",), message_id="m1", source="anna", thread_id="t1"),
    Entry("user", "The beans are in room nine.", ("facts", "preferences"), source="bert"),
    Entry("assistant", "Room seven has been checked.", ("task_progress",)),
]


def write(store, agent_id="otto", entries=SAID):
    parent = store.head(agent_id)
    return store.commit(agent_id, parent=parent, parts={"facts": b"1"}, entries=entries, fingerprint="adapter/backbone")


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "memory.db") as store:
        write(store)
        write(store, "emma", [Entry("user", "Emma's rice is hers.", ("facts",))])
        yield store


def texts(documents):
    return [document.page_content for document in documents]


def test_documents_tell_where_they_come_from(store):
    found = JournalRetriever(store=store, agent_id="otto").invoke("Where is the rice?")
    assert texts(found)[0] == SAID[0].content
    [record] = [record for record in store.journal("otto") if record.entry.message_id == "m1"]
    metadata = dict(found[0].metadata)
    assert metadata.pop("score") > found[1].metadata["score"] > 0
    assert datetime.fromisoformat(metadata["made_at"]) == record.made_at
    assert found[0].id == record.entry_id
    assert metadata == {
        "entry_id": record.entry_id,
        "role": "user",
        "source": "anna",
        "sub_states": ["facts"],
        "thread_id": "t1",
        "message_id": "m1",
        "made_at": record.made_at.isoformat(),
        "version_id": store.head("otto"),
    }


def test_agents_find_their_own(store):
    assert texts(JournalRetriever(store=store, agent_id="emma").invoke("rice room")) == ["Emma's rice is hers."]
    assert JournalRetriever(store=store, agent_id="nobody").invoke("rice") == []


def test_so_many(store):
    assert len(JournalRetriever(store=store, agent_id="otto", k=2).invoke("room")) == 2
    retriever = JournalRetriever(store=store, agent_id="otto")
    assert len(retriever.invoke("room")) == 3
    assert len(retriever.invoke("room", k=1)) == 1
    assert len(asyncio.run(retriever.ainvoke("room", k=1))) == 1
    with pytest.raises(ValidationError):
        JournalRetriever(store=store, agent_id="otto", k=0)


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ({"source": "anna"}, {0}),
        ({"sub_state": "preferences"}, {1}),
        ({"sub_state": "task_progress", "source": "anna"}, set()),
        ({"since": datetime.now(UTC) + timedelta(days=1)}, set()),
        ({"until": datetime.now(UTC) + timedelta(days=1)}, {0, 1, 2}),
        ({"since": datetime.now(UTC) - timedelta(days=1), "until": datetime.now(UTC) - timedelta(hours=1)}, set()),
    ],
)
def test_only_these(store, only, wanted):
    found = JournalRetriever(store=store, agent_id="otto", **only).invoke("room")
    assert set(texts(found)) == {SAID[i].content for i in wanted}


def test_nothing_found(store):
    retriever = JournalRetriever(store=store, agent_id="otto")
    assert retriever.invoke("giraffe") == retriever.invoke("") == retriever.invoke('"*" \0') == []


def test_in_a_chain_in_batches_and_async(store):
    retriever = JournalRetriever(store=store, agent_id="otto", k=1)
    chain = retriever | RunnableLambda(lambda documents: documents[0].page_content)
    wanted = [SAID[0].content, SAID[1].content]
    assert chain.batch(["rice", "beans"]) == wanted
    assert asyncio.run(chain.abatch(["rice", "beans"])) == wanted


def test_async_calls_do_not_block_the_loop(store, monkeypatch):
    monkeypatch.setattr(store, "search", lambda *a, **k: time.sleep(0.3) or [])
    retriever = JournalRetriever(store=store, agent_id="otto")

    async def late():
        call, longest = asyncio.ensure_future(retriever.ainvoke("rice")), 0.0
        while not call.done():
            start = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - start)
        return longest

    assert asyncio.run(late()) < 0.25


def test_a_store_of_hashes_says_so(tmp_path):
    with open_store(tmp_path / "hashes.db", journal="hash") as store:
        write(store)
        with pytest.raises(JournalNotKept):
            JournalRetriever(store=store, agent_id="otto").invoke("rice")


def test_what_is_no_store_is_refused():
    with pytest.raises(ValidationError):
        JournalRetriever(store="memory.db", agent_id="otto")
