"""What surrounds a chunk and a question, by dataset and kind of agent."""

TEMPLATES = {
    "stamped": {
        "system": "Remember what you read.",
        "memorize": "Read on {time_stamp}: {context}",
        "query": {"Agentic_memory": "From your archive, answer: {question}"},
    },
    "plain": {"system": "", "memorize": "{context}", "query": {"Agentic_memory": "{question}"}},
}


def get_template(sub_dataset, template_name, agent_name):
    kind = next((kind for kind in ("rag", "Agentic_memory") if kind in agent_name), None)
    if kind is None:
        raise NotImplementedError(f"no templates for {agent_name}")
    template = TEMPLATES[sub_dataset.partition("_")[0]][template_name]
    return template if isinstance(template, str) else template[kind]
