"""Whether a journal tells a story that can be true: read from the journal alone.

    python tests/verifier.py STATE RUN [--ended]      1 and one line a problem where it cannot

A second opinion. The rules here are written from the contract and share nothing with the tables of
the core, so that a mistake in one shows in the other; only at the end the core's own fold is asked
whether it reaches the same state. Everything that is wrong is told, not only the first thing.

    numbers       seq counts from 1 without holes, and so does each task's own count
    attempts      numbered 1, 2, 3 by `task.ready`; one at a time; each ends once, then is silent
    order         an attempt is made ready when all its inputs have completed (who speaks on its
                  stream edges has started), and completes when they have too; of an `always` task
                  when they have ended
    once          a task that has completed runs again only where a rollback or a fork undid it
    crashes       attempts that were open when a run was taken over end as restarted
    checkpoints   each holds what had completed, with the totals of it, and is closed downwards
    rollbacks     undo exactly what is not in their checkpoint, or what follows their task
    endings       leave nothing open, have every task's end, and nothing but a rollback follows
    values        every one that was cut out of a row is there and is itself
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from casemate.protocol.errors import CasemateError
from casemate.protocol.events import (
    DATA,
    CheckpointCreated,
    Event,
    EventData,
    Layer,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunForked,
    RunRecovered,
    RunRolledBack,
    RunStarted,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskReady,
    TaskRecovered,
    TaskRestarted,
    TaskRetrying,
    TaskSkipped,
    TaskStarted,
)
from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.core.task import Standing
from casemate.supervisor.journal import JournalReader
from casemate.supervisor.recovery import fold
from casemate.supervisor.state import RunDirectory, StateDirectory

__all__ = ["assert_true_story", "verify"]

_ENDINGS = (
    TaskCompleted, TaskSkipped, TaskRetrying, TaskRecovered, TaskFailed, TaskCancelled,
    TaskRestarted,
)  # fmt: skip
_LAST = (RunCompleted, RunFailed, RunCancelled)
_PAGE_SIZE = 16 * 1024 * 1024


def verify(state: Path, run: str, *, has_ended: bool = False) -> list[str]:
    """What is wrong with the journal of a run; `has_ended`: also that it goes on to no end."""
    return _verify(StateDirectory(state).run(run), has_ended)


def assert_true_story(state: Path, run: str, *, has_ended: bool = False) -> None:
    problems = verify(state, run, has_ended=has_ended)
    assert not problems, f"run {run}:\n  " + "\n  ".join(problems)


class _Task:
    """What a task's events have told so far."""

    def __init__(self) -> None:
        self.count = 0  # of its events
        self.attempt = 0
        self.done = 0  # the attempt that completed
        self.is_open = False  # its attempt has not ended
        self.has_started = False
        self.is_lost = False  # its attempt was open when the run was taken over
        self.end: type[EventData] | None = None  # how it ended for good
        self.layer: Layer | None = None
        self.output: bytes = b""


class _Done(NamedTuple):
    """A task that has completed."""

    attempt: int
    layer: Layer | None
    output: bytes


