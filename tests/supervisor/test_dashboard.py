"""What `watch` knows of a run, what a key makes of it, and what of it a screen shows: without a
terminal, a clock or a run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from casemate.protocol.control import RunState, RunSummary, TaskSummary
from casemate.protocol.events import ErrorKind, TaskError
from casemate.supervisor.cli.dashboard import LINES, Dashboard
from casemate.supervisor.cli.drawing import draw
from casemate.supervisor.cli.terminal import Keys
from casemate.supervisor.cli.viewer import Choice, Filter, Page, Verb, Viewer, Wish
from casemate.supervisor.cursor import PipelineEvent

START = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC).timestamp()
MIB = 2**20
EVIL = "\x1b[2J\x07[bold]x[/bold]\u202e\n"


class Told:
    """A dashboard of `graph`, {task: what it needs}, and events to it, by the second."""

    def __init__(self, graph: dict[str, list[str]]) -> None:
        self.dashboard = Dashboard("1m8m5j2f36rh")
        self.seq = 0
        edges = [{"source": s, "to": task, "stream": False} for task in graph for s in graph[task]]
        spec = {"tasks": [{"id": task} for task in graph], "edges": edges}
        self(0, "run.started", pipeline="nightly", spec=spec)

    def __call__(
        self, at: float, kind: str, task: str | None = None, attempt: int = 1, **data: Any
    ) -> Told:
        self.seq += 1
        when = datetime.fromtimestamp(START + at, UTC)
        number = attempt if task else None
        self.dashboard.see(PipelineEvent(self.seq, "1m8m5j2f36rh", task, number, kind, when, data))
        return self

    def start(self, at: float, task: str, attempt: int = 1) -> Told:
        return self(at, "task.started", task, attempt, pid=1)

    def complete(self, at: float, task: str, attempt: int = 1) -> Told:
        return self(at, "task.completed", task, attempt, output=None, seconds=1.5)

    def fail(self, at: float, task: str, kind: str = "error", message: str = "no") -> Told:
        error = {"kind": kind, "message": message, "usage": {"memory": 9 * MIB, "cpu": 0.5}}
        return self(at, "task.failed", task, error=error)

    def states(self) -> dict[str, str]:
        return {name: task.state for name, task in self.dashboard.tasks.items()}

    def screen(
        self, viewer: Viewer | None = None, size: tuple[int, int] = (80, 24), at: float = 10
    ) -> list[str]:
        lines = draw(self.dashboard, viewer or Viewer(), *size, START + at)
        assert len(lines) == size[1]
        assert all(line.cell_len <= size[0] for line in lines)
        return [line.plain for line in lines]


CHAIN: dict[str, list[str]] = {"c": ["b"], "b": ["a"], "a": []}


def summary(state: RunState = RunState.RUNNING, last_seq: int = 50, **more: Any) -> RunSummary:
    return RunSummary(id="1m8m5j2f36rh", state=state, pipeline="nightly", started=START,
                      last_seq=last_seq, **more)  # fmt: skip


# ---- the dashboard


def test_tasks_are_in_the_order_of_the_graph_whatever_the_file_says() -> None:
    tasks = Told(CHAIN).dashboard.tasks
    assert [(task.id, task.depth) for task in tasks.values()] == [("a", 0), ("b", 1), ("c", 2)]


def test_a_task_is_as_its_newest_event_says() -> None:
    told = Told(CHAIN).start(1, "a")
    told(2, "task.usage", "a", memory=5 * MIB, cpu=0.5)
    told(3, "task.usage", "a", memory=3 * MIB, cpu=1.25)
    task = told.dashboard.tasks["a"]
    assert (task.state, task.elapsed(START + 4), task.memory) == ("running", 3.0, 5 * MIB)
    assert (task.share, told.dashboard.share(), told.dashboard.memory()) == (0.75, 0.75, 5 * MIB)
    told.complete(5, "a")
    assert (task.state, task.elapsed(START + 99), task.cpu, task.share) == (
        "completed",
        1.5,
        1.25,
        None,
    )
    assert told.dashboard.memory() == 0


def test_a_new_attempt_begins_with_nothing_of_the_one_before() -> None:
    told = Told(CHAIN).start(1, "a")
    error = {"kind": "timeout.wall", "message": "too long", "usage": {"memory": 7 * MIB}}
    told(4, "task.retrying", "a", error=error, delay=1.0)
    task = told.dashboard.tasks["a"]
    assert (task.state, task.memory, task.elapsed(START + 9)) == ("retrying", 7 * MIB, 3.0)
    told.start(5, "a", 2)
    assert (task.attempt, task.memory, task.cpu, task.elapsed(START + 6)) == (2, None, None, 1.0)


def test_a_failure_is_told_from_what_waits_behind_it() -> None:
    told = Told(CHAIN).start(1, "a").fail(2, "a")
    for name in "bc":
        told.fail(2, name, "upstream_failed", "upstream a failed")
    assert told.states() == {"a": "failed", "b": "upstream", "c": "upstream"}
    assert "✘ 1 failed  ✘ 2 upstream" in told.screen()[1]


def test_a_pause_stops_the_clocks_of_what_it_freezes_and_of_nothing_that_drains() -> None:
    told = Told(CHAIN).start(1, "a")(3, "run.paused", drain=False)
    task = told.dashboard.tasks["a"]
    assert (told.dashboard.state, task.state, task.elapsed(START + 9)) == ("paused", "paused", 2.0)
    told(10, "run.resumed")
    assert (told.dashboard.state, task.state, task.elapsed(START + 11)) == (
        "running",
        "running",
        3.0,
    )
    told(12, "run.paused", drain=True)
    assert (task.state, task.elapsed(START + 13)) == ("running", 5.0)


def test_what_a_rollback_undoes_waits_and_what_it_restores_is_completed() -> None:
    told = Told(CHAIN)
    for at, name in enumerate("abc"):
        told.start(at, name).complete(at + 1, name)
    told(5, "run.completed", outputs={})
    assert told.dashboard.has_ended and told.dashboard.elapsed(START + 99) == 5.0
    told(9, "run.rolled_back", checkpoint="c1", before=None, undone=["b", "c"], restored=["a"])
    assert told.states() == {"a": "completed", "b": "waiting", "c": "waiting"}
    assert told.dashboard.state is RunState.RUNNING
    assert told.dashboard.elapsed(START + 20) == 20.0


def test_a_snapshot_says_how_things_stand_and_no_more() -> None:
    told = Told(CHAIN).start(1, "a").complete(2, "a").start(3, "b")
    error = TaskError(kind=ErrorKind.ERROR, message="no")
    told.dashboard.take(summary(), [
        TaskSummary(id="c", state="running", attempt=2, since=START + 8),
        TaskSummary(id="b", state="failed", attempt=1, since=START + 7, error=error),
        TaskSummary(id="a", state="completed", attempt=1, since=START + 2),
    ])  # fmt: skip
    a, b, c = told.dashboard.tasks.values()
    assert (a.state, a.elapsed(START + 9)) == ("completed", 1.5)
    assert (b.state, b.elapsed(START + 9), b.error) == (
        "failed",
        4.0,
        {"kind": "error", "message": "no"},
    )
    assert (c.state, c.attempt, c.elapsed(START + 9)) == ("running", 2, 1.0)


def test_an_event_counts_once_and_a_hole_is_noticed_until_the_next_snapshot() -> None:
    told = Told(CHAIN).start(1, "a")
    told.seq -= 1
    told.complete(2, "a")
    assert told.states()["a"] == "running", "of a seq that was seen"
    assert not told.dashboard.has_holes
    told.seq += 5
    told.complete(3, "a")
    assert told.states()["a"] == "completed" and told.dashboard.has_holes
    told.dashboard.take(summary(), [])
    assert not told.dashboard.has_holes


def test_what_ran_when_its_supervisor_died_is_lost_and_its_clock_stands_still() -> None:
    told = Told(CHAIN).start(1, "a")
    told(4, "task.usage", "a", memory=MIB, cpu=1.0)
    running = TaskSummary(id="a", state="running", attempt=1, since=START + 1)
    told.dashboard.take(summary(RunState.INTERRUPTED, told.seq), [running])
    assert (told.states()["a"], told.dashboard.tasks["a"].elapsed(START + 99)) == ("lost", 3.0)
    assert told.dashboard.elapsed(START + 99) == 4.0
    assert "`casemate resume 1m8m5j2f36rh` goes on with it" in told.screen()[2]
    told(50, "run.recovered", lost=["a"])(51, "task.restarted", "a", reason="lost")
    told.start(52, "a", 2)
    assert told.states()["a"] == "running" and told.dashboard.is_told


def test_a_run_is_told_of_by_events_and_by_its_own_end_not_by_who_else_knows_of_it() -> None:
    told = Told(CHAIN).start(1, "a")
    told.dashboard.lose()
    told.dashboard.take(summary(last_seq=told.seq), [])
    assert not told.dashboard.is_told, "a journal says the same of a supervisor that is stuck"
    assert "does not answer" in told.screen()[2]
    told(2, "task.usage", "a", memory=MIB, cpu=1.0)
    assert told.dashboard.is_told
    told.dashboard.lose()
    told.dashboard.take(summary(RunState.COMPLETED, told.seq + 1), [])
    assert told.dashboard.is_told


def test_a_graph_that_is_too_large_to_come_along_is_laid_out_when_it_comes() -> None:
    dashboard = Dashboard("1m8m5j2f36rh")
    when = datetime.fromtimestamp(START, UTC)

    def see(seq: int, kind: str, task: str | None = None, **data: Any) -> None:
        number = 1 if task else None
        dashboard.see(PipelineEvent(seq, "1m8m5j2f36rh", task, number, kind, when, data))

    see(1, "run.started", pipeline="nightly", spec=None)
    see(2, "task.started", "b", pid=1)
    assert (dashboard.state, dashboard.pipeline) == (RunState.RUNNING, "nightly")
    assert not dashboard.is_laid_out
    edges = [{"source": "a", "to": "b", "stream": False}]
    spec = {"tasks": [{"id": "b"}, {"id": "a"}], "edges": edges}
    see(1, "run.started", pipeline="nightly", spec=spec)
    assert dashboard.is_laid_out and dashboard.seen == 2
    assert [(task.id, task.state) for task in dashboard.tasks.values()] == [
        ("a", "waiting"),
        ("b", "running"),
    ]


def test_a_run_that_speaks_for_ever_fills_no_memory() -> None:
    told = Told(CHAIN)
    for number in range(3 * LINES):
        told(number, "task.log", "a", stream="stdout", text="x\ny", dropped=0)
    assert len(told.dashboard.lines) == LINES


# ---- the screen


def test_the_screen_has_the_run_its_tasks_its_events_and_the_keys() -> None:
    told = Told(CHAIN).start(1, "a").complete(2, "a").start(3, "b")
    told(4, "task.log", "b", stream="stdout", text="hello", dropped=0)
    screen = told.screen()
    assert "nightly  1m8m5j2f36rh  ▶ running" in screen[0] and screen[0].rstrip().endswith("10.0s")
    assert "▶ 1 running  ✔ 1 completed  · 1 waiting" in screen[1]
    assert screen[4].split()[:5] == ["a", "✔", "completed", "1", "1.5s"]
    assert screen[5].split()[:5] == ["b", "▶", "running", "1", "7.0s"]
    assert any("b stdout: hello" in line for line in screen)
    assert "? help" in screen[-1]


def test_before_anything_is_known_no_state_is_claimed() -> None:
    [title, *_] = draw(Dashboard("1m8m5j2f36rh"), Viewer(), 80, 24, START)
    assert "reading its journal" in title.plain and "running" not in title.plain


@pytest.mark.parametrize("size", [(1, 1), (20, 5), (79, 13), (80, 24), (200, 50), (500, 200)])
@pytest.mark.parametrize("page", [*Page])
def test_every_page_fits_every_screen(size: tuple[int, int], page: Page) -> None:
    told = Told({f"task-{n:03}": [f"task-{n - 1:03}"] if n % 9 else [] for n in range(400)})
    for n in range(0, 400, 7):
        told.start(n, f"task-{n:03}").fail(n + 1, f"task-{n:03}", message="字" * 300)
    wish = Wish(Verb.ROLLBACK, "c1")
    viewer = Viewer(
        page, selected="task-007", title="x" * 300, choices=[Choice("字" * 300, wish)] * 90
    )
    told.screen(viewer, size)


def test_of_four_hundred_tasks_those_that_run_are_in_sight_until_one_is_selected() -> None:
    told = Told({f"t{n:03}": [] for n in range(400)})
    for n in range(200):
        told.complete(1, f"t{n:03}")
    told.start(1, "t200").start(1, "t201")
    viewer = Viewer()
    screen = "\n".join(told.screen(viewer))
    assert all(name in screen for name in ("t199", "t200", "t201"))
    assert "tasks 198–209 of 400" in screen
    viewer.press("home", told.dashboard, 12)
    assert "t000" in "\n".join(told.screen(viewer)) and viewer.selected == "t000"
    viewer.press("end", told.dashboard, 12)
    assert "t399" in "\n".join(told.screen(viewer))
    viewer.press("escape", told.dashboard, 12)
    assert "t200" in "\n".join(told.screen(viewer))


def test_a_filter_shows_what_is_under_way_or_what_failed() -> None:
    told = Told(CHAIN).start(1, "a").fail(2, "a").start(2, "b")
    viewer = Viewer()
    shown = {}
    for _ in Filter:
        shown[viewer.filter] = [task.id for task in viewer.tasks(told.dashboard)]
        viewer.press("f", told.dashboard, 12)
    assert shown == {Filter.ALL: ["a", "b", "c"], Filter.ACTIVE: ["b"], Filter.FAILED: ["a"]}


def test_whatever_a_task_says_is_shown_and_does_nothing_to_the_terminal() -> None:
    told = Told(CHAIN).start(1, "a")
    told(2, "task.log", "a", stream="stderr", text=EVIL, dropped=0)
    told(3, "task.emitted", "a", item={"key": EVIL})
    trace = f"Traceback\n  {EVIL}"
    error = {"kind": "error", "message": EVIL, "type": EVIL, "traceback": trace, "refused": [EVIL]}
    told(4, "task.failed", "a", error=error)
    told(5, "workspace.changed", paths=[EVIL], total=1)
    for page in (Page.TABLE, Page.TASK):
        text = "\n".join(told.screen(Viewer(page, selected="a"), (200, 50)))
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
        assert "\\x1b[2J\\x07[bold]x[/bold]\\u202e" in text


# ---- keys


@pytest.mark.parametrize(("key", "verb"), [("p", Verb.PAUSE), ("c", Verb.CANCEL)])
def test_what_cannot_be_taken_back_is_asked_for_first(key: str, verb: Verb) -> None:
    told, viewer = Told(CHAIN), Viewer()
    assert viewer.press(key, told.dashboard, 12) is None
    assert told.dashboard.run in told.screen(viewer)[-1] and "y / n" in told.screen(viewer)[-1]
    assert viewer.press("x", told.dashboard, 12) is None
    assert "nothing was done" in told.screen(viewer)[-1]
    viewer.press(key, told.dashboard, 12)
    assert viewer.press("y", told.dashboard, 12) == Wish(verb)


def test_a_rollback_is_chosen_then_confirmed() -> None:
    told, viewer = Told(CHAIN), Viewer()
    assert viewer.press("b", told.dashboard, 12) == Wish(Verb.LIST_CHECKPOINTS)
    choices = [Choice(f"c{n}", Wish(Verb.ROLLBACK, f"c{n}"), f"Back to c{n}?") for n in (2, 1, 0)]
    viewer.offer("Roll back to", choices)
    for key in ("up", "down", "down", "down"):
        viewer.press(key, told.dashboard, 12)
    assert "▸ c0" in "\n".join(told.screen(viewer))
    assert viewer.press("enter", told.dashboard, 12) is None
    assert "Back to c0?" in told.screen(viewer)[-1]
    assert viewer.press("y", told.dashboard, 12) == Wish(Verb.ROLLBACK, "c0")
    viewer.offer("Roll back to", choices)
    viewer.press("escape", told.dashboard, 12)
    assert viewer.page is Page.TABLE and viewer.question == ""


def test_only_q_in_the_table_and_control_c_leave() -> None:
    told, viewer = Told(CHAIN), Viewer()
    for page in (Page.HELP, Page.TASK, Page.CHOICE):
        viewer.page = page
        assert viewer.press("q", told.dashboard, 12) is None
        assert viewer.page is Page.TABLE
        viewer.page = page
        assert viewer.press("ctrl+c", told.dashboard, 12) == Wish(Verb.LEAVE)
    viewer.page = Page.TABLE
    assert viewer.press("q", told.dashboard, 12) == Wish(Verb.LEAVE)
    viewer.press("c", told.dashboard, 12)
    assert viewer.press("ctrl+c", told.dashboard, 12) == Wish(Verb.LEAVE), "whatever is asked"


def test_keys_are_read_however_their_bytes_are_cut() -> None:
    sent = b"q\x1b[A\x1bOB\x1b[5~\x1b[1;5C\r\x03\x00\xc3\xbc\x1b[6~"
    expected = ["q", "up", "down", "pageup", "enter", "ctrl+c", "ü", "pagedown"]
    assert Keys().feed(sent) == expected
    keys = Keys()
    assert [key for byte in sent for key in keys.feed(bytes([byte]))] == expected
    assert keys.feed(b"\x1b") == [] and keys.is_waiting
    assert keys.settle() == ["escape"] and not keys.is_waiting
    assert keys.feed(b"\x1bq") == ["escape", "q"]
