"""DeltaMemChatModel: a LangChain chat model whose agents remember."""

from .calls import PromptTooLong
from .memory import HEAD
from .model import DeltaMemChatModel
from .retriever import JournalRetriever

__all__ = ["HEAD", "DeltaMemChatModel", "JournalRetriever", "PromptTooLong"]
