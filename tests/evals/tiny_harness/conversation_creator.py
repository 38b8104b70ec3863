"""Contexts and questions of a dataset, which lie beside its configuration."""

import json
import os
import signal
from pathlib import Path

from utils.eval_other_utils import split
from utils.templates import get_template


class Chunks(list):
    """Chunks of one context. TINY_HARNESS_KILL=n kills the process before it yields chunk n."""

    def __iter__(self):
        for number, chunk in enumerate(super().__iter__()):
            if os.environ.get("TINY_HARNESS_KILL") == str(number):
                os.kill(os.getpid(), signal.SIGKILL)
            yield chunk


class ConversationCreator:
    def __init__(self, agent_config, dataset_config):
        data = json.loads(Path("data", dataset_config["dataset"] + ".json").read_text(encoding="utf-8"))
        self.items = data[: dataset_config["max_test_samples"]]
        self.chunk_size = dataset_config["chunk_size"]
        self.template = get_template(dataset_config["sub_dataset"], "query", agent_config["agent_name"])

    def get_chunks(self):
        return [Chunks(split(item["context"], self.chunk_size)) for item in self.items]

    def get_query_and_answers(self):
        return [
            [(self.template.format(question=question), answer, None) for question, answer in item["questions"]]
            for item in self.items
        ]
