"""Chunks and scores."""


def split(sentences, chunk_size):
    """Chunks of whole sentences, of ``chunk_size`` words or a little more."""
    chunks = [[]]
    for sentence in sentences:
        chunks[-1].append(sentence)
        if sum(len(one.split()) for one in chunks[-1]) >= chunk_size:
            chunks.append([])
    return [" ".join(chunk) for chunk in chunks if chunk]


def metrics_summarization(output, query, answer, dataset_config, metrics, results, query_id=None, qa_pair_id=None):
    output["substring_exact_match"] = any(part.lower() in output["output"].lower() for part in answer)
    for name in ("substring_exact_match", "input_len", "output_len", "memory_construction_time", "query_time_len"):
        metrics[name].append(output[name])
    results.append({**output, "answer": answer, "query": query, "query_id": query_id})
    return metrics, results
