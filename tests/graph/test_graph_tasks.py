"""The life of a task: said by a program, planned by a model's tools, ended once, found again weeks later."""

import asyncio
import signal

import pytest
import warm
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode
from tiny import build_adapter_folder

from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.chat_model.replay import replay
from deltamem_agents.errors import StateError
from deltamem_agents.graph import (
    CompactNode,
    DeltaMemReader,
    DeltaMemState,
    Task,
    TaskWriter,
    current_task,
    end_task,
    report_progress,
    start_task,
    task_tools,
)
from deltamem_agents.store import Filter, open_store

STEPS = ["back up the keys", "rotate the keys"]
OUTCOME = "Task: secure atlas. Outcome: all keys are new."


def config(thread="1", agent="otto"):
    return {"configurable": {"agent_id": agent, "thread_id": thread}}


def texts(model, version=None):
    return [record.entry.content for record in model.opened_store.journal("otto", version)]


def resets(model, version=None):
    return [v.resets for v in model.opened_store.history("otto", version) if v.resets]


def numbered(*messages, start=0):
    return [m.model_copy(update={"id": f"m{i}"}) for i, m in enumerate(messages, start)]


def whole_life():
    report = report_progress("secure atlas", STEPS, 1)
    return numbered(start_task("secure atlas", STEPS), report, end_task("secure atlas", "all keys\nare new."))


def written(model, messages, version=None, thread="1"):
    state = DeltaMemState(messages=messages, memory_version=version)
    return TaskWriter(model)(state, config(thread))["memory_version"]


def test_a_task_is_followed_and_its_end_leaves_a_fact(model):
    told = [HumanMessage("the rice is in room seven", id="h"), *whole_life()]
    first = written(model, told[:2])
    assert current_task(model, "otto") == Task("secure atlas", tuple(STEPS))
    second = written(model, told[:3], first)
    assert current_task(model, "otto") == Task("secure atlas", tuple(STEPS), 1)
    assert current_task(model, "otto", first).finished == 0
    third = written(model, told, second)
    store = model.opened_store
    assert store.head("otto") == third and current_task(model, "otto") is None
    ended = store.version("otto", third)
    assert ended.parent == second and ended.resets == ("task_progress",) and set(ended.parts) == {"facts"}
    record = store.journal("otto")[-1]
    assert (record.entry.content, record.entry.sub_states, record.version_id) == (OUTCOME, ("facts",), third)
    assert list(replay(model.memories, "otto")) == []


def test_a_blocked_task_says_why(model):
    model.remember([start_task("secure atlas", STEPS)], "otto")
    model.remember([report_progress("secure atlas", STEPS, 1, "the vault is shut")], "otto")
    assert current_task(model, "otto") == Task("secure atlas", tuple(STEPS), 1, "the vault is shut")
    assert current_task(model, "nobody") is None


def test_nobody_else_opens_or_ends_a_task(model):
    plan, end = start_task("secure atlas", STEPS), end_task("secure atlas", "all keys are new")
    model.remember([HumanMessage(plan.content)], "otto")
    assert current_task(model, "otto") is None
    model.remember([plan, HumanMessage(end.content)], "otto")
    assert current_task(model, "otto") == Task("secure atlas", tuple(STEPS))


def test_an_open_task_is_found_far_back_in_the_journal(model):
    model.remember([start_task("secure atlas", STEPS), report_progress("secure atlas", STEPS, 1)], "otto")
    model.remember([HumanMessage(f"rice {i}", additional_kwargs={"sub_state": "nowhere"}) for i in range(150)], "otto")
    assert current_task(model, "otto") == Task("secure atlas", tuple(STEPS), 1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: start_task("secure atlas", []),
        lambda: start_task("secure\natlas", STEPS),
        lambda: start_task("secure atlas", ["back up. 2. rotate"]),
        lambda: end_task("secure atlas", " . "),
    ],
)
def test_words_that_are_no_task_are_refused(wrong):
    with pytest.raises(ValueError, match="secure"):
        wrong()


def test_a_whole_life_in_one_write_moves_the_head_once(model, monkeypatch):
    heads = []
    store = model.opened_store
    original = type(store).commit

    def spy(self, *args, **options):
        made = original(self, *args, **options)
        heads.append(self.head("otto"))
        return made

    monkeypatch.setattr(type(store), "commit", spy)
    told = [*whole_life(), *numbered(AIMessage("done"), start=9)]
    version = written(model, told)
    assert heads == [None] * 3 and store.head("otto") == version
    assert written(model, told) == written(model, told, version) == version
    assert texts(model)[2:] == [OUTCOME, "done"] and len(resets(model)) == 1


