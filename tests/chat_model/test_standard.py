"""LangChain's own unit tests for chat models, where they are installed."""

from pathlib import Path

import pytest

from deltamem_agents.chat_model import DeltaMemChatModel

standard = pytest.importorskip("langchain_tests.unit_tests")


class TestStandard(standard.ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _folder(self, tiny_adapter: Path) -> None:
        type(self).folder = tiny_adapter

    @property
    def chat_model_class(self) -> type[DeltaMemChatModel]:
        return DeltaMemChatModel

    @property
    def chat_model_params(self) -> dict[str, object]:
        return {"adapter": str(getattr(self, "folder", "none")), "agent_id": "otto"}
