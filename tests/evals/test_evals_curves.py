"""Curves: sessions hold what their x says, points are counted and kept, intervals are right, the plot is drawn."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import build_adapter_folder

from deltamem_agents.engine import Engine, load_engine
from deltamem_agents.errors import DeltaMemError
from deltamem_agents.evals import curves
from deltamem_agents.evals.curves import CURVES, draw, measure, run_curves, wilson
from deltamem_agents.evals.plots import curve_lines, plot_curves

BY_NAME = {curve.name: curve for curve in CURVES}
UNKNOWN = "I don't know."


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(build_adapter_folder(tmp_path_factory.mktemp("tiny")), device="cpu")


@pytest.mark.parametrize(("name", "x"), [(c.name, x) for c in CURVES for x in c.xs])
def test_sessions_hold_what_their_place_says(name: str, x: int) -> None:
    curve = BY_NAME[name]
    sessions, asked = draw(curve, x, "routed", 12)
    assert len(asked) == 12
    assert {i for i, _ in asked} == set(range(len(sessions)))
    for i, probe in asked:
        said = [m["content"] for m in sessions[i].messages]
        told = probe.answer == "Nothing." or any(probe.answer.rstrip(".").lower() in text.lower() for text in said)
        assert told == (probe.answer != UNKNOWN)
        assert (probe.answer == UNKNOWN) == (name == "never_told")
        if name in ("facts", "never_told", "facts_beside"):
            assert len(sessions[i].facts) == x
        if name == "talk":
            assert len(said) >= 2 * x + 1
        if name == "updates":
            assert len(set(probe.old)) == x
            assert probe.answer not in probe.old
            places = [max(n for n, text in enumerate(said) if value in text) for value in (*probe.old, probe.answer)]
            assert places[-1] == max(places)  # the newest value was told last
        if name.startswith("messages"):
            assert len(said) == x
            assert 0.4 < said.count("Noted.") / (x / 2) <= 0.6
            ends = [n for n, text in enumerate(said) if text == "Noted." and probe.answer in said[n - 1]]
            since = said[ends[-1] :].count("Noted.")  # tellings since, with its own
            assert since <= 5 if name == "messages" else 1 <= since <= 20
        if name == "tasks_beside":
            assert len({text for text in said if " Plan: 1. " in text}) == x


def test_unrouted_sessions_are_the_same_but_for_their_routes() -> None:
    routed, unrouted = (draw(BY_NAME["tasks_beside"], 2, routing, 8) for routing in ("routed", "unrouted"))
    assert routed[1] == unrouted[1]
    for one, other in zip(routed[0], unrouted[0], strict=True):
        assert [m["content"] for m in one.messages] == [m["content"] for m in other.messages]
        assert {m["sub_state"] for m in one.messages} == {"facts", "task_progress"}
        assert {m["sub_state"] for m in other.messages} == {""}


def test_a_point_counts_right_old_and_unknown(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = BY_NAME["updates"]
    _, asked = draw(curve, 2, "routed", 10)
    said = [p.answer for _, p in asked[:4]] + [p.old[0] for _, p in asked[4:7]] + [UNKNOWN, UNKNOWN, "nonsense"]
    monkeypatch.setattr(engine, "answer", lambda states, questions, batch_size: said)
    point = measure(engine, curve, 2, "routed", 10)
    assert (point["x"], point["questions"], point["sessions"]) == (2, 10, 5)
    assert (point["right"], point["old_value"], point["unknown"]) == (0.4, 0.3, 0.2)
    assert (point["interval"], point["old_interval"]) == (wilson(4, 10), wilson(3, 10))
    monkeypatch.setattr(engine, "answer", lambda states, questions, batch_size: [UNKNOWN] * 9 + ["8080"])
    point = measure(engine, BY_NAME["never_told"], 4, "routed", 10)
    assert (point["invented"], point["unknown"], point["interval"]) == (0.1, 0.9, wilson(1, 10))


def test_each_question_reads_the_memory_of_its_own_session(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = BY_NAME["facts"]
    sessions, asked = draw(curve, 2, "routed", 7)
    own = curves.write_sessions(engine, sessions)
    monkeypatch.setattr(curves, "ROWS", 2)
    seen: list[bool] = []

    def answer(states, questions, batch_size):  # type: ignore[no-untyped-def]
        for row in range(len(questions)):
            wanted = own.rows([asked[len(seen)][0]]).tensors
            seen.append(all(t.equal(wanted[name]) for name, t in states.rows([row]).tensors.items()))
        return [""] * len(questions)

    monkeypatch.setattr(engine, "answer", answer)
    measure(engine, curve, 2, "routed", 7)
    assert seen == [True] * 7


def test_wilson_intervals() -> None:
    assert wilson(50, 100) == [0.4038, 0.5962]
    assert wilson(0, 10) == [0.0, 0.2775]
    assert wilson(10, 10) == [0.7225, 1.0]


def test_a_run_goes_on_where_it_was_cut_off(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["updates", "facts_beside"]
    out = tmp_path / "new"
    done: list[tuple[str, int, str]] = []

    def counted(*arguments):  # type: ignore[no-untyped-def]
        done.append((arguments[1].name, arguments[2], arguments[3]))
        if len(done) == 4:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(curves, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run_curves(engine, out, 2, curves=names, say=lambda _: None)
    kept = json.loads((out / "curves.json").read_text(encoding="utf-8"))["curves"]["updates"]["points"]
    assert [point["x"] for point in kept] == [0, 1, 2]
    document = run_curves(engine, out, 2, curves=names, say=lambda _: None)
    assert done[4:] == [
        ("updates", 4, "routed"),
        ("updates", 8, "routed"),
        *(("facts_beside", x, routing) for routing in ("routed", "unrouted") for x in (0, 8, 32)),
    ]
    assert document["curves"]["updates"]["points"][:3] == kept
    assert json.loads((out / "curves.json").read_text(encoding="utf-8")) == document
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["curves.json", "curves.png"]
    done.clear()
    assert run_curves(engine, out, 2, curves=names, say=lambda _: None) == document
    assert done == []
    with pytest.raises(DeltaMemError, match=r"with questions 2, now it is 3: give another folder"):
        run_curves(engine, out, 3, curves=names)


def test_a_memory_without_the_sub_states_is_measured_unrouted(tmp_path: Path) -> None:
    plain = load_engine(build_adapter_folder(tmp_path / "plain", sub_states={}), device="cpu")
    document = run_curves(plain, tmp_path / "out", 2, curves=["facts_beside"], say=lambda _: None)
    places = [(p["x"], p["routing"]) for p in document["curves"]["facts_beside"]["points"]]
    assert places == [(0, "unrouted"), (8, "unrouted"), (32, "unrouted")]


def test_what_cannot_be_done_is_refused_before_anything_is_measured(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "measure", None)  # not reached
    with pytest.raises(DeltaMemError, match=r"unknown curve 'wits'.*never_told"):
        run_curves(engine, tmp_path, curves=["wits"])
    with pytest.raises(DeltaMemError, match="at least 1"):
        run_curves(engine, tmp_path, 0)
    (tmp_path / "curves.json").write_text("{}")
    with pytest.raises(DeltaMemError, match=r"curves\.json holds no curves.*remove it"):
        run_curves(engine, tmp_path)
    with pytest.raises(DeltaMemError, match="cannot be written"):
        run_curves(engine, tmp_path / "curves.json")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DeltaMemError, match=r"matplotlib.*pip install"):
        run_curves(engine, tmp_path / "other")


def test_lines_of_a_plot(tmp_path: Path) -> None:
    points = [
        {
            "x": 8,
            "routing": "routed",
            "right": 0.5,
            "interval": [0.4, 0.6],
            "old_value": 0.2,
            "old_interval": [0.1, 0.3],
        },
        {"x": 0, "routing": "routed", "right": 0.9, "interval": [0.8, 1.0]},
    ]
    curve = {"title": "t", "xlabel": "changes", "measure": "right", "points": points}
    assert curve_lines(curve) == {
        "right, routed": [(0, 0.9, (0.8, 1.0)), (8, 0.5, (0.4, 0.6))],
        "old value, routed": [(8, 0.2, (0.1, 0.3))],
    }
    plot_curves({"questions": 5, "curves": {"a": curve}}, tmp_path / "new" / "x.png")
    assert (tmp_path / "new" / "x.png").stat().st_size > 5000


def test_the_embedded_adapter_holds_four_facts_better_than_sixty_four(default_engine: Engine) -> None:
    few, many = (measure(default_engine, BY_NAME["facts"], x, "routed", 8) for x in (4, 64))
    assert few["right"] >= 0.75
    assert many["right"] < few["right"]