def test_an_end_that_fails_halfway_is_finished_once(model, monkeypatch):
    life, store = whole_life(), model.opened_store
    first = written(model, life[:1])
    original = type(store).move_head

    def lost(self, *args, **options):
        raise ConnectionError("lost")

    monkeypatch.setattr(type(store), "move_head", lost)
    with pytest.raises(ConnectionError):
        written(model, life, first)
    assert store.head("otto") == first and current_task(model, "otto").finished == 0
    monkeypatch.setattr(type(store), "move_head", original)
    model.remember([HumanMessage("of another thread", id="x")], "otto")
    version = written(model, life, first)
    assert store.head("otto") == version == written(model, life, first)
    assert texts(model) == [life[0].content, "of another thread", life[1].content, OUTCOME]


def test_an_end_in_a_thread_that_went_back_is_a_branch(model):
    life = whole_life()
    first = written(model, life[:1])
    head = written(model, life, first)
    other = numbered(end_task("secure atlas", "given up"), start=7)
    branch = written(model, [life[0], *other], first)
    assert model.opened_store.head("otto") == head and texts(model)[-1] == OUTCOME
    assert texts(model, branch)[1:] == ["Task: secure atlas. Outcome: given up."]


def test_a_task_whose_messages_leave_the_window_ends_too(model):
    state = DeltaMemState(messages=[*whole_life(), HumanMessage("go", id="g")], memory_version=None)
    left = CompactNode(model, keep="turn", writer=TaskWriter(model))(state, config())
    assert [m.id for m in left["messages"]] == ["m0", "m1", "m2"]
    assert resets(model) == [("task_progress",)] and texts(model)[-1] == OUTCOME
    assert left["memory_version"] == model.opened_store.head("otto")


def test_forgetting_an_outcome_leaves_the_reset(model):
    written(model, [HumanMessage("the rice is in room seven", id="h"), *whole_life()])
    model.forget("otto", Filter(text="all keys"))
    head = model.opened_store.version("otto", model.opened_store.head("otto"))
    assert OUTCOME not in texts(model) and len(resets(model)) == 1 and set(head.parts) == {"facts"}
    assert list(replay(model.memories, "otto")) == []


class Planning(DeltaMemChatModel):
    """Calls, in each turn, the tools that the human message names: name(argument=value) as JSON."""

    def _generate(self, messages, *args, **kwargs):
        said = messages[-1]
        calls = said.additional_kwargs.get("calls", []) if isinstance(said, HumanMessage) else []
        named = [{"name": name, "args": given, "id": f"{said.id}-{i}"} for i, (name, given) in enumerate(calls)]
        return ChatResult(generations=[ChatGeneration(message=AIMessage("" if named else "noted", tool_calls=named))])


def planner(model, saver):
    """model -> tools -> model, and what was said and returned is written after each."""
    model = Planning(**{name: getattr(model, name) for name in ("adapter", "device", "store", "max_tokens")})
    tools, writer = task_tools(model), TaskWriter(model)
    bound = model.bind_tools(tools)
    graph = StateGraph(DeltaMemState)
    graph.add_node("recall", DeltaMemReader(model))
    graph.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(tools))
    graph.add_node("remember_results", writer)
    graph.add_node("remember", writer)
    graph.add_edge(START, "recall")
    graph.add_edge("recall", "model")
    graph.add_conditional_edges(
        "model", lambda s: bool(s["messages"][-1].tool_calls), {True: "tools", False: "remember"}
    )
    graph.add_edge("tools", "remember_results")
    graph.add_edge("remember_results", "model")
    graph.add_edge("remember", END)
    return graph.compile(checkpointer=saver)


def turn(name, *calls):
    return {"messages": [HumanMessage(f"turn {name}", id=name, additional_kwargs={"calls": list(calls)})]}


PLAN = ("plan_task", {"goal": "secure  atlas.", "steps": ["back up the keys.", "rotate the keys"]})
FINISH = ("finish_task", {"outcome": "all keys are new."})


def results(state):
    return [(m.status, m.content) for m in state["messages"] if m.type == "tool"]


def test_a_model_plans_reports_and_finishes(model):
    graph = planner(model, InMemorySaver())
    graph.invoke(turn("a", PLAN), config("1"))
    assert current_task(model, "otto") == Task("secure atlas", tuple(STEPS))
    graph.invoke(turn("b", ("report_step", {"finished": 1})), config("2"))
    assert current_task(model, "otto").finished == 1
    done = graph.invoke(turn("c", FINISH), config("1"))
    assert results(done)[-1] == ("success", OUTCOME) and current_task(model, "otto") is None
    assert len(resets(model)) == 1 and texts(model).count(OUTCOME) == 1
    outcome = next(r.entry for r in model.opened_store.journal("otto") if r.entry.content == OUTCOME)
    assert (outcome.role, outcome.sub_states, outcome.thread_id) == ("tool", ("facts",), "1")
    graph.invoke(turn("d", PLAN), config("2"))
    assert current_task(model, "otto") == Task("secure atlas", tuple(STEPS))


