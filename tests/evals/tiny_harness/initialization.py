"""Configurations, the path of the results, and agents that are told a context once."""

import json
import os
from collections import defaultdict

import yaml
from agent import AgentWrapper
from utils.eval_other_utils import metrics_summarization

NAMES = ("context_max_length", "generation_max_length", "max_test_samples")


def setup_configs_and_directories(args):
    with open(args.agent_config) as file:
        agent_config = yaml.safe_load(file)
    with open(args.dataset_config) as file:
        dataset_config = yaml.safe_load(file)
    if args.chunk_size_ablation > 0:
        dataset_config["chunk_size"] = args.chunk_size_ablation
    if args.max_test_queries_ablation > 0:
        dataset_config["max_test_queries"] = args.max_test_queries_ablation
    folder = os.path.join(agent_config["output_dir"], dataset_config["dataset"])
    os.makedirs(folder, exist_ok=True)
    tag = "_".join(str(dataset_config[name]) for name in ("sub_dataset", *NAMES))
    return agent_config, dataset_config, os.path.join(folder, f"{tag}_results.json")


def load_existing_results(path, dataset_config, force):
    metrics, results = defaultdict(list), []
    if force or not os.path.exists(path):
        return metrics, results
    with open(path) as file:
        for row in json.load(file)["data"]:
            answer = row["answer"][0] if isinstance(row["answer"], list) else row["answer"]
            metrics_summarization(row, row["query"], answer, dataset_config, metrics, results, row["query_id"])
    return metrics, results


def agent_for(agent_config, dataset_config, chunks, number):
    folder = f"./agents/{agent_config['agent_name']}_{dataset_config['sub_dataset']}/exp_{number}"
    agent = AgentWrapper(agent_config, dataset_config, load_agent_from=folder)
    if os.path.exists(folder):
        agent.load_agent()
        return agent
    for chunk in chunks:
        agent.send_message(chunk, memorizing=True)
    agent.save_agent()
    return agent
