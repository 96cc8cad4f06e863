"""The engine: the one process that decides, kills and journals.

One asyncio loop. Whatever happens (a greeting, a death, a timer, a client's wish) becomes an input
of the core (`core/scheduler.py`); the core answers with commands; this file carries them out:

    Record         append to the journal; published to observers once it is durable
    Spawn          a new sandbox through the zygote, or one that was made ahead (warm.py); told its
                   job once what it builds on is durable
    CancelAttempt  a message and SIGTERM
    Kill           SIGKILL to the tree; `Ended` follows when it is proved dead
    Freeze, Thaw   the tree stands still, and goes on
    Fetch          outputs that are needed again are read from the journal; `Fetched` follows
    TellBreaker    a breaker's row takes a step; `BreakerMoved` follows, and whenever it moves

It never imports a task's code, never opens a task's payload, and does no disk work on the loop: the
journal has its writer thread, breakers have theirs, files go through `asyncio.to_thread`. No libzmq
either: what faces tasks is our own endpoint, what faces observers is the front, in a process of its
own.

Backpressure has one place: while more than JOURNAL_BACKLOG_SIZE waits to be written, no link and no
output is read. Then the tasks wait, and what they say is bounded by the journal's queue. Outputs
stay in memory until their last dependant has ended, up to VALUE_SIZE each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import resource
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
from msgspec import Raw

from ..protocol import codec
from ..protocol.answers import RecoveryAction, ValidationResult
from ..protocol.control import Apply, BreakerSummary
from ..protocol.errors import CasemateError, RemoteViolation, SetupRefused, UsageError
from ..protocol.events import (
    CheckpointCreated,
    ErrorKind,
    EventData,
    Layer,
    TaskCompleted,
    TaskError,
    TaskSkipped,
    TaskUsage,
    WorkspaceChanged,
)
from ..protocol.limits import (
    JOURNAL_BACKLOG_SIZE,
    KIB,
    MESSAGE_SIZE,
    MIB,
    RUN_JOURNAL_SIZE,
    VALUE_SIZE,
    WARM_SANDBOXES,
)
from ..protocol.messages import Part, Run
from ..protocol.pipeline import Bind, Network, PickleEntry, PipelineSpec, ProcView, TaskSpec
from ..protocol.units import format_size
from ..sandbox.handle import Sandbox
from ..sandbox.spec import INPUT_FILE, SYSTEM_PATH, WORKSPACE, Mode, SandboxSpec
from .apply import Applied
from .breakers import BreakerDesk, step_breaker
from .changes import apply_run
from .control import carry_out
from .core.admission import check
from .core.breaker import Forced, Reset
from .core.commands import (
    CancelAttempt,
    Command,
    Fetch,
    ForgetBreaker,
    Freeze,
    Kill,
    Record,
    Spawn,
    TellBreaker,
    Thaw,
)
from .core.events import (
    Active,
    Adopt,
    Answered,
    BreakerMoved,
    CancelRun,
    CheckpointRun,
    Drain,
    Ended,
    FailRun,
    Fetched,
    Input,
    PauseRun,
    ResumeRun,
    Rollback,
    Saved,
    Slots,
    Started,
    Submit,
    Tick,
    Told,
    Used,
)
from .core.look import words
from .core.refusals import explained
from .core.scheduler import Scheduler
from .core.state import RunState
from .core.task import Standing
from .core.verdict import Seen, judge
from .files import ClashError, Files, Given, Overlays, begin_files, layer_name, layer_spec
from .front import Frames, FrontProcess, encode_frames
from .hostpipe import Settings
from .journal import Commit, Journal
from .links import Attempt, Key, Lines, Owner
from .recovery import Recovered, fork, read_outputs, read_run
from .revising import revise
from .sandboxes import Sandboxes
from .sources import snapshot
from .state import OwnedRun, RunDirectory, StateDirectory
from .streams import Streams
from .submissions import Submissions
from .values import ValueStore
from .warm import WarmAttempts
from .workspace import Prepared

__all__ = ["Engine"]

log = logging.getLogger("casemate.engine")

# How often a live attempt is looked at. Once a second is what `task.usage` promises; where limits
# are only sampled, a tenth of a second bounds the overshoot.
USAGE_INTERVAL = 1.0
SAMPLE_INTERVAL = 0.1

# Near its cpu limit an attempt is looked at as often as it could reach it, but not more than this.
FINEST_INTERVAL = 0.01

# After a look at a base for changes by others, rest so many times as long as it took.
LOOK_REST = 20

# The same for a living attempt's layer, whose size is looked at once a second at most.
WEIGH_REST = 10

# The longest pause between two zygotes that cannot start.
ZYGOTE_DELAY = 2.0

# Descriptors of a live attempt: link, stdout, stderr, status, pidfd, outbox, out-of-memory event;
# about ten more for a moment while it is started. And what the engine has without any attempt.
ATTEMPT_DESCRIPTORS = 8
OWN_DESCRIPTORS = 100

# Of runs that are over: a line of memory each, for readers who come late.
RUNS_REMEMBERED = 10_000

# What RUN holds beside a task's input, spec and pickled code: ids, paths, framing.
RUN_OVERHEAD = 16 * KIB

_NIL = b"\xc0"
_LAST_KINDS = frozenset({"run.completed", "run.failed", "run.cancelled"})

# Called with (run, last durable seq, whether the run has ended).
Listener = Callable[[str, int, bool], None]


class Host(Protocol):
    """The program around a supervisor that serves. Raises UsageError for what it refuses."""

    async def accept(self, submission: str, digest: bytes) -> tuple[str, tuple[str, ...]]:
        """The run that an uploaded bundle (its id, its digest) becomes, and what to tell of it."""

    async def shut_down(self, drain: float | None) -> None:
        """Begin to end; what runs has `drain` seconds for it (None: as it has itself)."""


@dataclass(slots=True)
class _Run:
    """What the engine keeps of a run."""

    owned: OwnedRun
    spec: PipelineSpec
    tasks: dict[str, TaskSpec]
    input: Raw
    has_sources: bool
    files: Files | None  # None: no workspace
    streams: Streams | None  # None: no stream edges
    appended: int = 0
    committed: int = 0
    has_ended: bool = False  # its last event is durable, or never will be
    is_closed: bool = False  # its journal is
    busy: int = 0  # attempts whose files are being made, or put away
    is_looking: bool = False  # at its base, for changes by others; or resting from it
    wants_look: bool = False  # once more: another checkpoint was made meanwhile
    told_changes: WorkspaceChanged | None = None
    problem: str | None = None  # why its journal ended early
    is_full: bool = False  # its journal took what it may
    # Attempts that may be told RUN once the journal is durable up to a number, and such whose saved
    # state is; in order. Not by key: a check goes by that of its attempt.
    gated: deque[tuple[int, Attempt]] = field(default_factory=deque)
    saves: deque[tuple[int, Attempt]] = field(default_factory=deque)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)


def _own_size(job: Run) -> int:
    """Bytes of what travels in RUN beside the input."""
    code = len(job.entry.payload) if isinstance(job.entry, PickleEntry) else 0
    return code + sum(memoryview(part).nbytes for part in (job.spec, job.saved, job.schema))


def _idempotency_key(key: Key, generation: int) -> str:
    """The same for every attempt of a task, and another after a rollback has undone it."""
    return f"{key.run}/{key.task}" + (f"/{generation}" if generation else "")


def _most_attempts() -> int:
    """How many live attempts this process has descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - OWN_DESCRIPTORS) // ATTEMPT_DESCRIPTORS - WARM_SANDBOXES)


