"""Steering a run from elsewhere: both ends of it.

`carry_out` is the engine's: it does what a request asks and puts what became of it, refusals too,
into an answer. `Client` is for other processes: it finds the living supervisor that owns the run,
asks its front, and waits.

The owner is found by the run's lock, in which its pid stands, and the records of those who live.
One on another host (`remote.py`) is whoever listens at its address, and finds the run itself. A
request carries an id of its own, so that it can be sent again when no answer comes (the front was
restarted): it is carried out once.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict, TypeVar

import msgspec

from ..protocol import control as wire
from ..protocol.control import (
    Apply,
    Because,
    Breakers,
    BreakersShown,
    BreakerSummary,
    BreakerVerb,
    Cancel,
    Checkpoint,
    ControlAnswer,
    ControlError,
    ControlVerb,
    Done,
    Error,
    Fork,
    List,
    Listed,
    OpenBreaker,
    Pause,
    Problem,
    Reply,
    Request,
    ResetBreaker,
    Resume,
    Rollback,
    RunSummary,
    RunVerb,
    Show,
    Shown,
    Shutdown,
    Submit,
    Upload,
    Uploaded,
    Why,
)
from ..protocol.errors import CasemateError, LocalViolation, UsageError
from ..protocol.limits import (
    CONTROL_PATH_LENGTH,
    CONTROL_PATHS,
    CONTROL_REASON_LENGTH,
    CONTROL_VERSION,
    UPLOAD_PIECE_SIZE,
)
from .apply import Applied
from .core.breaker import Forced, Reset
from .remote import CHECK_SECONDS, Reach, Remote
from .state import RunDirectory, StateDirectory, SupervisorRecord

if TYPE_CHECKING:
    import zmq

__all__ = ["Client", "Steerable", "carry_out"]

log = logging.getLogger("casemate.control")

A = TypeVar("A", bound=Reply)

# A rollback copies and flattens; an hour is a hang. Whoever waits can end it with ^C.
_PATIENCE = 600.0

# An owner that has just begun may not be announced yet: starting its front takes 0.15 s.
_ANNOUNCED = 5.0

# What may be asked of a supervisor that does not own the run, where nobody does.
_OF_THE_FREE = Resume | Rollback | Fork

# The first wait for an answer, after which the request is sent again; each is twice the last.
_FIRST_WAIT = 2.0

_MESSAGE_LENGTH = 2000


class Steerable(Protocol):
    """What the engine offers. Every verb raises UsageError where the run's state does not allow
    it."""

    def owns(self, run: str) -> bool: ...
    async def is_free(self, run: str) -> bool: ...
    async def shut_down(self, drain: float | None) -> None: ...
    async def accept(self, submission: str, digest: bytes) -> tuple[str, tuple[str, ...]]: ...
    async def pause(self, run: str, drain: bool = False) -> None: ...
    async def resume(self, run: str) -> None: ...
    def cancel(self, run: str, reason: str) -> None: ...
    async def checkpoint(self, run: str) -> str: ...
    async def rollback(
        self, run: str, checkpoint: str | None, before: str | None, accept_base: bool = False
    ) -> None: ...
    async def fork(self, run: str, checkpoint: str) -> str: ...
    async def apply(self, wish: Apply) -> Applied: ...
    def why(self, run: str, task: str) -> tuple[str, ...]: ...
    async def step_breaker(self, key: str, happening: Forced | Reset) -> BreakerSummary: ...


async def carry_out(engine: Steerable, verb: ControlVerb) -> ControlAnswer:
    """Never raises but for bugs: what one client asked must not end the runs of the others."""
    answer = await _carry_out(engine, verb)
    if not isinstance(verb, Why):  # it changes nothing
        refused = answer.error.message if isinstance(answer, Error) else None
        name, of = type(verb).__name__.lower(), _subject(verb)
        extra = {"verb": name, "of": of} | ({} if refused is None else {"refused": refused})
        log.info("%s %s: %s", name, of, refused or "done", extra=extra)
    return answer


def _subject(verb: ControlVerb) -> str:
    if isinstance(verb, Submit):
        return verb.submission
    if isinstance(verb, Shutdown):
        return "this supervisor"
    return verb.key if isinstance(verb, BreakerVerb) else verb.run


async def _carry_out(engine: Steerable, verb: ControlVerb) -> ControlAnswer:
    try:
        if isinstance(verb, RunVerb) and not await _may_have(engine, verb):
            message = f"run {verb.run}: not this supervisor's"
            return _problem(verb, ControlError.NOT_FOUND, message)
        if isinstance(verb, Apply):
            return await _applied(engine, verb)
        if isinstance(verb, Shutdown):
            await engine.shut_down(verb.drain)
            return Done(id=verb.id, run="")
        if isinstance(verb, Why):
            return Because(id=verb.id, run=verb.run, words=engine.why(verb.run, verb.task))
        if isinstance(verb, BreakerVerb):
            happening = Reset() if isinstance(verb, ResetBreaker) else Forced(verb.open_for)
            row = await engine.step_breaker(verb.key, happening)
            return BreakersShown(id=verb.id, breakers=(row,))
        if isinstance(verb, Submit):
            run, notes = await engine.accept(verb.submission, verb.digest)
            return Done(id=verb.id, run=run, notes=notes)
        return await _done(engine, verb)
    except UsageError as error:
        return _problem(verb, ControlError.REFUSED, str(error))
    except LocalViolation:
        raise
    except Exception as error:
        return _problem(verb, ControlError.FAILED, f"{type(error).__name__}: {error}")


async def _may_have(engine: Steerable, verb: RunVerb) -> bool:
    """A run that has ended or was interrupted is nobody's, and may become this engine's; to `apply`
    waits for the run's lock itself."""
    if engine.owns(verb.run) or isinstance(verb, Apply):
        return True
    return isinstance(verb, _OF_THE_FREE) and await engine.is_free(verb.run)