class _Story:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self.seq = 0
        self.spec: PipelineSpec | None = None
        self.tasks: dict[str, _Task] = {}
        self.plain: dict[str, set[str]] = {}
        self.streams: dict[str, set[str]] = {}
        self.below: dict[str, set[str]] = {}  # dependants
        self.always: set[str] = set()
        self.checkpoints: dict[str, dict[str, _Done]] = {}  # all that each holds
        self.head: str | None = None
        self.generation = 0
        self.last: type[EventData] | None = None  # the run's end, if it has come

    def wrong(self, what: str) -> None:
        self.problems.append(f"seq {self.seq}: {what}")

    def completed(self) -> set[str]:
        return {name for name, task in self.tasks.items() if task.end is TaskCompleted}

    def held(self) -> set[str]:
        """What a checkpoint holds now: what has completed, and all that it depends on too."""
        completed = self.completed()
        return completed - self.with_dependants(self.tasks.keys() - completed)

    def with_dependants(self, tasks: set[str]) -> set[str]:
        found, pending = set(tasks), list(tasks)
        while pending:
            fresh = self.below[pending.pop()] - found
            found |= fresh
            pending += fresh
        return found

    # One event.

    def take(self, event: Event) -> None:
        expected = self.seq + 1
        self.seq = event.seq
        if event.seq != expected:
            self.wrong(f"expected seq {expected}")
        kind = DATA.get(event.kind)
        if kind is None:
            self.wrong(f"unknown kind {event.kind}")
            return
        data = msgspec.msgpack.decode(event.data, type=kind)
        if isinstance(data, RunStarted):
            self._begin(data)
        elif self.spec is None:
            self.wrong(f"{event.kind} before run.started")
        elif self.last is not None and not isinstance(data, RunRolledBack):
            self.wrong(f"{event.kind} after the run had ended")
        elif event.task is not None:
            self._of_task(event, data)
        else:
            self._of_run(event.kind, data)

    def _begin(self, data: RunStarted) -> None:
        if self.spec is not None:
            self.wrong("run.started again")
            return
        self.spec = msgspec.msgpack.decode(data.spec, type=PipelineSpec)
        for task in self.spec.tasks:
            self.tasks[task.id] = _Task()
            self.plain[task.id] = set()
            self.streams[task.id] = set()
            self.below[task.id] = set()
            if task.always:
                self.always.add(task.id)
        for edge in self.spec.edges:
            (self.streams if edge.stream else self.plain)[edge.to].add(edge.source)
            self.below[edge.source].add(edge.to)

    # Tasks.

    def _of_task(self, event: Event, data: EventData) -> None:
        name = event.task or ""
        task = self.tasks.get(name)
        if task is None:
            self.wrong(f"{event.kind} of {name!r}, which is no task of the run")
            return
        task.count += 1
        if event.task_seq != task.count:
            self.wrong(f"{name}: expected task seq {task.count}, found {event.task_seq}")
            task.count = event.task_seq or task.count
        if isinstance(data, TaskReady):
            self._ready(name, task, event.attempt)
        elif event.attempt is None:
            self._between_attempts(name, task, event.kind, data)
        elif event.attempt != task.attempt or not task.is_open:
            state = "open" if task.is_open else "over"
            self.wrong(
                f"{name}: {event.kind} of attempt {event.attempt}, while attempt {task.attempt} "
                f"is {state}"
            )
        else:
            self._of_attempt(name, task, event.kind, data)

    def _ready(self, name: str, task: _Task, attempt: int | None) -> None:
        if attempt != task.attempt + 1:
            self.wrong(f"{name}: attempt {attempt} after attempt {task.attempt}")
        if task.is_open:
            self.wrong(f"{name}: attempt {attempt} while attempt {task.attempt} is open")
        if task.end is not None:
            self.wrong(f"{name}: attempt {attempt} though it had ended ({task.end.__name__})")
        missing = self.missing(name)
        silent = {
            source for source in self.streams[name]
            if not self.tasks[source].has_started and self.tasks[source].end is not TaskCompleted
        }  # fmt: skip
        if missing or silent:
            self.wrong(f"{name}: ready without {', '.join(sorted(missing | silent))}")
        task.attempt = attempt or task.attempt + 1
        task.is_open, task.has_started, task.is_lost = True, False, False

    def missing(self, name: str) -> set[str]:
        """Plain inputs that it may not begin without."""
        if name in self.always:
            return {source for source in self.plain[name] if self.tasks[source].end is None}
        return self.plain[name] - self.completed()

    def _between_attempts(self, name: str, task: _Task, kind: str, data: EventData) -> None:
        if task.is_open or task.end is not None:
            self.wrong(f"{name}: {kind} of no attempt, while it has one or has ended")
        if isinstance(data, TaskFailed | TaskCancelled):
            task.end = type(data)
        elif not isinstance(data, TaskRestarted):
            self.wrong(f"{name}: {kind} of no attempt")

    def _of_attempt(self, name: str, task: _Task, kind: str, data: EventData) -> None:
        if task.is_lost and not isinstance(data, TaskRestarted):
            self.wrong(f"{name}: {kind} of attempt {task.attempt}, which died before")
        if isinstance(data, TaskStarted):
            if task.has_started:
                self.wrong(f"{name}: attempt {task.attempt} started twice")
            task.has_started = True
        elif isinstance(data, _ENDINGS):
            task.is_open = task.has_started = False
            if isinstance(data, TaskFailed | TaskCancelled):
                task.end = type(data)
            elif isinstance(data, TaskCompleted | TaskSkipped):
                task.end = TaskCompleted
                task.layer = data.layer if isinstance(data, TaskCompleted) else None
                task.output, task.done = bytes(data.output), task.attempt
            if isinstance(data, TaskCompleted):
                missing = self.missing(name) | (self.streams[name] - self.completed())
                if missing:
                    self.wrong(f"{name}: completed before {', '.join(sorted(missing))}")

    # The run.

    def _of_run(self, kind: str, data: EventData) -> None:
        if isinstance(data, RunRecovered):
            started = {name for name, task in self.tasks.items() if task.has_started}
            if set(data.lost) != started:
                self.wrong(f"run.recovered names {data.lost} as lost, running were {started}")
            for task in self.tasks.values():
                task.is_lost = task.is_open
        elif isinstance(data, CheckpointCreated):
            self._checkpoint(data)
        elif isinstance(data, RunRolledBack | RunForked):
            self._undo(kind, data)
        elif isinstance(data, _LAST):
            self._end(kind, data)

    def _checkpoint(self, data: CheckpointCreated) -> None:
        completed = self.held()
        if data.checkpoint in self.checkpoints:
            self.wrong(f"checkpoint {data.checkpoint} again")
        if data.parent != self.head:
            self.wrong(f"checkpoint {data.checkpoint} upon {data.parent}, expected {self.head}")
        held = set(data.tasks) | self.checkpoints.get(data.parent or "", {}).keys()
        if held != completed:
            self.wrong(
                f"checkpoint {data.checkpoint} holds {sorted(held)}, had completed "
                f"{sorted(completed)}"
            )
        layers = [layer for task in completed if (layer := self.tasks[task].layer) is not None]
        totals = (
            len(completed), sum(each.files for each in layers), sum(each.bytes for each in layers),
        )  # fmt: skip
        told = (data.total, data.files, data.bytes)
        if told != totals:
            self.wrong(f"checkpoint {data.checkpoint} tells of {told}, found {totals}")
        self.checkpoints[data.checkpoint] = {
            name: _Done(task.done, task.layer, task.output)
            for name, task in self.tasks.items()
            if name in completed
        }
        self.head = data.checkpoint

    def _undo(self, kind: str, data: RunRolledBack | RunForked) -> None:
        undone = set(data.undone)
        restored = set(data.restored) if isinstance(data, RunRolledBack) else set()
        held: dict[str, _Done] = {}
        if data.generation != self.generation + 1:
            self.wrong(f"{kind}: generation {data.generation} after {self.generation}")
        self.generation = data.generation
        for name in sorted((undone | restored) & self.tasks.keys()):
            if self.tasks[name].is_open:
                self.wrong(f"{kind} undoes {name} while its attempt is open")
        if data.checkpoint is not None:
            held = self.checkpoints.get(data.checkpoint, {})
            changed = {name for name, done in held.items() if self.tasks[name].done != done.attempt}
            if data.checkpoint not in self.checkpoints:
                self.wrong(f"{kind} to {data.checkpoint}, which never was")
            elif undone != self.tasks.keys() - held:
                self.wrong(f"{kind} to {data.checkpoint} undoes {sorted(undone)}, not all but it")
            elif restored != changed:
                self.wrong(
                    f"{kind} to {data.checkpoint} restores {sorted(restored)}, and "
                    f"{sorted(changed)} are not what it holds"
                )
        elif isinstance(data, RunRolledBack) and (
            data.before not in undone or self.with_dependants(undone) != undone
        ):
            self.wrong(f"{kind} before {data.before} leaves dependants of {sorted(undone)}")
        for name in (undone | restored) & self.tasks.keys():
            task = self.tasks[name]
            task.end, task.done, task.layer, task.output = None, 0, None, b""
            task.is_open = task.has_started = task.is_lost = False
        for name in restored & held.keys():
            task = self.tasks[name]
            task.end = TaskCompleted
            task.done, task.layer, task.output = held[name]
        self.head = data.checkpoint
        self.last = None

    def _end(self, kind: str, data: EventData) -> None:
        self.last = type(data)
        unfinished = [name for name, task in self.tasks.items() if task.end is None]
        if unfinished:
            self.wrong(f"{kind} while {', '.join(unfinished)} had not ended")
        if isinstance(data, RunCompleted):
            sinks = {name: task.output for name, task in self.tasks.items() if not self.below[name]}
            told = {name: bytes(output) for name, output in data.outputs.items()}
            if self.completed() != self.tasks.keys():
                self.wrong(f"{kind} with {len(self.completed())} of {len(self.tasks)} tasks")
            if told != sinks:
                self.wrong(f"{kind}: its outputs are not those of {', '.join(sorted(sinks))}")


