"""What `watch` knows of a run: kept from a snapshot and from events, and from nothing else.

Pure: no terminal, no sockets, no clock. Times are those that events carry; what is asked for "now"
is told it. A snapshot says how things stand and no more, so what it does not tell (how long a task
took that ended before anybody looked) stays unknown, and events that come after it count on from
there. The same event twice changes nothing the second time.

Tasks are in the order of the graph: by depth, then id. Nothing here grows with the length of a run:
a row for each task, the latest lines, the checkpoints of which there is one for each task at most.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from ...protocol.control import RunState, RunSummary, TaskSummary
from ...protocol.pipeline import Edge
from ..core import graph
from ..cursor import ENDINGS, PipelineEvent
from .view import BECOMES, lines_of, run_line

__all__ = ["ACTIVE", "UPSTREAM", "Dashboard", "Line", "Task"]

# The tail of events. A screen shows a tenth of it, one task's page all that is about the task.
LINES = 500

ACTIVE = frozenset({"ready", "running", "retrying", "paused"})
_ENDED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})


class _Id(msgspec.Struct):
    id: str


class _Spec(msgspec.Struct):
    """What of a PipelineSpec is the graph."""

    tasks: list[_Id]
    edges: list[Edge]


# A task that was never tried because another one failed: of 400 tasks this tells the one that
# somebody has to look at from those that wait for it.
UPSTREAM = "upstream"


class Line(NamedTuple):
    """One line of the tail. `text` is printable."""

    at: float
    task: str | None
    text: str


@dataclass(slots=True)
class Task:
    id: str
    depth: int = 0
    state: str = "waiting"
    attempt: int = 0
    began: float | None = None  # since when its clock runs; None while it stands still
    seconds: float = 0.0  # what the clock had counted before
    memory: int | None = None  # the most of this attempt, in bytes
    cpu: float | None = None  # seconds of this attempt
    share: float | None = None  # of a core, between its last two measurements
    measured: float | None = None  # when `cpu` was
    error: dict[str, Any] | None = None  # the latest failure
    last: str = ""  # the newest line about it

    def elapsed(self, now: float) -> float:
        return self.seconds + (max(0.0, now - self.began) if self.began is not None else 0.0)

    def become(self, state: str) -> None:
        is_upstream = state == "failed" and (self.error or {}).get("kind") == "upstream_failed"
        self.state = UPSTREAM if is_upstream else state

    def start(self, attempt: int, at: float) -> None:
        """A new attempt: nothing of the one before counts."""
        self.attempt, self.began, self.seconds = attempt, at, 0.0
        self.memory = self.cpu = self.share = self.measured = None

    def stop(self, at: float) -> None:
        self.seconds, self.began = self.elapsed(at), None
        self.share = None

    def measure(self, memory: int | None, cpu: float | None, at: float) -> None:
        if memory is not None:
            self.memory = max(self.memory or 0, memory)
        if cpu is None:
            return
        if self.cpu is not None and self.measured is not None and at > self.measured:
            self.share = max(0.0, cpu - self.cpu) / (at - self.measured)
        self.cpu, self.measured = cpu, at

    def undo(self) -> None:
        """As before its first attempt; the numbers of attempts go on."""
        self.state, self.began, self.seconds = "waiting", None, 0.0
        self.memory = self.cpu = self.share = self.measured = self.error = None
        self.last = ""


class Dashboard:
    """Of one run. `is_told`: somebody tells of it; not so once its supervisor is gone, until there
    are events or its end. `is_laid_out`: the graph is known."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.pipeline = ""
        self.state = RunState.RUNNING
        self.started: float | None = None
        self.ended: float | None = None
        self.seen = 0  # the last seq that is in here
        self.tasks: dict[str, Task] = {}
        self.lines: deque[Line] = deque(maxlen=LINES)
        self.is_told = True
        self.is_laid_out = False
        self.has_holes = False  # events were skipped: only a snapshot knows what they changed
        self._heard = 0.0  # when the newest event was

    # ---- what it is told

    def lay_out(self, tasks: Sequence[str], edges: Sequence[Edge]) -> None:
        """The graph, which every other word about tasks is put into."""
        self.is_laid_out = True
        known, shape = self.tasks, graph.arrange(tasks, edges)
        self.tasks = {}
        for name in shape.order:
            task = self.tasks[name] = known.get(name) or Task(name)
            above = shape.upstream[name]
            task.depth = 1 + max((self.tasks[each].depth for each in above), default=-1)

    def take(self, run: RunSummary, tasks: Sequence[TaskSummary]) -> None:
        """How it stands, as a snapshot has it: whoever owns the run may be stuck nevertheless."""
        self.pipeline = run.pipeline or self.pipeline
        self.state, self.started, self.ended = run.state, run.started, run.ended
        self.seen = max(self.seen, run.last_seq)
        self.has_holes = False
        self.is_told |= self.has_ended
        for told in tasks:
            task = self.tasks.setdefault(told.id, Task(told.id))
            if told.attempt != task.attempt and told.since is not None:
                task.start(told.attempt, told.since)
            if told.state == "running":
                task.began = told.since if task.began is None else task.began
            elif told.state == "paused":
                task.began = None  # since when it is frozen is not told
            else:
                task.stop(told.since or 0.0)
            if told.error is not None:
                task.error = {"kind": told.error.kind, "message": told.error.message}
            task.become(told.state)
        if run.state is RunState.INTERRUPTED:
            self._give_up()

    def see(self, event: PipelineEvent) -> None:
        if event.kind == "run.started" and event.data["spec"] is not None:
            # A large one is left out of the event, and comes when the rest of it was seen.
            spec = msgspec.convert(event.data["spec"], _Spec)
            self.lay_out([task.id for task in spec.tasks], spec.edges)
        if event.seq <= self.seen:
            return
        self.has_holes |= event.seq > self.seen + 1
        self.seen, self.is_told = event.seq, True
        at = self._heard = event.at.timestamp()
        if event.task is None:
            self._see_run(event, at)
            self.lines.append(Line(at, None, run_line(event)))
            return
        task = self.tasks.setdefault(event.task, Task(event.task))
        self._see_task(task, event, at)
        for text in lines_of(event):
            task.last = text
            self.lines.append(Line(at, event.task, text))

    def _see_run(self, event: PipelineEvent, at: float) -> None:
        data = event.data
        match event.kind:
            case "run.started":
                self.pipeline, self.started = data["pipeline"], at
                self.state = RunState.RUNNING
            case "run.paused":
                self.state = RunState.PAUSED
                if not data["drain"]:
                    self._freeze(at)
            case "run.resumed":
                self.state = RunState.RUNNING
                self._thaw(at)
            case "run.recovered" if self.state is not RunState.PAUSED:
                self.state = RunState.RUNNING
            case "run.rolled_back" | "run.forked":
                if self.state is not RunState.PAUSED:
                    self.state = RunState.RUNNING
                self.ended = None
                for name in data["undone"]:
                    self.tasks.setdefault(name, Task(name)).undo()
                for name in data.get("restored", ()):
                    self.tasks.setdefault(name, Task(name)).undo()
                    self.tasks[name].state = "completed"
            case kind if kind in ENDINGS:
                self.state, self.ended = RunState(ENDINGS[kind]), at

    def _freeze(self, at: float) -> None:
        for task in self.tasks.values():
            if task.state == "running":
                task.stop(at)
                task.state = "paused"

    def _thaw(self, at: float) -> None:
        for task in self.tasks.values():
            if task.state == "paused":
                task.state, task.began = "running", at

    def _see_task(self, task: Task, event: PipelineEvent, at: float) -> None:
        data = event.data
        if event.kind == "task.started":
            task.start(event.attempt or task.attempt, at)
        elif event.kind == "task.usage":
            task.measure(data.get("memory"), data.get("cpu"), at)
        elif event.kind in BECOMES:
            task.stop(at)
            task.attempt = event.attempt or task.attempt
        if (error := data.get("error")) is not None and event.kind in BECOMES:
            task.error = error
            usage = error.get("usage") or {}
            task.measure(usage.get("memory"), usage.get("cpu"), at)
            task.share = None
        if event.kind == "task.completed":
            task.error = None
            task.seconds = data["seconds"]
        task.become(BECOMES.get(event.kind, task.state))

    def lose(self) -> None:
        """Nobody tells of it: it goes on unseen, or is dead."""
        self.is_told = False

    def find(self) -> None:
        """Somebody does, who has nothing new to say."""
        self.is_told = True

    def _give_up(self) -> None:
        """Its supervisor is dead, and with it all that ran; when that was, nobody tells."""
        self.is_told = False
        for task in self.tasks.values():
            if task.state in ("running", "paused"):
                task.stop(max(self._heard, task.began or 0.0))
                task.state = "lost"

    # ---- what is asked of it

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    def elapsed(self, now: float) -> float | None:
        if self.started is None:
            return None
        until = self.ended
        if until is None:
            until = self._heard if self.state is RunState.INTERRUPTED else now
        return max(0.0, until - self.started)

    def counts(self) -> Counter[str]:
        return Counter(task.state for task in self.tasks.values())

    def memory(self) -> int:
        """Of what runs now."""
        return sum(task.memory or 0 for task in self.tasks.values() if task.began is not None)

    def share(self) -> float:
        """Cores that are at work."""
        return sum(task.share or 0.0 for task in self.tasks.values() if task.began is not None)

    def about(self, task: str) -> list[Line]:
        return [line for line in self.lines if line.task == task]
