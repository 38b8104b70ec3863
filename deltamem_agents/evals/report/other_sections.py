"""The parts of a report about curves, perplexity and ablations."""

from collections.abc import Mapping
from typing import Any

from ...errors import DeltaMemError
from ..ablation_report import table as ablation_tables
from ..plots import curve_lines
from .tables import NOTHING, number, table


def curves(document: dict[str, Any]) -> str:
    """Curves of :func:`..curves.run_curves`: a figure, and a table for each."""
    parts = [
        "## Curves",
        f"{document['questions']} questions at each point, of δ-mem, with the question alone in the prompt; intervals "
        "are those of Wilson. Routed: a message goes to the sub-state that it is about; unrouted: to all of them.",
        "![Curves](curves/curves.png)",
    ]
    for curve in document["curves"].values():
        if not curve["points"]:
            continue
        xs = sorted({point["x"] for point in curve["points"]})
        rows = []
        for label, points in curve_lines(curve).items():
            at = {x: f"{100 * y:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for x, y, (low, high) in points}
            rows.append((label, *(at.get(x, NOTHING) for x in xs)))
        parts += [f"### {curve['title']}", table((curve["xlabel"], *map(str, xs)), rows)]
    return "\n\n".join(parts)


def perplexity(document: dict[str, Any]) -> str:
    """A document of :func:`..perplexity.run_perplexity`."""
    rows = [
        (
            row["name"],
            number(row["tokens"]),
            *(number(row[way]["perplexity"], 3) for way in ("detached", "empty", "full")),
            f"{row['full_minus_detached']:+.4f}",
            "yes" if row["empty_bit_equal"] else "no",
        )
        for row in document["texts"].values()
    ]
    columns = ("text", "tokens", "backbone alone", "empty memory", f"memory of {document['facts']} facts")
    return "\n\n".join(
        (
            "## Perplexity",
            "What the memory costs the backbone on text that has nothing to do with what it holds: lower is better. "
            "The difference is of the mean loss of a token, in nats, with the memory of facts minus alone. A text that "
            "the backbone alone cannot predict (perplexity in the thousands) says nothing about the memory.",
            table((*columns, "difference of losses", "empty equals alone, bit for bit"), rows),
        )
    )


def ablations(document: Mapping[str, Any]) -> str:
    """The document of :func:`..ablations.run_ablations` as tables, beside the figure of :func:`.sections.render`.

    Raises:
        DeltaMemError: it is none.
    """
    try:
        made = f"\n\nMade by\n\n```bash\n{document['command']}\n```" if document.get("command") else ""
        figure = "![Recall of 4, 8 and 16 facts by variant](ablations.png)"
        return f"## Ablations\n\n{figure}\n\n{ablation_tables(document).rstrip()}{made}"
    except (KeyError, TypeError) as error:
        raise DeltaMemError(
            f"ablations.json: not the document of ablations ({error!r}): give the ablations.json of "
            "python -m deltamem_agents.evals.ablations"
        ) from error