def test_parallel_calls_and_mistakes(model, tmp_path):
    async def run():
        async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "threads.db")) as saver:
            graph = planner(model, saver)
            early = await graph.ainvoke(turn("a", FINISH), config("1"))
            await graph.ainvoke(turn("b", PLAN), config("2"))
            wrong = (PLAN, ("report_step", {"finished": 3}), ("finish_task", {"outcome": ""}))
            refused = await graph.ainvoke(turn("c", *wrong), config("2"))
            both = (("report_step", {"finished": 2, "blocked_by": "a long queue"}), FINISH)
            return early, refused, await graph.ainvoke(turn("d", *both), config("2"))

    early, refused, both = asyncio.run(run())
    assert results(early) == [("error", "no task is open: plan one first")]
    assert [status for status, _ in results(refused)] == ["success", "error", "error", "error"]
    assert "is open: finish it first" in results(refused)[1][1] and "3 steps" in results(refused)[2][1]
    assert results(both)[-1] == ("success", OUTCOME) and "Blocked: a long queue." in results(both)[-2][1]
    kept = [r.entry for r in model.opened_store.journal("otto") if r.entry.role == "tool"]
    assert [bool(entry.sub_states) for entry in kept] == [False, True, False, False, False, True, True]
    assert len(resets(model)) == 1 and current_task(model, "otto") is None


def test_tools_see_what_is_said_but_not_written_and_what_others_ended(model):
    graph = StateGraph(DeltaMemState)
    graph.add_node("tools", ToolNode(task_tools(model)))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    graph = graph.compile()
    call = AIMessage("", id="c", tool_calls=[{"name": "report_step", "args": {"finished": 1}, "id": "c"}])
    life = whole_life()
    assert results(graph.invoke({"messages": [life[0], call]}, config()))[0][0] == "success"
    written(model, life)
    assert results(graph.invoke({"messages": [life[0], call]}, config("2")))[0][0] == "error"


def test_a_memory_without_progress_holds_no_tasks(tmp_path):
    adapter = build_adapter_folder(tmp_path / "one", sub_states={"facts": (0, 1, 2, 3)})
    model = DeltaMemChatModel(adapter=str(adapter), device="cpu", store=str(tmp_path / "memory.db"))
    with pytest.raises(StateError, match="task_progress"):
        planner(model, None).invoke(turn("a", PLAN), config("1"))


LATER = """
import os, signal, sys
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
import deltamem_agents.graph.tasks as tasks
from deltamem_agents.chat_model import DeltaMemChatModel
from deltamem_agents.graph import DeltaMemState, TaskWriter, current_task, end_task, report_progress

adapter, folder, mode = sys.argv[1:]
model = DeltaMemChatModel(adapter=adapter, device="cpu", store=folder + "/memory.db")
task = current_task(model, "otto")

if mode != "to the end":
    store = type(model.opened_store)
    original = store.move_head

    def dies(self, *args, **options):
        if mode == "killed after":
            original(self, *args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    store.move_head = dies
graph = StateGraph(DeltaMemState)
graph.add_node("remember", TaskWriter(model))
graph.add_edge(START, "remember")
graph.add_edge("remember", END)
config = {"configurable": {"agent_id": "otto", "thread_id": "later"}}
with SqliteSaver.from_conn_string(folder + "/threads.db") as saver:
    graph = graph.compile(checkpointer=saver)
    said = None
    if mode == "killed before":
        said = {"messages": [report_progress(task.goal, task.steps, 2), end_task(task.goal, "all keys are new")]}
    print(graph.invoke(said, config, durability="sync")["memory_version"])
"""


def test_another_process_ends_a_task_and_is_killed_and_resumed(model, tiny_adapter, tmp_path):
    def run(mode):
        done = warm.python("-c", LATER, tiny_adapter, tmp_path, mode)
        with open_store(tmp_path / "memory.db") as store:
            return done, [record.entry.content for record in store.journal("otto")], store.head("otto")

    first = written(model, whole_life()[:1])
    killed, told, head = run("killed before")
    assert (killed.returncode, len(told), head) == (-signal.SIGKILL, 1, first), killed.stderr
    killed, told, ended = run("killed after")
    assert (killed.returncode, told[2:]) == (-signal.SIGKILL, [OUTCOME]), killed.stderr
    done, told, head = run("to the end")
    assert (done.returncode, done.stdout.strip(), head, told[2:]) == (0, ended, ended, [OUTCOME]), done.stderr
    with open_store(tmp_path / "memory.db") as store:
        assert store.agent("otto").versions == 3 and set(store.version("otto", ended).parts) == {"facts"}
