"""A small harness with the outside of MemoryAgentBench's: arguments, files, and what it asks of an agent."""

import json
from argparse import ArgumentParser

from agent import AgentWrapper  # noqa: F401
from conversation_creator import ConversationCreator
from initialization import agent_for, load_existing_results, setup_configs_and_directories
from utils.eval_other_utils import metrics_summarization


def arguments():
    parser = ArgumentParser()
    parser.add_argument("--agent_config")
    parser.add_argument("--dataset_config")
    parser.add_argument("--chunk_size_ablation", type=int, default=0)
    parser.add_argument("--max_test_queries_ablation", type=int, default=0)
    parser.add_argument("--force", action="store_true")
    return parser.parse_args()


def save(path, agent_config, dataset_config, metrics, results):
    means = {name: sum(v) / len(v) * (1 if "_len" in name or "_time" in name else 100) for name, v in metrics.items()}
    document = {
        "agent_config": agent_config,
        "dataset_config": dataset_config,
        "data": results,
        "metrics": metrics,
        "averaged_metrics": means,
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file)


def main():
    args = arguments()
    agent_config, dataset_config, path = setup_configs_and_directories(args)
    creator = ConversationCreator(agent_config, dataset_config)
    metrics, results = load_existing_results(path, dataset_config, args.force)
    done, asked, most = len(results), 0, args.max_test_queries_ablation
    for number, (chunks, pairs) in enumerate(zip(creator.get_chunks(), creator.get_query_and_answers(), strict=True)):
        if most and asked >= most:
            break
        agent = agent_for(agent_config, dataset_config, chunks, number)
        for query, answer, _ in pairs:
            if asked >= done and not (most and asked >= most):
                output = agent.send_message(query, memorizing=False, query_id=asked, context_id=number)
                metrics_summarization(output, query, answer, dataset_config, metrics, results, asked)
                save(path, agent_config, dataset_config, metrics, results)
            asked += 1


if __name__ == "__main__":
    main()
