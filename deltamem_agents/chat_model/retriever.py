"""What an agent was told, in its words: the journal behind a memory as a LangChain retriever."""

from datetime import datetime
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import Field

from ..store import Filter, Hit, Store


class JournalRetriever(BaseRetriever):
    """Messages that were written to an agent's memory, as documents: the best matches of a query's words (BM25).

    Where the memory answers from its state, this finds the message itself. It needs a store that keeps the journal in
    full, and finds nothing for an agent without a memory. ``k`` may be given with a call, too.

    Example:
        >>> retriever = JournalRetriever(store=open_store("memory.db"), agent_id="otto")  # doctest: +SKIP
        >>> retriever.invoke("Where is the rice?")  # doctest: +SKIP
    """

    store: Store
    agent_id: str
    k: int = Field(default=4, ge=1)
    sub_state: str | None = None
    """Only messages that were written to this sub-state."""
    source: str | None = None
    """Only messages from this source."""
    since: datetime | None = None
    """Only messages that were written at this time or later."""
    until: datetime | None = None
    """Only messages that were written before this time."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None, **_: Any
    ) -> list[Document]:
        where = Filter(source=self.source, sub_state=self.sub_state, since=self.since, until=self.until)
        hits = self.store.search(self.agent_id, query, k=self.k if k is None else k, where=where)
        return [to_document(hit) for hit in hits]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        # in a thread: databases make their callers wait
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **options
        )


def to_document(hit: Hit) -> Document:
    """A record that was found, as LangChain passes it around; its id is the journal entry's."""
    record, entry = hit.record, hit.record.entry
    metadata = {
        "entry_id": record.entry_id,
        "role": entry.role,
        "source": entry.source,
        "sub_states": list(entry.sub_states),
        "thread_id": entry.thread_id,
        "message_id": entry.message_id,
        "made_at": record.made_at.isoformat(),
        "version_id": record.version_id,
        "score": hit.score,
    }
    return Document(id=record.entry_id, page_content=entry.content or "", metadata=metadata)
