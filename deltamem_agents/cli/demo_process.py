"""One process of the demonstration: a LangGraph agent does what a job on stdin says, and reports on stdout as JSON.

A job holds the store, the adapter and the agent's name, and some of: ``told`` and ``records`` (messages to the agent,
and what its tools find), ``task`` (goal, steps, how many to finish), ``questions``, ``reset`` (a sub-state) and
``then`` (questions after that). Answers that are expected are never in it.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import DeltaMemError
from .options import quiet_libraries

Tell = Callable[..., None]


def main() -> None:
    report, sys.stdout = sys.stdout, sys.stderr  # libraries may print; the report is ours

    def tell(**event: Any) -> None:
        print(json.dumps(event, ensure_ascii=False), file=report, flush=True)

    try:
        _run(json.loads(sys.stdin.readline()), tell)
    except DeltaMemError as error:
        tell(event="error", text=str(error))
        sys.exit(1)


def _run(job: Mapping[str, Any], tell: Tell) -> None:
    quiet_libraries()

    from ..chat_model import DeltaMemChatModel
    from ..graph import create_deltamem_agent

    settings = {"adapter": job["adapter"], "store": job["store"], "device": "cpu"}
    model = DeltaMemChatModel(**settings)
    agent = create_deltamem_agent(model, _tools(job["records"]) if job.get("records") else [])
    if job.get("told"):
        _listen(agent, job["told"], job["agent"], tell)
    if job.get("task"):
        _work(model, job["task"], job["agent"], tell)
    frozen = DeltaMemChatModel(**settings, use_memory=False)
    _answer(agent, frozen, job.get("questions", ()), job["agent"], tell)
    if job.get("reset"):
        tell(event="reset", text=job["reset"], version=model.reset(job["agent"], job["reset"]))
        _answer(agent, frozen, job.get("then", ()), job["agent"], tell)
    tell(event="end", version=model.opened_store.head(job["agent"]))


def _tools(records: Mapping[str, Mapping[str, str]]) -> list[Any]:
    """The tools of an operations team, over records that live in this process only."""
    from langchain_core.tools import StructuredTool

    from ..training.world.tools import LOOKUPS, OPEN_TICKET, RESTART

    def get_service(name: str) -> str:
        return json.dumps(records.get(name, {"error": f"no service {name}"}), ensure_ascii=False)

    def restart_service(name: str) -> str:
        return json.dumps({"status": "ok" if name in records else "not found"})

    def open_ticket(title: str, priority: str) -> str:
        return json.dumps({"ticket": f"OPS-{1000 + len(title)}"})

    made = []
    for declared, function in (
        (LOOKUPS["service"], get_service),
        (RESTART, restart_service),
        (OPEN_TICKET, open_ticket),
    ):
        about = declared["function"]
        made.append(
            StructuredTool.from_function(
                function, name=about["name"], description=about["description"], args_schema=about["parameters"]
            )
        )
    return made


def _listen(agent: Any, told: Sequence[str], name: str, tell: Tell) -> None:
    """Say each message in a conversation of its own."""
    for text in told:
        tell(event="user", text=text)
        result = agent.invoke({"messages": [("user", text)]}, {"configurable": {"agent_id": name}})
        for message in result["messages"]:
            for call in getattr(message, "tool_calls", ()):
                tell(event="call", name=call["name"], arguments=call["args"])
            if message.type == "tool":
                tell(event="result", text=message.text)
        tell(event="agent", text=result["messages"][-1].text)


def _work(model: Any, task: Mapping[str, Any], name: str, tell: Tell) -> None:
    """A graph that does one step after the other; each report of progress is written to the agent's memory."""
    from langgraph.graph import END, START, StateGraph

    from ..graph import DeltaMemState, DeltaMemWriter, open_task, report_progress

    def work(state: DeltaMemState) -> dict[str, Any]:
        finished = len(state["messages"])
        goal, steps = task["goal"], task["steps"]
        report = report_progress(goal, steps, finished) if finished else open_task(goal, steps)
        tell(event="report", text=report.text)
        return {"messages": [report]}

    def after(state: DeltaMemState) -> str:
        return "work" if len(state["messages"]) <= task["finished"] else END

    graph = StateGraph(DeltaMemState)
    graph.add_node("work", work)
    graph.add_node("remember", DeltaMemWriter(model))
    graph.add_edge(START, "work")
    graph.add_edge("work", "remember")
    graph.add_conditional_edges("remember", after, ["work", END])
    start = DeltaMemState(messages=[], memory_version=None)
    graph.compile().invoke(start, {"configurable": {"agent_id": name}})


def _answer(agent: Any, frozen: Any, questions: Sequence[str], name: str, tell: Tell) -> None:
    """Ask the agent, and ask the same frozen model without memory with the very same prompt."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Seen(BaseCallbackHandler):
        prompts: list[Any] = []  # noqa: RUF012

        def on_chat_model_start(self, serialized: Any, messages: list[list[Any]], **kwargs: Any) -> None:
            self.prompts = [*self.prompts, *messages]

    for text in questions:
        seen = Seen()
        config = {"configurable": {"agent_id": name}, "callbacks": [seen]}
        result = agent.invoke({"messages": [("user", text)]}, config)
        without = frozen.invoke(seen.prompts[0])
        prompt = "".join(_literal(frozen.engine, messages) for messages in seen.prompts)
        tell(event="asked", text=text, prompt=prompt, memory=result["messages"][-1].text, frozen=without.text)


def _literal(engine: Any, messages: Sequence[Any]) -> str:
    """The text that the model got, back from the tokens of the prompt."""
    from ..chat_model.messages import to_message

    ids = engine.text.prompt([to_message(message) for message in messages])
    return str(engine.tokenizer.decode(ids, skip_special_tokens=False))


if __name__ == "__main__":
    main()