@dataclass(frozen=True, slots=True)
class _Over:
    """What is remembered of a run that is over."""

    committed: int
    problem: str | None


class Engine:
    """Use it as an async context manager. All methods belong to its loop."""

    def __init__(self, settings: Settings, host: Host | None = None) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._core = Scheduler(
            min(settings.max_parallel, _most_attempts()),
            settings.memory_budget,
            settings.cpu_budget,
        )
        self._runs: dict[str, _Run] = {}
        self._over: dict[str, _Over] = {}
        self._attempts: dict[Key, Attempt] = {}
        self._by_sandbox: dict[Sandbox, Attempt] = {}
        self._warm = WarmAttempts(self)
        self._overlays = Overlays()
        self._preparing: set[Key] = set()  # their input or their layer is being made
        self._frozen: set[Key] = set()
        self._taking = asyncio.Lock()  # one run at a time is taken over
        self._applying = asyncio.Lock()  # and one applied: the threads are the attempts' as well
        self._inputs: deque[Input] = deque()
        self._is_stepping = False
        self._is_closing = False
        self._is_congested = False
        self._timer: asyncio.TimerHandle | None = None
        self._zygote_fd = -1
        self._zygote_delay = 0.0
        self._background: set[asyncio.Task[None]] = set()
        self.listener: Listener | None = None
        self._host = host

    # --- life ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """What has begun when a later step fails is ended again."""
        async with contextlib.AsyncExitStack() as begun:
            self.state = await asyncio.to_thread(StateDirectory.open, Path(self._settings.state))
            self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            begun.callback(os.close, self._null)
            # In this thread, which outlives them: both carry a parent-death signal.
            self.front = FrontProcess(self.state, accepts=self._settings.accepts)
            self.front.on_request = lambda verb: carry_out(self, verb)
            begun.push_async_callback(self.front.close)
            await self.front.start()
            self._sandboxes = Sandboxes(self._settings.degrade, self._settings.strict)
            begun.push_async_callback(asyncio.to_thread, self._sandboxes.close)
            await asyncio.to_thread(self._sandboxes.wait_ready)
            self._watch_zygote()
            begun.callback(self._unwatch_zygote)
            self._journal = Journal(self._committed_in_thread, self._failed_in_thread)
            # What its thread says last is published while the loop waits for the zygote's end.
            begun.push_async_callback(asyncio.to_thread, self._journal.close)
            self._desk = BreakerDesk(
                self.state.path, self._breaker_moved_in_thread, self._breakers_failed_in_thread
            )
            begun.push_async_callback(asyncio.to_thread, self._desk.close)
            await self.front.wait_ready()
            self._begun = begun.pop_all()
        log.info("the engine of %s is ready: %s", self.state.path, self.front.events_endpoint)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill what lives. Runs under way are left interrupted, their journals whole."""
        self._is_closing = True
        self.front.on_request = None
        if self._timer is not None:
            self._timer.cancel()
        self._preparing.clear()  # what is not begun yet never will be
        self._warm.close()
        for attempt in list(self._attempts.values()):
            attempt.kill()
        while self._attempts or self._background or self._warm.is_alive():
            await asyncio.sleep(0.002)
        await self._begun.aclose()
        for run in self._runs.values():
            run.owned.ownership.release()

    # --- what clients ask --------------------------------------------------------------------

    async def accept(self, submission: str, digest: bytes) -> tuple[str, tuple[str, ...]]:
        """The run that an uploaded bundle becomes. Raises UsageError."""
        if self._host is None:
            raise UsageError("this supervisor takes no submissions; one of `casemate serve` does")
        return await self._host.accept(submission, digest)

    async def shut_down(self, drain: float | None) -> None:
        """As a signal would. Raises UsageError."""
        if self._host is None:
            raise UsageError("this supervisor is its program's to end")
        await self._host.shut_down(drain)

    async def submit(self, spec: PipelineSpec, value: Raw, submission: str | None = None) -> str:
        """Start a run; its id. `submission`: of which it is the run. Raises UsageError for a
        pipeline that cannot run."""

        def fill(building: RunDirectory) -> None:
            if submission is not None:
                Submissions(self.state).name_run(submission, building.id)
            snapshot(spec, building.sources)
            begin_files(building, spec, self.state.path)

        owned = await asyncio.to_thread(self.state.create_run, fill)
        run = owned.directory.id
        try:
            files = await asyncio.to_thread(
                Files.of_run, owned.directory, spec, self._overlays, self.state.path
            )
            self._journal.open(owned.directory)
            tasks = {task.id: task for task in spec.tasks}
            has_sources = any(owned.directory.sources.iterdir())
            streams = Streams.of_run(self, owned.directory, spec)
            self._runs[run] = _Run(owned, spec, tasks, value, has_sources, files, streams)
            self._warm.enter(run, spec)
            self._feed(
                Submit(
                    run=run,
                    spec=spec,
                    input=value,
                    spec_bytes=Raw(msgspec.msgpack.encode(spec)),
                    seed=secrets.randbits(63),
                )
            )
        except BaseException:
            if self._runs.pop(run, None) is not None:
                self._warm.leave(run)
                self._journal.close_run(run)
            owned.ownership.release()
            raise
        if submission is not None:
            await self._durable(run)  # then its bundle is dropped
        log.info("run %s: begun, of pipeline %s", run, spec.name, extra={"run": run})
        return run

    def owns(self, run: str) -> bool:
        return run in self._runs

    async def is_free(self, run: str) -> bool:
        """Whether there is such a run, and no living supervisor has it."""
        there = self.state.run(run)
        return there.path.is_dir() and not await asyncio.to_thread(there.is_owned)

    async def apply(self, wish: Apply) -> Applied:
        """Write the files of a run that has ended into its workspace. Raises UsageError."""
        applying = partial(
            apply_run,
            self.state,
            self.state.run(wish.run),
            checkpoint=wish.checkpoint,
            allow=wish.allow,
            accept_base=wish.accept_base,
            last=wish.last,
            dry_run=wish.dry_run,
        )
        async with self._applying:
            return (await asyncio.to_thread(applying))[1]

    def why(self, run: str, task: str) -> tuple[str, ...]:
        """What no journal tells of a task at this moment, in sentences."""
        look = self._core.look(run, task)
        return () if look is None else words(look)

    async def pause(self, run: str, drain: bool = False) -> None:
        """Start nothing more of a run; what runs is frozen, or left to end (`drain`). Nothing
        happens to one that is paused. Raises UsageError for a run that is not under way here, as
        all that follow do."""
        self._feed(PauseRun(run, drain))
        await self._durable(run)

    async def resume(self, run: str) -> None:
        """Go on with a run that is paused, or that nobody owns any more."""
        await self.take_up(run)
        if self._core.knows(run):
            self._feed(ResumeRun(run))
        await self._durable(run)

    async def take_up(self, run: str) -> None:
        """Go on with a run that nobody owns any more; one that is paused stays so. Nothing happens
        to one that is under way here."""
        found = await self._take_over(run)
        if found is not None:
            if found.state.has_ended:
                self._end_run(self._runs[run])
                raise UsageError(
                    f"run {run} has ended ({found.state.standing.name.lower()}): roll it back to "
                    "go on from a checkpoint"
                )
            self._feed(Adopt(run, found.state))
        await self._durable(run)

    async def checkpoint(self, run: str) -> str:
        """Make a checkpoint now, if anything has completed since the latest; the latest's id."""
        self._feed(CheckpointRun(run))
        head = self._core.state(run).head
        await self._durable(run)
        return head or ""

    async def rollback(
        self, run: str, checkpoint: str | None, before: str | None, accept_base: bool = False
    ) -> None:
        """Back to a checkpoint or to just before a task, and on from there; a run that has ended,
        or was interrupted, is taken up again. Returns when the rollback is durable. UsageError also
        where others changed the workspace meanwhile, unless that is accepted."""
        found = await self._take_over(run)
        if found is not None:
            try:
                found.state.undone_by(checkpoint, before)
                await self._check_base(run, accept_base)
            except CasemateError:
                self._end_run(self._runs[run])
                raise
            self._feed(Adopt(run, found.state))
        else:
            self._core.state(run).undone_by(checkpoint, before)
            await self._check_base(run, accept_base)
            if not self._core.knows(run):  # it has ended meanwhile
                await self.rollback(run, checkpoint, before, accept_base)
                return
        state = self._core.state(run)
        generation = state.generation
        self._feed(Rollback(run, checkpoint, before))
        while state.generation == generation:  # until what it undoes is dead
            seq, ended = await self.wait_committed(run, self._runs[run].committed)
            if ended:
                raise UsageError(f"run {run} ended before it was rolled back (seq {seq})")
        await self._durable(run)

    async def _check_base(self, run: str, accept: bool) -> None:
        known = self._runs.get(run)
        if known is not None and known.files is not None:
            await asyncio.to_thread(known.files.check_base, accept)

    async def fork(self, run: str, checkpoint: str) -> str:
        """A new run that goes on from a checkpoint of another, which it leaves alone; its id."""
        source = self.state.run(run)
        if not source.path.is_dir():
            raise UsageError(f"no run {run!r} in {self.state.path}")
        if run in self._runs:
            await self._durable(run)
        owned, found = await asyncio.to_thread(fork, self.state, source, checkpoint)
        copy = owned.directory.id
        await self._enter(owned, found)
        self._feed(Adopt(copy, found.state, fork=(run, checkpoint)))
        await self._durable(copy)
        return copy

    async def revise(self, run: str, spec: PipelineSpec, digest: str, same: Collection[str]) -> str:
        """A new run of a changed pipeline, which begins with what tasks of another one's run that
        are the `same` have completed; its id. The other is ended, if it was under way here."""
        check(spec)
        source = self.state.run(run)
        ending = asyncio.run_coroutine_threadsafe

        def stop() -> None:
            ending(self._end_at_once(run, "its pipeline was changed"), self._loop).result()

        owned, found = await asyncio.to_thread(
            revise, self.state, source, spec, secrets.randbits(63), digest, same, stop
        )
        copy = owned.directory.id
        await self._enter(owned, found)
        changed = tuple(task for task in found.state.graph.order if task not in same)
        self._feed(Adopt(copy, found.state, fork=(run, "c1"), changed=changed))
        await self._durable(copy)
        return copy

    async def _end_at_once(self, run: str, reason: str) -> None:
        """And until nothing of it lives."""
        if run in self._runs:
            self._feed(CancelRun(run, reason, at_once=True))
        while run in self._runs:
            await asyncio.sleep(0.002)

    def set_slots(self, most: int) -> None:
        """How many attempts may live at once from now on; nothing that lives is ended."""
        self._feed(Slots(min(most, _most_attempts())))

    async def drain(self) -> None:
        """Start nothing new, in any run, and wait for what runs to end, its files put away. What is
        frozen is not waited for."""
        self._feed(Drain())
        self._warm.close()
        while (
            self._preparing
            or not self._attempts.keys() <= self._frozen
            or any(run.busy for run in self._runs.values())
        ):
            await asyncio.sleep(0.01)

    async def _take_over(self, run: str) -> Recovered | None:
        """Own a run that nobody has, with all that its journal tells. None: it is under way here.
        One of ours that has ended is let go of first."""
        async with self._taking:
            if self._core.knows(run):
                return None
            while run in self._runs:
                await asyncio.sleep(0.002)
                if self._core.knows(run):  # another who took it over has looked at its base
                    return None
            owned = await asyncio.to_thread(self.state.own_run, run)
            try:
                found = await asyncio.to_thread(read_run, owned.directory)
            except BaseException:
                owned.ownership.release()
                raise
            await self._enter(owned, found)
            return found

    async def _enter(self, owned: OwnedRun, found: Recovered) -> None:
        """Lets go of the run where its files cannot be had."""
        state, run = found.state, owned.directory.id
        try:
            files = await asyncio.to_thread(
                Files.recover,
                owned.directory,
                state,
                found.layers,
                self._overlays,
                self.state.path,
            )
        except BaseException:
            owned.ownership.release()
            raise
        self._journal.open(owned.directory, last_seq=found.last_seq)
        self._over.pop(run, None)
        log.info("run %s: taken up at event %d", run, found.last_seq, extra={"run": run})
        self._runs[run] = _Run(
            owned,
            state.spec,
            state.specs,
            state.input,
            has_sources=any(owned.directory.sources.iterdir()),
            files=files,
            streams=Streams.of_run(self, owned.directory, state.spec, found.last_seq),
            appended=found.last_seq,
            committed=found.last_seq,
        )
        self._warm.enter(run, state.spec)

    async def _durable(self, run: str) -> None:
        """Wait until all that is recorded of a run so far is on disk."""
        known = self._runs.get(run)
        if known is not None and known.appended > known.committed:
            await self.wait_committed(run, known.appended - 1)

    def cancel(self, run: str, reason: str) -> None:
        """End a run: what lives is killed. Nothing happens to one that has ended."""
        if run in self._runs:
            self._feed(CancelRun(run, reason))
        elif run not in self._over:
            raise UsageError(f"run {run}: not one of this supervisor's")

    async def wait_committed(self, run: str, beyond: int) -> tuple[int, bool]:
        """Wait until events after `beyond` are durable or the run has ended: (last seq, ended)."""
        while (known := self._runs.get(run)) is not None:
            if known.committed > beyond or known.has_ended:
                if known.problem is not None:
                    raise CasemateError(known.problem)
                return known.committed, known.has_ended
            news: asyncio.Future[None] = self._loop.create_future()
            known.waiting.append(news)
            await news
        if run not in self._over:
            raise UsageError(f"run {run}: not one of this supervisor's")
        over = self._over[run]
        if over.problem is not None:
            raise CasemateError(over.problem)
        return over.committed, True

    def problem(self, run: str) -> str | None:
        """Why a run ended without its last event; None where it did not."""
        known = self._runs.get(run) or self._over.get(run)
        return known.problem if known is not None else None

    async def step_breaker(self, key: str, happening: Forced | Reset) -> BreakerSummary:
        """A person's hand on a breaker of the state directory."""
        return await asyncio.to_thread(step_breaker, self.state.path, key, happening)

    # --- the core ----------------------------------------------------------------------------

    def _feed(self, input: Input) -> None:
        """Tell the core and do what it asks. What happens meanwhile waits its turn."""
        self._inputs.append(input)
        if self._is_stepping or self._is_closing:
            return
        self._is_stepping = True
        try:
            while self._inputs:
                commands = self._core.step(self._loop.time(), self._inputs.popleft())
                self._warm.granted(commands)
                for command in commands:
                    self._carry_out(command)
        finally:
            self._is_stepping = False
        self._warm.look()
        self._set_timer()

    def _set_timer(self) -> None:
        deadline = self._core.deadline()
        if self._timer is not None:
            if self._timer.when() == deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline != math.inf:
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._feed(Tick())

    def _carry_out(self, command: Command) -> None:
        match command:
            case Record(run=run, task=task, attempt=number, data=data):
                seqs = self._record(run, task, number, [data])
                self._warm.noted(command)
                is_completed = type(data) in (TaskCompleted, TaskSkipped)
                if seqs and is_completed and (streams := self._streams(run)):
                    assert task is not None and number is not None
                    streams.completed((task, number), seqs.start)
            case Spawn():
                self._spawn(command)
            case CancelAttempt(run=run, task=task, attempt=number):
                if attempt := self._attempts.get(Key(run, task, number)):
                    attempt.cancel()
            case Kill(run=run, task=task, attempt=number):
                key = Key(run, task, number)
                self._preparing.discard(key)
                self._warm.discard(key)
                if attempt := self._attempts.get(key):
                    attempt.kill()
            case Freeze(run=run, task=task, attempt=number):
                self._frozen.add(Key(run, task, number))
                if attempt := self._attempts.get(Key(run, task, number)):
                    attempt.freeze()
            case Thaw(run=run, task=task, attempt=number):
                self._frozen.discard(Key(run, task, number))
                if attempt := self._attempts.get(Key(run, task, number)):
                    attempt.thaw()
            case Fetch(run=run, outputs=outputs):
                self._in_background(self._fetch_outputs(run, outputs))
            case TellBreaker() | ForgetBreaker():
                self._desk.tell(command)

    def _breaker_moved_in_thread(self, moved: BreakerMoved) -> None:
        self._loop.call_soon_threadsafe(self._feed, moved)

    def _breakers_failed_in_thread(self, error: CasemateError) -> None:
        self._loop.call_soon_threadsafe(self._breakers_failed, error)

    def _breakers_failed(self, error: CasemateError) -> None:
        """Better an end than a breaker that does not open."""
        log.error("%s; runs with breakers are failed", error)
        failure = TaskError(kind=ErrorKind.DISK, message=str(error))
        for run, known in list(self._runs.items()):
            if any(task.breaker is not None for task in known.spec.tasks):
                self._feed(FailRun(run, failure))

    async def _fetch_outputs(self, run: str, outputs: tuple[tuple[str, int], ...]) -> None:
        known = self._runs[run]
        try:
            await self._durable(run)
            found = await asyncio.to_thread(read_outputs, known.owned.directory, outputs)
        except (OSError, CasemateError) as error:
            failure = TaskError(
                kind=ErrorKind.DISK, message=f"an output that is needed cannot be read: {error}"
            )
            self._feed(FailRun(run, failure))
        else:
            self._feed(Fetched(run, found))

    # --- the journal -------------------------------------------------------------------------

    def _record(
        self, run_id: str, task: str | None, attempt: int | None, data: list[EventData]
    ) -> range:
        """The numbers that these events have from now on."""
        run = self._runs.get(run_id)
        if run is None or run.has_ended:
            return range(0)  # its journal failed: nothing can be added
        now = time.time()
        seqs = self._journal.append(run_id, [(task, attempt, now, each) for each in data])
        run.appended = seqs.stop - 1
        if run.files is not None and type(data[0]) is CheckpointCreated:
            self._look_at_base(run_id, run, run.files)
        if not self._is_congested and self._journal.backlog > JOURNAL_BACKLOG_SIZE:
            self._is_congested = True
            for live in self._attempts.values():
                live.pause()
        return seqs

    def _look_at_base(self, run_id: str, run: _Run, files: Files) -> None:
        """Tell what others changed, where it is not told yet."""
        run.wants_look = run.is_looking
        if run.is_looking:
            return
        run.is_looking = True

        def rested() -> None:
            run.is_looking = False
            if run.wants_look:
                self._look_at_base(run_id, run, files)

        async def look() -> None:
            began = self._loop.time()
            try:
                changed = await asyncio.to_thread(files.changed)
            except (OSError, CasemateError):
                changed = None  # the base is gone or closed: the next task to start says so
            is_under_way = self._runs.get(run_id) is run and self._core.knows(run_id)
            if changed is not None and changed != run.told_changes and is_under_way:
                run.told_changes = changed
                self._record(run_id, None, None, [changed])
            # It costs as much as the base is large, and a chain of short tasks makes a checkpoint
            # every few milliseconds.
            self._loop.call_later(LOOK_REST * (self._loop.time() - began), rested)

        self._in_background(look())

    def _committed_in_thread(self, commit: Commit) -> None:
        last = commit.events[-1]
        frames = encode_frames(commit)
        self._loop.call_soon_threadsafe(
            self._committed, commit.run, last.seq, last.kind in _LAST_KINDS, frames
        )

    def _committed(self, run_id: str, seq: int, is_last: bool, frames: Frames) -> None:
        run = self._runs[run_id]
        run.committed = seq
        self.front.publish(frames)
        while run.gated and run.gated[0][0] <= seq:
            run.gated.popleft()[1].allow_run()
        while run.saves and run.saves[0][0] <= seq:
            run.saves.popleft()[1].saved()
        if run.streams is not None:
            run.streams.durable(seq)
        self._ease()
        if is_last:
            self._end_run(run)
        self._tell(run_id, run)

    def _ease(self) -> None:
        """Let the tasks speak again when enough of what they said is written, or given up."""
        if self._is_congested and self._journal.backlog < JOURNAL_BACKLOG_SIZE // 2:
            self._is_congested = False
            for live in self._attempts.values():
                live.resume()

    def _failed_in_thread(self, run_id: str, error: Exception) -> None:
        self._loop.call_soon_threadsafe(self._journal_failed, run_id, error)

    def _journal_failed(self, run_id: str, error: Exception) -> None:
        """What cannot be recorded may not go on: the run's tasks are killed, it is interrupted."""
        run = self._runs[run_id]
        run.problem = f"run {run_id}: its journal cannot be written: {error}"
        log.error("%s; what it had running is killed", run.problem, extra={"run": run_id})
        self._end_run(run)
        self._ease()
        self._feed(CancelRun(run_id, run.problem, at_once=True))
        self._tell(run_id, run)

    def _end_run(self, run: _Run) -> None:
        """Nothing more will be recorded; what still lives of it (after a failure) is dying."""
        run.has_ended = True
        self._warm.discard_run(run.owned.directory.id)
        if self._is_closing:
            return  # the journal closes every run by itself, and may have done so

        def closed() -> None:
            self._loop.call_soon_threadsafe(self._journal_closed, run)

        self._journal.close_run(run.owned.directory.id, closed)

    def _journal_closed(self, run: _Run) -> None:
        run.is_closed = True
        self._retire(run)

    def _retire(self, run: _Run) -> None:
        """Give a run up when its journal is closed and its last sandbox is dead: until then no
        other supervisor may have it. Kept of it is what a late reader asks."""
        run_id = run.owned.directory.id
        is_alive = run.busy or any(key.run == run_id for key in self._attempts)
        if run.is_closed and not is_alive and not self._warm.is_alive(run_id):
            self._warm.leave(run_id)
            run.owned.ownership.release()
            log.info("run %s: let go of at event %d", run_id, run.committed, extra={"run": run_id})
            del self._runs[run_id]
            self._over[run_id] = _Over(run.committed, run.problem)
            if len(self._over) > RUNS_REMEMBERED:
                del self._over[next(iter(self._over))]

    def _tell(self, run_id: str, run: _Run) -> None:
        """Wake those who wait for this run's events."""
        for news in run.waiting:
            if not news.done():
                news.set_result(None)
        run.waiting.clear()
        if self.listener is not None:
            self.listener(run_id, run.committed, run.has_ended)

    # --- spawning ----------------------------------------------------------------------------

    def _spawn(self, command: Spawn) -> None:
        key = Key(command.run, command.task, command.attempt)
        if command.part is not Part.EXECUTE:
            self._spawn_check(key, command)
            return
        value = self._input(command)
        if len(value) > VALUE_SIZE:
            error = TaskError(
                kind=ErrorKind.OUTPUT_LIMIT,
                message=f"the outputs of {', '.join(command.upstream)} are {len(value)} bytes "
                f"together, and a task's input at most {VALUE_SIZE}",
            )
            self._feed(Ended(key.run, key.task, key.attempt, output=None, error=error))
            return
        run, state = self._runs[key.run], self._core.state(key.run)
        if run.streams is not None:
            run.streams.expects((key.task, key.attempt), command.streams)
        task, stands = run.tasks[key.task], state.tasks[key.task]
        job = Run(
            run=key.run,
            task=key.task,
            attempt=key.attempt,
            entry=task.execute if stands.fallback is None else task.fallbacks[stands.fallback],
            input=Raw(value),
            input_file=None,
            spec=task.spec,
            idempotency_key=_idempotency_key(key, stands.generation),
            saved=stands.saved or Raw(_NIL),
            deadline=task.timeouts.wall,
            workspace=None if run.files is None else WORKSPACE,
            streams=run.streams.upstreams((key.task, key.attempt)) if run.streams else (),
            python=None if task.python is None else task.python.executable,
            preload=task.preload,
        )
        given = None
        if run.files is not None:
            given = run.files.given(state, key.task, key.attempt)
        self._lay_out(key, run, job, given)

    def _spawn_check(self, key: Key, command: Spawn) -> None:
        """The same author's code, on one value that a task gave or failed with."""
        value = command.value
        if isinstance(value, TaskError):
            value = Raw(msgspec.msgpack.encode(value))
        assert value is not None
        run = self._runs[key.run]
        task = run.tasks[key.task]
        is_validation = command.part is Part.VALIDATE
        job = Run(
            run=key.run,
            task=key.task,
            attempt=key.attempt,
            part=command.part,
            entry=task.validate if is_validation else task.recover,
            input=value,
            input_file=None,
            spec=Raw(_NIL),
            idempotency_key="",
            deadline=None,
            workspace=None,
            schema=task.output_schema if is_validation else Raw(_NIL),
            python=None if task.python is None else task.python.executable,
        )
        self._lay_out(key, run, job, None)

    def _lay_out(self, key: Key, run: _Run, job: Run, given: Given | None) -> None:
        """Start it, when it has what has to lie on disk before."""
        # What does not fit into RUN goes by a file that is bound read-only.
        room = MESSAGE_SIZE - RUN_OVERHEAD - _own_size(job)
        is_small = memoryview(job.input).nbytes <= room
        if not self._warm.claim(key) and is_small and given is None:
            self._start(key, job)
        else:
            self._preparing.add(key)
            run.busy += 1
            self._in_background(self._prepare(key, run, job, is_small, given))

    def _input(self, command: Spawn) -> bytes:
        """msgpack of what the task sees: its upstreams' outputs by id, or, where no edge leads to
        it, the run's input. Put together from closed values; nothing is decoded."""
        graph = self._core.state(command.run).graph
        if not graph.upstream[command.task]:
            return bytes(self._runs[command.run].input)
        return msgspec.msgpack.encode(
            {task: self._core.output(command.run, task) for task in command.upstream}
        )

    async def _prepare(
        self, key: Key, run: _Run, job: Run, is_small: bool, given: Given | None
    ) -> None:
        """What blocks on the disk before an attempt can start."""
        prepared = input_file = None
        kind, why = ErrorKind.SETUP, "killed before it was started"
        warm = None
        try:
            warm = await self._warm.take(key, given, is_small and job.part is Part.EXECUTE)
            if given is not None and warm is None:
                assert run.files is not None
                prepared = await asyncio.to_thread(run.files.begin, given)
            if not is_small:
                store = ValueStore(run.owned.directory.values)
                input_file = store.path(await asyncio.to_thread(store.put, bytes(job.input)))
                job = msgspec.structs.replace(job, input=Raw(_NIL), input_file=INPUT_FILE)
        except ClashError as clash:
            kind, why = ErrorKind.CONFLICT, str(clash)
        except (OSError, CasemateError) as error:
            why = f"its files or its input cannot be laid out: {error}"
        else:
            if key in self._preparing:
                self._preparing.discard(key)
                if warm is None:
                    self._start(key, job, input_file, prepared)
                else:
                    self._attempts[key] = warm
                    warm.take_up(self, job)
                    self._give_job(warm)
                return
        finally:
            run.busy -= 1
        self._preparing.discard(key)
        self._never_started(key, job.part, why, kind)

    def _start(
        self,
        key: Key,
        job: Run,
        input_file: Path | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        try:
            attempt = self._make(self, key, job, input_file, prepared)
        except (OSError, SetupRefused) as error:
            self._never_started(key, job.part, str(error))
            return
        self._attempts[key] = attempt
        attempt.watch()
        self._give_job(attempt)

    def _make(
        self,
        owner: Owner,
        key: Key,
        job: Run | None,
        input_file: Path | None = None,
        prepared: Prepared | None = None,
    ) -> Attempt:
        """Its sandbox is on its way. Raises OSError or SetupRefused where none can be had."""
        run = self._runs[key.run]
        lines = None
        try:
            lines = Lines(self.front.runtime)
            lease = self._sandboxes.spawn(
                self._sandbox_spec(key, run, job, input_file, prepared),
                lines.stdio(self._null),
                link=lines.listener.fileno(),
            )
        except (OSError, SetupRefused):
            if lines is not None:
                lines.close()
            raise
        finally:
            if lines is not None:
                lines.close_theirs()
        attempt = Attempt(self._loop, owner, key, run.tasks[key.task], lease, lines, job)
        self._by_sandbox[lease.sandbox] = attempt
        return attempt

    def _give_job(self, attempt: Attempt) -> None:
        """As soon as what it builds on is durable."""
        key = attempt.key
        run = self._runs[key.run]
        if key in self._frozen:
            attempt.freeze()
        if self._is_congested:
            attempt.pause()
        if run.appended <= run.committed:
            attempt.allow_run()
        else:
            run.gated.append((run.appended, attempt))

    def _sandbox_spec(
        self,
        key: Key,
        run: _Run,
        job: Run | None,
        input_file: Path | None,
        prepared: Prepared | None,
    ) -> SandboxSpec:
        task = run.tasks[key.task]
        # which needs nothing of the host: no secrets, no network, no files
        is_check = job is not None and job.part is not Part.EXECUTE
        host_env = () if is_check else task.host_env
        missing = [name for name in host_env if name not in os.environ]
        if missing:
            raise SetupRefused(
                f"env: {', '.join(missing)}: not set in the supervisor's environment"
            )
        passed = {name: os.environ[name] for name in host_env}
        shown: tuple[Bind, ...] = ()
        chosen: dict[str, str] = {}
        if (python := task.python) is not None:
            shown = python.binds
            folder = os.path.dirname(python.executable)
            # `python` is that one, for a command and for whatever else is started
            chosen["PATH"] = f"{folder}:{SYSTEM_PATH}"
            if python.venv is not None:
                chosen["VIRTUAL_ENV"] = python.venv
        ours = {
            "CASEMATE_RUN": key.run,
            "CASEMATE_TASK": key.task,
            "CASEMATE_ATTEMPT": str(key.attempt),
        }
        return SandboxSpec(
            mode=Mode.GUEST,
            limits=task.limits,
            env=chosen | passed | task.env | ours,
            network=Network.NONE if is_check else task.network,
            binds=shown if is_check else shown + task.binds,
            proc=ProcView.PIDS if is_check else task.proc,
            degrade=task.degrade,
            workspace=prepared.copy if prepared is not None else None,
            workspace_writable=True,
            layer=layer_spec(prepared) if prepared is not None and not prepared.copy else None,
            sources=str(run.owned.directory.sources) if run.has_sources else None,
            input_file=str(input_file) if input_file else None,
            preload=task.preload if job is None else (),
        )

    def _never_started(
        self, key: Key, part: Part, why: str, kind: ErrorKind = ErrorKind.SETUP
    ) -> None:
        self._over_with(key, part, TaskError(kind=kind, message=why))

    def _watch_zygote(self) -> None:
        self._zygote_fd = self._sandboxes.fileno()
        self._loop.add_reader(self._zygote_fd, self._zygote_answered)

    def _unwatch_zygote(self) -> None:
        if self._zygote_fd >= 0:
            self._loop.remove_reader(self._zygote_fd)
            self._zygote_fd = -1

    def _zygote_answered(self) -> None:
        """Pidfds have come; or the zygote died. Its sandboxes then tell of their deaths
        themselves; those it had not made yet never will be."""
        answered = self._sandboxes.receive()
        if self._sandboxes.is_ready:
            self._zygote_delay = 0.0
        elif self._sandboxes.has_died:
            log.warning("the zygote died, with all of its sandboxes; another is made")
            self._unwatch_zygote()
            self._loop.call_later(self._zygote_delay, self._restart_zygote)
            self._zygote_delay = min(2 * self._zygote_delay + 0.1, ZYGOTE_DELAY)
        for sandbox in answered:
            if attempt := self._by_sandbox.get(sandbox):
                attempt.answered()

    def _restart_zygote(self) -> None:
        if self._is_closing:
            return
        try:
            old = self._sandboxes.restart()
        except OSError as error:  # no process, no descriptor: the end of some attempt may free one
            log.warning("no zygote can be made now: %s; it is tried again", error)
            self._loop.call_later(ZYGOTE_DELAY, self._restart_zygote)
        else:
            self._watch_zygote()
            self._in_background(asyncio.to_thread(old.close))

    # --- what attempts tell (links.Owner) ------------------------------------------------------

    def attempt_greeted(self, attempt: Attempt) -> None:
        key = attempt.key
        self._feed(Started(key.run, key.task, key.attempt, attempt.pid, attempt.walls))
        self._sample(attempt)

    def attempt_said(self, attempt: Attempt, said: list[EventData]) -> None:
        key = attempt.key
        if said:
            seqs = self._record(key.run, key.task, key.attempt, said)
            if seqs and (streams := self._streams(key.run)):
                streams.said((key.task, key.attempt), said, seqs)
        self._feed(Active(key.run, key.task, key.attempt))

    def attempt_begun(self, attempt: Attempt) -> None:
        key = attempt.key
        if streams := self._streams(key.run):
            streams.begins((key.task, key.attempt))

    def attempt_credited(self, attempt: Attempt, upstream: str, items: int) -> None:
        key = attempt.key
        streams = self._streams(key.run)
        if streams is None:
            raise RemoteViolation(f"credit for {upstream!r}, which it does not read")
        streams.credited((key.task, key.attempt), upstream, items)

    def attempt_saved(self, attempt: Attempt, state: Raw) -> None:
        key = attempt.key
        self._feed(Saved(key.run, key.task, key.attempt, state))
        if (run := self._runs.get(key.run)) is not None:
            run.saves.append((run.appended, attempt))

    def attempt_told(self, attempt: Attempt) -> None:
        self._feed(Told(attempt.key.run, attempt.key.task, attempt.key.attempt))

    def attempt_dead(self, attempt: Attempt) -> None:
        """Its tree is gone and its last words are read."""
        has_output = attempt.result is not None and attempt.result.digest is not None
        if has_output or attempt.artifacts:
            self._in_background(self._fetch_and_end(attempt))
        else:
            self._end(attempt, attempt.result.output if attempt.result is not None else None)

    async def _fetch_and_end(self, attempt: Attempt) -> None:
        """What lies in the outbox: its artifacts, and an output too large for a message."""
        output = None if attempt.result is None else attempt.result.output
        try:
            for number in range(1, len(attempt.artifacts) + 1):
                artifact = await asyncio.to_thread(attempt.take_artifact, number)
                self.attempt_said(attempt, [artifact])
            if attempt.result is not None and attempt.result.digest is not None:
                output = await asyncio.to_thread(attempt.take_output)
        except (OSError, CasemateError) as error:
            output = None
            attempt.blame(ErrorKind.PROTOCOL, f"a file of its outbox: {error}")
        self._end(attempt, output)

    def _end(self, attempt: Attempt, output: Raw | None) -> None:
        """Judge the attempt, once, and give back what it held."""
        key = attempt.key
        account = self._sandboxes.release(attempt.lease)
        del self._attempts[key]
        self._frozen.discard(key)
        del self._by_sandbox[attempt.lease.sandbox]
        if self._is_closing:
            return
        verdict = judge(
            Seen(
                output=output,
                failure=attempt.failure,
                cause=attempt.cause,
                sealed=attempt.sealed,
                started=attempt.greeted,
                status=attempt.status,
                out_of_memory=account.out_of_memory,
                pids_refused=account.pids_refused,
                usage=msgspec.structs.replace(account.usage, disk=attempt.disk),
            )
        )
        if isinstance(verdict, TaskError):
            verdict = explained(
                verdict,
                attempt.refused,
                attempt.task.limits,
                is_cut_off=attempt.is_cut_off,
                unowned_memory=attempt.unowned_memory,
            )
        self._over_with(key, attempt.part, verdict)

    def _over_with(self, key: Key, part: Part, verdict: Raw | TaskError) -> None:
        """Nothing of an attempt is alive: put its files away, and tell the core."""
        if part is not Part.EXECUTE:
            self._tell_answered(key, part, verdict)
            return
        run = self._runs.get(key.run)
        if run is not None and run.streams is not None:
            run.streams.ended((key.task, key.attempt))
        if run is not None and run.files is not None:
            run.busy += 1
            self._in_background(self._put_away(key, run, run.files, verdict))
        else:
            self._tell_ended(key, verdict)

    async def _put_away(self, key: Key, run: _Run, files: Files, verdict: Raw | TaskError) -> None:
        name = layer_name(key.task, key.attempt)
        layer = None
        try:
            if isinstance(verdict, TaskError):
                with contextlib.suppress(OSError, CasemateError):  # then they stay as they are
                    await asyncio.to_thread(files.keep, name)
            else:
                limit = run.tasks[key.task].limits.disk
                kept = await asyncio.to_thread(files.complete, name, limit)
                if isinstance(kept, TaskError):
                    verdict = kept
                else:
                    layer = kept
        except (OSError, CasemateError) as error:
            # What is finished must be durable, or nothing that builds on it may go on.
            message = f"the files of {key} cannot be kept: {error}"
            verdict = TaskError(kind=ErrorKind.DISK, message=message)
            self._feed(FailRun(key.run, verdict))
        finally:
            run.busy -= 1
        self._tell_ended(key, verdict, layer)

    def _tell_ended(self, key: Key, verdict: Raw | TaskError, layer: Layer | None = None) -> None:
        output = error = None
        if isinstance(verdict, TaskError):
            error = verdict
        else:
            output = verdict
        self._weigh_journal(key.run)  # what lives less than a second is never looked at
        self._feed(Ended(key.run, key.task, key.attempt, output=output, error=error, layer=layer))
        if (run := self._runs.get(key.run)) is not None:
            self._retire(run)

    def _tell_answered(self, key: Key, part: Part, verdict: Raw | TaskError) -> None:
        answer: ValidationResult | RecoveryAction | TaskError | None
        try:
            if isinstance(verdict, TaskError):
                answer = verdict
            elif part is Part.VALIDATE:
                answer = codec.decode_validation(verdict)
            else:
                answer = codec.decode_recovery(verdict)
        except RemoteViolation as violation:
            answer = TaskError(kind=ErrorKind.PROTOCOL, message=str(violation))
        self._feed(Answered(key.run, key.task, key.attempt, answer))
        if (run := self._runs.get(key.run)) is not None:
            self._retire(run)

    # --- what streams need (streams.Owner) -----------------------------------------------------

    def _streams(self, run: str) -> Streams | None:
        known = self._runs.get(run)
        return known.streams if known is not None else None

    def attempt_alive(self, key: Key) -> Attempt | None:
        return self._attempts.get(key)

    def standing_of(self, run: str, task: str) -> Standing:
        return self._core.state(run).tasks[task].standing

    def tell_core(self, input: Input) -> None:
        self._feed(input)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._in_background(work)

    # --- what is made ahead needs (warm.Host) ---------------------------------------------------

    def state_of(self, run: str) -> RunState | None:
        return self._core.state(run) if self._core.knows(run) else None

    def files_of(self, run: str) -> Files | None:
        return self._runs[run].files

    def free_memory(self) -> int:
        return self._core.free_memory

    def has_network_wall(self) -> bool:
        return self._sandboxes.probe.facts["net"].present

    def make_ahead(self, key: Key, prepared: Prepared | None) -> Attempt:
        return self._make(self._warm, key, None, None, prepared)

    def give_back(self, attempt: Attempt) -> None:
        self._sandboxes.release(attempt.lease)
        del self._by_sandbox[attempt.lease.sandbox]

    def retire(self, run: str) -> None:
        if (known := self._runs.get(run)) is not None:
            self._retire(known)

    # --- looking after the living --------------------------------------------------------------

    def _sample(self, attempt: Attempt, reported: float = 0.0) -> None:
        """Measure, tell the core, and come back in time for whatever limit is nearest."""
        key = attempt.key
        if self._attempts.get(key) is not attempt or attempt.is_dead:
            return
        measured = attempt.lease.measure()
        if (kind := attempt.lease.exceeded(measured)) is not None:
            attempt.blame(kind, f"past its {kind} limit (sampled)")
            attempt.kill()
            return
        if (progress := attempt.take_progress()) is not None:
            self._record(key.run, key.task, key.attempt, [progress])
        now = self._loop.time()
        if now - attempt.began >= USAGE_INTERVAL and now - reported >= USAGE_INTERVAL * 0.9:
            reported = now
            usage = TaskUsage(
                memory=measured.memory, cpu=measured.cpu, pids=measured.pids, disk=attempt.disk
            )
            self._record(key.run, key.task, key.attempt, [usage])
            self.weigh(attempt)
            self._weigh_journal(key.run)
        interval = SAMPLE_INTERVAL if attempt.lease.is_sampled else USAGE_INTERVAL
        limit = attempt.task.timeouts.cpu
        if limit is not None and measured.cpu is not None:
            self._feed(Used(key.run, key.task, key.attempt, measured.cpu))
            # It could burn on every core at once.
            soonest = (limit - measured.cpu) / (os.cpu_count() or 1)
            interval = min(interval, max(soonest, FINEST_INTERVAL))
        self._loop.call_later(interval, self._sample, attempt, reported)

    def weigh(self, attempt: Attempt) -> None:
        """Look how large the attempt's layer has become: nothing else bounds it. What is left of
        the disk is looked at each time, a layer of many files more rarely."""
        run = self._runs.get(attempt.key.run)
        if run is None or run.files is None or attempt.part is not Part.EXECUTE:
            return
        if attempt.weigh_due == math.inf:
            return  # it is being looked at
        files, limit = run.files, attempt.task.limits.disk
        began, due = self._loop.time(), attempt.weigh_due
        attempt.weigh_due = math.inf

        async def weigh() -> None:
            nonlocal due
            excess = None
            name = layer_name(attempt.key.task, attempt.key.attempt)
            with contextlib.suppress(OSError):
                if began >= due:
                    attempt.disk, excess = await asyncio.to_thread(files.weigh, name, limit)
                    now = self._loop.time()
                    due = now + WEIGH_REST * (now - began)
                # The largest goes first, and a small one beside it is not what fills the disk.
                largest = max((each.disk or 0 for each in self._attempts.values()), default=0)
                if excess is None and (attempt.disk or 0) >= max(largest, MIB):
                    excess = await asyncio.to_thread(files.crowded)
            attempt.weigh_due = due
            if excess is not None and not attempt.is_dead:
                attempt.blame(ErrorKind.DISK, f"{excess} (found while it ran)")
                attempt.kill()

        self._in_background(weigh())

    def _weigh_journal(self, run: str) -> None:
        size, known = self._journal.size(run), self._runs.get(run)
        if size > RUN_JOURNAL_SIZE and known is not None and not known.is_full:
            known.is_full = True
            message = (
                f"its tasks said {format_size(size // MIB * MIB)} in all, and the journal of a run "
                f"may take {format_size(RUN_JOURNAL_SIZE)}"
            )
            self._feed(FailRun(run, TaskError(kind=ErrorKind.OUTPUT_LIMIT, message=message)))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
