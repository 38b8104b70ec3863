"""LangChain's own unit tests for chat models."""

from pathlib import Path

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests

from deltamem_agents.chat_model import DeltaMemChatModel


class TestStandard(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_adapter: Path) -> None:
        type(self).folder = tiny_adapter

    @property
    def chat_model_class(self) -> type[DeltaMemChatModel]:
        return DeltaMemChatModel

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {"adapter": str(getattr(self, "folder", "none")), "agent_id": "otto"}

    @property
    def supports_model_override(self) -> bool:
        return False  # a memory belongs to one adapter: another one is another model object