def _problem(verb: ControlVerb, kind: ControlError, message: str) -> Error:
    return Error(id=verb.id, error=Problem(kind, message[:_MESSAGE_LENGTH]))


async def _applied(engine: Steerable, verb: Apply) -> wire.Applied:
    applied = await engine.apply(verb)
    return wire.Applied(
        id=verb.id,
        run=verb.run,
        written=applied.written,
        size=applied.size,
        removed=applied.removed,
        folders=applied.folders,
    )


async def _done(engine: Steerable, verb: RunVerb) -> Done:
    run, checkpoint = verb.run, None
    match verb:
        case Pause(drain=drain):
            await engine.pause(run, drain)
        case Resume():
            await engine.resume(run)
        case Cancel(reason=reason):
            engine.cancel(run, reason or "cancelled by an operator")
        case Checkpoint():
            checkpoint = await engine.checkpoint(run)
        case Rollback(checkpoint=to, before=before, accept_base=accept):
            if (to is None) == (before is None):
                raise UsageError("rollback: to a checkpoint or to before a task, one of the two")
            await engine.rollback(run, to, before, accept)
        case Fork(checkpoint=to):
            run = await engine.fork(run, to)
    return Done(id=verb.id, run=run, checkpoint=checkpoint)


class Client:
    """The verbs of a supervisor, for the runs of any that lives, here or at one address elsewhere.
    Use it as a context manager."""

    def __init__(self, where: StateDirectory | Remote, patience: float = _PATIENCE) -> None:
        import zmq

        self._where = where
        self._patience = patience
        self._context: zmq.Context[Any] = zmq.Context()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def pause(self, run: str, drain: bool = False) -> None:
        self._steer(Pause(**_head(), run=run, drain=drain))

    def resume(self, run: str) -> None:
        self._steer(Resume(**_head(), run=run))

    def cancel(self, run: str, reason: str = "") -> None:
        reason = reason[:CONTROL_REASON_LENGTH]
        self._steer(Cancel(**_head(), run=run, reason=reason))

    def checkpoint(self, run: str) -> str:
        done = self._steer(Checkpoint(**_head(), run=run))
        return done.checkpoint or ""

    def rollback(
        self, run: str, checkpoint: str | None, before: str | None, accept_base: bool = False
    ) -> None:
        self._steer(
            Rollback(
                **_head(),
                run=run,
                checkpoint=checkpoint,
                before=before,
                accept_base=accept_base,
            )
        )

    def fork(self, run: str, checkpoint: str) -> str:
        verb = Fork(**_head(), run=run, checkpoint=checkpoint)
        return self._steer(verb).run

    def why(self, run: str, task: str) -> tuple[str, ...]:
        answer = self._ask(Why(**_head(), run=run, task=task))
        return answer.words if isinstance(answer, Because) else ()

    def submit(self, bundle: bytes, submission: str | None = None) -> tuple[str, tuple[str, ...]]:
        """Have a supervisor start a run of what `bundle.pack` gave; its id, and what who submits it
        should be told. `submission`: an id of 32 hex digits, under which to ask again is to ask for
        the same run."""
        submission = submission or _new_id()
        give_up = time.monotonic() + self._patience
        owner = self._accepting()
        if owner is None:
            raise UsageError(
                f"no supervisor of {self._state_path()} takes submissions: start one with "
                "`casemate serve`"
            )
        offset = 0
        while offset < len(bundle):
            piece = bundle[offset : offset + UPLOAD_PIECE_SIZE]
            verb = Upload(**_head(), submission=submission, offset=offset, data=piece)
            offset = self._get(owner, verb, Uploaded, give_up).size
        named = Submit(**_head(), submission=submission, digest=sha256(bundle).digest())
        done = self._get(owner, named, Done, give_up)
        return done.run, done.notes

    def shutdown(self, drain: float | None = None) -> None:
        """End the supervisor that takes submissions."""
        owner = self._accepting()
        if owner is None:
            raise UsageError(f"no supervisor serves {self._state_path()}: there is nothing to end")
        verb = Shutdown(**_head(), drain=drain)
        with contextlib.suppress(_DiedError):  # as was wished, and before its answer was out
            self._get(owner, verb, Done)

    # ---- what of a supervisor on this host is read from its files, or needs none

    def list_remote(self) -> list[RunSummary]:
        return list(self._get_remote(List(**_head()), Listed).runs)

    def show_remote(self, run: str) -> Shown:
        return self._get_remote(Show(**_head(), run=run), Shown)

    def apply_remote(
        self,
        run: str,
        *,
        checkpoint: str | None,
        allow: Iterable[str],
        accept_base: bool,
        last: bool,
        dry_run: bool,
    ) -> Applied:
        named = tuple(allow)
        if len(named) > CONTROL_PATHS or any(len(path) > CONTROL_PATH_LENGTH for path in named):
            raise UsageError(
                f"apply: from elsewhere at most {CONTROL_PATHS} paths of {CONTROL_PATH_LENGTH} "
                "characters are named; name a folder, with a slash at its end"
            )
        verb = Apply(
            **_head(),
            run=run,
            checkpoint=checkpoint,
            allow=named,
            accept_base=accept_base,
            last=last,
            dry_run=dry_run,
        )
        answer = self._get_remote(verb, wire.Applied)
        return Applied(answer.written, answer.size, answer.removed, answer.folders)

    def breakers_remote(self) -> list[BreakerSummary]:
        return list(self._get_remote(Breakers(**_head()), BreakersShown).breakers)

    def step_breaker_remote(self, key: str, happening: Forced | Reset) -> BreakerSummary:
        verb: BreakerVerb = ResetBreaker(**_head(), key=key)
        if isinstance(happening, Forced):
            verb = OpenBreaker(**_head(), key=key, open_for=happening.open_for)
        return self._get_remote(verb, BreakersShown).breakers[0]

    def _get_remote(self, verb: Request, kind: type[A]) -> A:
        assert isinstance(self._where, Remote)
        return self._get(self._where, verb, kind)

    def _get(
        self,
        owner: SupervisorRecord | Remote,
        verb: Request,
        kind: type[A],
        give_up: float | None = None,
    ) -> A:
        answer = self._ask_one(owner, verb, give_up or time.monotonic() + self._patience)
        if not isinstance(answer, kind):
            raise _refusal(_named(verb), answer)
        return answer

    def _accepting(self) -> SupervisorRecord | Remote | None:
        """One that serves."""
        if isinstance(self._where, Remote):
            return self._where
        return next((each for each in self._where.living_supervisors() if each.accepts), None)

    def _state_path(self) -> Path:
        assert isinstance(self._where, StateDirectory)
        return self._where.path

    def _steer(self, verb: RunVerb) -> Done:
        answer = self._ask(verb)
        if not isinstance(answer, Done):
            raise CasemateError(f"run {verb.run}: its supervisor's answer makes no sense")
        return answer

    def _ask(self, verb: RunVerb) -> Done | Because:
        give_up = time.monotonic() + self._patience
        if isinstance(self._where, Remote):
            answer = self._ask_one(self._where, verb, give_up)
            if isinstance(answer, Done | Because):
                return answer
            raise _refusal(f"run {verb.run}", answer)
        run = self._where.find_run(verb.run)
        verb = msgspec.structs.replace(verb, run=run.id)
        serving = self._accepting() if isinstance(verb, _OF_THE_FREE) else None
        if serving is not None and not run.is_owned():
            owners = [serving]
        else:
            owners = [*self._owners(self._where, run)]
        for owner in owners:
            answer = self._ask_one(owner, verb, give_up)
            match answer:
                case Done() | Because():
                    return answer
                case Error(error=Problem(kind=ControlError.NOT_FOUND)):
                    continue  # two supervisors in one process have one pid
                case _:
                    raise _refusal(f"run {run.id}", answer)
        raise CasemateError(f"run {run.id}: its supervisor has just let go of it; ask again")

    def _owners(self, state: StateDirectory, run: RunDirectory) -> list[SupervisorRecord]:
        give_up = time.monotonic() + min(_ANNOUNCED, self._patience)
        while True:
            if not run.is_owned():
                raise UsageError(
                    f"run {run.id}: no living supervisor owns it; `casemate resume` goes on with it"
                )
            owner = run.owner()
            found = [each for each in state.living_supervisors() if each.pid == owner]
            if found:
                return found
            if time.monotonic() > give_up:
                raise CasemateError(
                    f"run {run.id}: its supervisor (pid {owner or 'unknown'}) cannot be reached "
                    "from here"
                )
            time.sleep(0.05)

    def _ask_one(self, owner: SupervisorRecord | Remote, verb: Request, give_up: float) -> Reply:
        import zmq

        body, wait = msgspec.msgpack.encode(verb), _FIRST_WAIT
        with self._context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            with closing(_Line(owner, dealer)) as line:
                while line.is_alive() and (left := give_up - time.monotonic()) > 0:
                    with contextlib.suppress(zmq.Again):  # nobody is there yet, and enough waits
                        dealer.send(body, zmq.NOBLOCK)
                    until = time.monotonic() + min(wait, left)
                    while line.wait(until):
                        reply: Reply = msgspec.msgpack.decode(dealer.recv(), type=Reply)
                        if reply.id == verb.id:
                            return reply
                    wait *= 2
                is_alive = line.is_alive()
        if is_alive:
            raise CasemateError(f"{_named(verb)}: the supervisor ({line.name}) does not answer")
        raise _DiedError(f"{_named(verb)}: the supervisor ({line.name}) died before it answered")


