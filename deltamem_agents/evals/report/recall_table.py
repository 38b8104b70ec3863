"""Results of :mod:`deltamem_agents.evals.recall` as a table for a page."""

from typing import Any

HEAD = ("told, then asked", "aim", "memory", "without memory", "whole dialogue in context")


def markdown(document: dict[str, Any]) -> str:
    """A Markdown table of a results document: shares of exact answers, 0 to 1; "-" where nothing was measured.

    Three decimals, so that what falls short of an aim by a little does not look as if it reached it.
    """
    rows = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
    for cell in document["cells"].values():
        shares = [f"{cell[key]:.3f}" if key in cell else "-" for key in ("aim", "memory", "no_memory", "full_context")]
        if "old_value" in cell:
            shares[1] += f" (old value {cell['old_value']:.3f})"
        rows.append((cell["title"], *shares))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