def _events(reader: JournalReader) -> Iterator[Event]:
    """All, whole: reading a value checks its digest."""
    since = 0
    while page := reader.events(since, size=_PAGE_SIZE):
        yield from page
        since = page[-1].seq


def _verify(run: RunDirectory, has_ended: bool) -> list[str]:
    story = _Story()
    with JournalReader(run) as reader:
        last_seq = reader.last_seq()  # its owner may be writing
        try:
            for event in _events(reader):
                if event.seq > last_seq:
                    break
                if event.run != run.id:
                    story.wrong(f"an event of run {event.run}")
                story.take(event)
        except (CasemateError, msgspec.DecodeError) as error:
            story.wrong(f"cannot be read from here on: {error}")
            return story.problems
        if has_ended and story.last is None:
            story.wrong("the journal stops here, and the run has not ended")
        if not story.problems:
            _compare_with_fold(story, reader, run.id)
    return story.problems


def _compare_with_fold(story: _Story, reader: JournalReader, run: str) -> None:
    try:
        state = fold(reader, run, story.seq)
    except CasemateError as error:
        story.wrong(f"the fold refuses it: {error}")
        return
    mine: dict[str, Any] = {
        "completed": {n: t.done for n, t in story.tasks.items() if t.end is TaskCompleted},
        "attempts": {name: task.attempt for name, task in story.tasks.items()},
        "head": story.head,
        "generation": story.generation,
        "ended": story.last is not None,
    }
    theirs = {
        "completed": {
            n: t.done for n, t in state.tasks.items() if t.standing is Standing.COMPLETED
        },
        "attempts": {name: task.attempt for name, task in state.tasks.items()},
        "head": state.head,
        "generation": state.generation,
        "ended": state.has_ended,
    }
    for name, value in mine.items():
        if value != theirs[name]:
            story.wrong(f"{name}: the events tell {value}, the fold {theirs[name]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the journal of one run.")
    parser.add_argument("state", type=Path)
    parser.add_argument("run", help="its id, a unique prefix, or `last`")
    parser.add_argument("--ended", action="store_true", help="the run must have ended")
    asked = parser.parse_args()
    try:
        problems = _verify(StateDirectory(asked.state).find_run(asked.run), asked.ended)
    except (CasemateError, OSError) as error:
        problems = [str(error)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
