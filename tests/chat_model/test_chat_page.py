"""The tables of docs/chat-model.md: what they say of us is tested, and where they say."""

import re
from pathlib import Path

import pytest

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.chat_model.calls import ARGUMENTS

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "chat-model.md").read_text(encoding="utf-8")


def rows(start: str) -> list[list[str]]:
    """The cells of each row of the tables after a heading, without their heads."""
    lines = [line for line in PAGE.partition(f"## {start}\n")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = {i + n for i, row in enumerate(cells) if set(row[0]) == {"-"} for n in (-1, 0)}
    return [row for i, row in enumerate(cells) if i not in heads]


COMPARED = [row for row in rows("Beside other local chat models") if len(row) == 5]


def test_the_tables_are_found():
    assert len(COMPARED) > 35 and len(rows("Options")) > 20


@pytest.mark.parametrize("row", COMPARED, ids=lambda row: row[0])
def test_what_is_said_of_us_names_its_test(row):
    folder, named = "", re.findall(r"`((?:\w+/)?)(test_\w+\.py)`", row[1])
    assert named
    for own, name in named:
        folder = own or folder  # a name without a folder lies in that of the one before it
        assert (TESTS / folder / name).is_file(), name


@pytest.mark.parametrize("row", COMPARED, ids=lambda row: row[0])
def test_what_is_said_of_others_is_said(row):
    assert all(row[2:])


def test_the_options_are_the_fields():
    fields = set(DeltaMemChatModel.model_fields)
    aliases = {field.alias for field in DeltaMemChatModel.model_fields.values()}
    for row in (row for row in rows("Options") if len(row) == 3):
        for name, star in re.findall(r"`(\w+)`(\*?)", row[0]):
            assert name in fields | aliases, name
            assert (name in ARGUMENTS) == bool(star), name
