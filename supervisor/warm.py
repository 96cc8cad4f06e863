"""Warm attempts: the next sandbox of a task that names modules to import (`preload`), made ahead.

    wanted ──room──▶ importing ──HELLO──▶ ready, and frozen ──its attempt starts──▶ the engine's
                         └───────────── thrown away ─────────────┘

It is a sandbox like any other, with its own uid, cgroup and walls, made for one attempt by its
number: that one's or nobody's, used once, shared with none. Its guest imports behind all walls what
the task names, says HELLO, and stands still until it is told its job. What goes wrong before that
is nobody's error: it is killed, and the attempt begins cold, which imports the same first and has
whatever happens told as its own.

The files of an attempt cannot be put under a sandbox that stands: a Landlock rule made before a
mount does not hold for what is mounted later unless it is on the mount point's parent, and that of
/workspace is the root of all. So where there is a workspace an attempt is made ahead only when all
it depends on has completed: while it waits for its turn or for its next try. Nor is one that may
reach the host (its network, folders to write to): what an import did there would be done for an
attempt that may never come.

The core knows nothing of this: it gives out memory as if there were none here, so what waits is in
the budget's way and goes first. A start waits until that is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec import Raw

from ..protocol.errors import CasemateError
from ..protocol.events import (
    EventData,
    RunPaused,
    RunResumed,
    RunRolledBack,
    TaskCancelled,
    TaskFailed,
    TaskReady,
    TaskRetrying,
    TaskStarted,
)
from ..protocol.limits import WARM_SANDBOXES
from ..protocol.messages import Part
from ..protocol.pipeline import CommandEntry, Network, PipelineSpec, TaskSpec
from .core.commands import Command, Record, Spawn
from .core.state import RunStanding, RunState
from .core.task import Standing
from .files import Files, Given
from .links import Attempt, Key
from .workspace import Prepared

__all__ = ["WarmAttempts"]

# Between two looks at one that imports where its limits are only sampled, and at one that waits.
SAMPLE_INTERVAL = 0.1
LOOK_INTERVAL = 1.0

_CLEARING = (RunPaused, RunRolledBack)
_FINAL = (TaskFailed, TaskCancelled)  # also of what never began, as its upstream has failed

_Name = tuple[str, str]  # run, task


class Host(Protocol):
    """The engine, as far as warm attempts need it."""

    def state_of(self, run: str) -> RunState | None: ...
    def files_of(self, run: str) -> Files | None: ...
    def free_memory(self) -> int: ...
    def has_network_wall(self) -> bool: ...
    def make_ahead(self, key: Key, prepared: Prepared | None) -> Attempt: ...
    def weigh(self, attempt: Attempt) -> None: ...
    def give_back(self, attempt: Attempt) -> None: ...
    def retire(self, run: str) -> None: ...
    def in_background(self, work: Coroutine[Any, Any, None]) -> None: ...


@dataclass(slots=True, eq=False)
class _Warm:
    key: Key
    task: TaskSpec
    given: Given | None
    attempt: Attempt | None = None
    is_ready: bool = False
    is_claimed: bool = False  # its attempt starts, and its memory is counted there
    is_doomed: bool = False
    timer: asyncio.TimerHandle | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # ready, or over
    over: asyncio.Event = field(default_factory=asyncio.Event)  # nothing of it is left

    @property
    def name(self) -> _Name:
        return self.key.run, self.key.task

    def fits(self, key: Key, given: Given | None) -> bool:
        if self.given is None or given is None:
            return self.key == key and self.given is given
        return self.key == key and self.given.stack == given.stack


def can_be_made_ahead(task: TaskSpec) -> bool:
    return (
        bool(task.preload)
        and not isinstance(task.execute, CommandEntry)
        and task.python is None
        and task.network is Network.NONE
        and not any(bind.writable for bind in task.binds)
    )


class WarmAttempts:
    """For the engine's loop, as all it calls."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._runs: dict[str, frozenset[str]] = {}  # and which of their tasks can be made ahead
        self._wanted: dict[_Name, None] = {}  # in the order in which they became so
        self._tried: dict[_Name, int] = {}  # the latest attempt: one try for each
        self._warm: dict[_Name, _Warm] = {}

    # --- what the engine tells ---------------------------------------------------------------

    def enter(self, run: str, spec: PipelineSpec) -> None:
        if not self._host.has_network_wall():
            return
        if able := frozenset(task.id for task in spec.tasks if can_be_made_ahead(task)):
            self._runs[run] = able

    def leave(self, run: str) -> None:
        """It is over, and none of it is alive."""
        for task in self._runs.pop(run, ()):
            self._tried.pop((run, task), None)
            self._wanted.pop((run, task), None)

    def noted(self, record: Record) -> None:
        """What is recorded says whose next attempt may come soon, and what never will."""
        able = self._runs.get(record.run)
        if able is None:
            return
        kind, candidates = type(record.data), list[str]()
        if kind in _CLEARING:
            self.discard_run(record.run)
        elif record.task is not None and kind in _FINAL:
            if warm := self._warm.get((record.run, record.task)):
                self._throw_away(warm)
        elif kind is RunResumed:
            candidates = sorted(able)
        elif record.task is not None and kind in (TaskReady, TaskRetrying):
            candidates = [record.task]
            if kind is TaskRetrying and (warm := self._warm.get((record.run, record.task))):
                self._throw_away(warm)  # of an attempt that failed before it took it
        elif record.task is not None and kind is TaskStarted:
            state = self._host.state_of(record.run)
            candidates = [] if state is None else list(state.graph.dependants[record.task])
        for task in candidates:
            if task in able:
                self._wanted[record.run, task] = None

    def look(self) -> None:
        """After a step: make what is wanted and has room."""
        while self._wanted and len(self._warm) < WARM_SANDBOXES:
            name = next(iter(self._wanted))
            if not self._consider(*name):
                return
            del self._wanted[name]

    def granted(self, commands: Iterable[Command]) -> None:
        """What a step asks for, before any of it is carried out: the memory of all that start is
        counted by then, so none of theirs is in the way of another."""
        for command in commands:
            if isinstance(command, Spawn) and command.part is Part.EXECUTE:
                warm = self._warm.get((command.run, command.task))
                if warm is not None and warm.key.attempt == command.attempt:
                    warm.is_claimed = True

    def claim(self, key: Key) -> bool:
        """An attempt starts, or a check of one. Whether its start has something here to wait for:
        a sandbox made ahead for it, or the death of one that has the memory."""
        name = (key.run, key.task)
        self._wanted.pop(name, None)
        if key.task in self._runs.get(key.run, ()):
            self._tried[name] = key.attempt
        warm = self._warm.get(name)
        if warm is not None:
            warm.is_claimed = True
            if not warm.settled.is_set():
                # Whoever waits for an import still has the other half for a cold start.
                self._allow(warm, warm.task.timeouts.start / 2)
        for other in reversed(list(self._warm.values())):
            kept = (each for each in self._warm.values() if not each.is_doomed)
            if self._memory(kept) <= self._host.free_memory():
                break
            if not other.is_claimed:
                self._throw_away(other)
        return warm is not None or self._lacks_room()

    async def take(self, key: Key, given: Given | None, is_small: bool) -> Attempt | None:
        """The sandbox that was made for this attempt, which it has from now on: `take_up` begins
        it. None: it begins cold, and nothing is in its way. `is_small`: its input goes by
        message."""
        while self._lacks_room():
            await self._next_death()
        warm = self._warm.get((key.run, key.task))
        if warm is None:
            return None
        if not is_small or not warm.fits(key, given):
            self._throw_away(warm)
        await warm.settled.wait()
        if not warm.is_doomed and warm.attempt is not None and warm.attempt.is_silent():
            self._forget(warm)  # and nothing is waited for before it is taken up
            return warm.attempt
        self._throw_away(warm)
        await warm.over.wait()
        return None

    def discard(self, key: Key) -> None:
        """Its attempt is not to be."""
        if (warm := self._warm.get((key.run, key.task))) and warm.key == key:
            self._throw_away(warm)

    def discard_run(self, run: str) -> None:
        for name in [name for name in self._wanted if name[0] == run]:
            del self._wanted[name]
        for warm in list(self._warm.values()):
            if warm.key.run == run:
                self._throw_away(warm)

    def close(self) -> None:
        self._wanted.clear()
        self._runs.clear()
        for warm in list(self._warm.values()):
            self._throw_away(warm)

    def is_alive(self, run: str | None = None) -> bool:
        """Whether anything here is, or of one run."""
        return any(run in (None, warm.key.run) for warm in self._warm.values())

    # --- making and unmaking -----------------------------------------------------------------

    def _consider(self, run: str, task: str) -> bool:
        """False: it is to be made, and there is no room yet."""
        state, name = self._host.state_of(run), (run, task)
        if state is None or name in self._warm:
            return True
        files = self._host.files_of(run)
        number = _next_attempt(state, task, has_files=files is not None)
        if number is None or self._tried.get(name) == number:
            return True
        if files is not None and not files.workspace.overlay:
            return True  # a whole copy of the workspace would be made in vain
        spec = state.specs[task]
        if self._memory(self._warm.values()) + spec.limits.memory > self._host.free_memory():
            return False
        key = Key(run, task, number)
        given = None if files is None else files.given(state, task, number)
        self._tried[name] = number
        warm = self._warm[name] = _Warm(key, spec, given)
        if files is None or given is None:
            self._start(warm, None)
        else:
            self._host.in_background(self._prepare(warm, files, given))
        return True

    async def _prepare(self, warm: _Warm, files: Files, given: Given) -> None:
        prepared = None
        with contextlib.suppress(OSError, CasemateError):  # the attempt will meet the same
            prepared = await asyncio.to_thread(files.begin, given)
        if prepared is None or warm.is_doomed:
            self._remove(warm)
        else:
            self._start(warm, prepared)

    def _start(self, warm: _Warm, prepared: Prepared | None) -> None:
        try:
            warm.attempt = self._host.make_ahead(warm.key, prepared)
        except (OSError, CasemateError):
            self._remove(warm)
            return
        self._allow(warm, warm.task.timeouts.start)
        warm.attempt.watch()
        self._look_after(warm, warm.attempt)

    def _allow(self, warm: _Warm, seconds: float) -> None:
        """To be ready within that time, or within what it was given before."""
        due = self._loop.time() + seconds
        if warm.timer is not None:
            due = min(due, warm.timer.when())
            warm.timer.cancel()
        warm.timer = self._loop.call_at(due, self._throw_away, warm)

    def _look_after(self, warm: _Warm, attempt: Attempt) -> None:
        if warm.is_doomed or self._warm.get(warm.name) is not warm:
            return
        if attempt.lease.exceeded(attempt.lease.measure()) is not None:
            self._throw_away(warm)
            return
        self._host.weigh(attempt)
        if warm.is_ready:
            attempt.freeze_again()
        is_sampled = attempt.lease.is_sampled and not warm.is_ready
        interval = SAMPLE_INTERVAL if is_sampled else LOOK_INTERVAL
        self._loop.call_later(interval, self._look_after, warm, attempt)

    def _throw_away(self, warm: _Warm) -> None:
        if not warm.is_doomed:
            warm.is_doomed = True
            if warm.attempt is not None:
                warm.attempt.kill()  # `attempt_dead` follows

    def _remove(self, warm: _Warm) -> None:
        """Nothing of it is alive: its layer goes, and then it is as if it had never been."""
        warm.is_doomed = True
        files = self._host.files_of(warm.key.run)
        if warm.given is None or files is None:
            self._end(warm)
        else:
            self._host.in_background(self._remove_layer(warm, files, warm.given))

    async def _remove_layer(self, warm: _Warm, files: Files, given: Given) -> None:
        with contextlib.suppress(OSError, CasemateError):  # then the attempt will say so
            await asyncio.to_thread(files.undo, given)
        self._end(warm)

    def _end(self, warm: _Warm) -> None:
        self._forget(warm)
        warm.settled.set()
        warm.over.set()
        self._host.retire(warm.key.run)

    def _forget(self, warm: _Warm) -> None:
        if warm.timer is not None:
            warm.timer.cancel()
        del self._warm[warm.name]

    # --- memory ------------------------------------------------------------------------------

    def _memory(self, those: Iterable[_Warm]) -> int:
        return sum(warm.task.limits.memory for warm in those if not warm.is_claimed)

    def _lacks_room(self) -> bool:
        return self._memory(self._warm.values()) > self._host.free_memory()

    async def _next_death(self) -> None:
        dying = [w.over.wait() for w in self._warm.values() if w.is_doomed and not w.is_claimed]
        waits = [asyncio.ensure_future(each) for each in dying]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    # --- what they tell, before they are anybody's (links.Owner) --------------------------------

    def attempt_greeted(self, attempt: Attempt) -> None:
        """It has imported what it was told to."""
        warm = self._warm[attempt.key.run, attempt.key.task]
        warm.is_ready = True
        if warm.timer is not None:
            warm.timer.cancel()
            warm.timer = None
        if not warm.is_claimed:
            attempt.freeze()
        warm.settled.set()

    def attempt_dead(self, attempt: Attempt) -> None:
        self._host.give_back(attempt)
        self._remove(self._warm[attempt.key.run, attempt.key.task])

    def attempt_said(self, attempt: Attempt, said: list[EventData]) -> None:
        """What was left in the pipes of one that is dead: there is no attempt that it is of."""

    def attempt_begun(self, attempt: Attempt) -> None:
        """Without a job it is not."""

    def attempt_credited(self, attempt: Attempt, upstream: str, items: int) -> None:
        """The link's table has no room for it before RUN; nor for the two that follow."""

    def attempt_saved(self, attempt: Attempt, state: Raw) -> None: ...

    def attempt_told(self, attempt: Attempt) -> None: ...


def _next_attempt(state: RunState, task: str, *, has_files: bool) -> int | None:
    """The number of the attempt that is likely to come soon, of which all is known that a sandbox
    is built from; None: there is none such."""
    stands = state.tasks[task]
    if state.standing is not RunStanding.RUNNING or task in state.returning:
        return None
    match stands.standing:
        case Standing.READY:
            return stands.attempt
        case Standing.BACKOFF:
            return stands.attempt + 1
        case Standing.WAITING if not has_files:
            above = {state.tasks[each].standing for each in state.graph.upstream[task]}
            if Standing.RUNNING in above and above <= {Standing.RUNNING, Standing.COMPLETED}:
                return stands.attempt + 1
    return None
