"""DeltaMemChatModel: a LangChain chat model whose agents remember."""

from .calls import PromptTooLong
from .memory import HEAD
from .model import DeltaMemChatModel

__all__ = ["HEAD", "DeltaMemChatModel", "PromptTooLong"]
