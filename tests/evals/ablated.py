"""The document of ablations that were never run."""

from collections.abc import Callable
from typing import Any

from deltamem_agents.evals.ablation_run import MEASURED

HEADS = {"q+k+v+o": "heads_qkvo", "q+o": "base", "o": "heads_o", "q": "heads_q", "v": "heads_v", "k": "heads_k"}


def made_up(recall: Callable[[str, int], float], seeds: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    """A document of the group "heads", as if it had been run."""
    order = [["q+k+v+o"], ["q+o"], ["o"], ["q", "v"], ["k"]]
    group = {"name": "heads", "title": "corrected projections", "members": HEADS, "paper": "all first", "order": order}
    runs = [
        {
            "variant": name, "seed": seed, "cells": dict.fromkeys(MEASURED, recall(label, seed)), "old_value": 0.25,
            "recall": recall(label, seed), "parameters": 1234, "state_bytes": 2048, "train_seconds": 10.0,
            "loss": 0.5, "accuracy": 0.75,
        }
        for label, name in HEADS.items() for seed in seeds
    ]  # fmt: skip
    train = {"steps": 2, "rows": 3, "most_facts": 4, "memory_tokens": [640, 1024]}
    settings = {"questions": 2, "adapter": {"train": train}}
    return {"recipe": "r", "settings": settings, "groups": [group], "runs": runs, "missing": ["heads_k-seed9"]}