class _DiedError(CasemateError):
    """Who was asked is gone, and nobody knows what it had done."""


class _Line:
    """A socket's connection to the supervisor that is asked."""

    def __init__(self, owner: SupervisorRecord | Remote, dealer: zmq.Socket[Any]) -> None:
        import zmq

        self._owner = owner
        self._dealer = dealer
        self._reach: Reach | None = None
        self._poller = zmq.Poller()
        self._poller.register(dealer, zmq.POLLIN)
        if isinstance(owner, Remote):
            self.name = f"at {owner.address}"
            self._reach = Reach(owner, dealer)
            self._poller.register(self._reach.news, zmq.POLLIN)
            owner.connect(dealer, owner.control)
        else:
            self.name = f"pid {owner.pid}"
            dealer.connect(owner.control)

    def close(self) -> None:
        if self._reach is not None:
            self._reach.close()

    def is_alive(self) -> bool:
        """As far as can be told from here."""
        return isinstance(self._owner, Remote) or bool(self._owner.is_alive())

    def wait(self, until: float) -> bool:
        """For a reply. Raises CasemateError where none can come."""
        while True:
            left = max(0.0, until - time.monotonic())
            ready = dict(self._poller.poll(int(min(left, CHECK_SECONDS) * 1000)))
            if self._dealer in ready:
                return True
            if self._reach is not None:
                self._reach.check()
            if not ready and left <= CHECK_SECONDS:
                return False


def _refusal(what: str, reply: Reply) -> CasemateError:
    match reply:
        case Error(error=Problem(ControlError.REFUSED | ControlError.NOT_FOUND, message)):
            return UsageError(message)
        case Error(error=Problem(message=message)):
            return CasemateError(f"{what}: {message}")
        case _:
            return CasemateError(f"{what}: the supervisor's answer makes no sense")


class _Head(TypedDict):
    version: int
    id: str


def _head() -> _Head:
    """Of a new request."""
    return {"version": CONTROL_VERSION, "id": _new_id()}


def _named(verb: Request) -> str:
    return f"run {verb.run}" if isinstance(verb, RunVerb) else str(verb.__struct_config__.tag)


def _new_id() -> str:
    return uuid.uuid4().hex
