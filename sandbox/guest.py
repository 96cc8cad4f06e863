"""Our code inside the sandbox: greets, is given one job, does it, tells how it went.

`main` is called in the forked guest when every wall stands, with one thread and everything
imported that most tasks need (`asyncio`, `cloudpickle` and `hashlib` are not: they would make
every fork dearer for the sake of few tasks). It makes the ZeroMQ context, and with it the first
threads, behind the walls; binds a PAIR to the listening socket it inherited, to which the engine
is connected already; says HELLO; and runs the entry it is sent. One that is made ahead of its job
first imports the modules that its task names (`preload`): code of others, behind the same walls.

    main thread      the task's code; emits go from here straight into the socket
    libzmq's thread  moves frames between the socket's queue and the connection

Nobody reads the link while the task's code runs, unless that waits for something (`guestlink.py`):
a CANCEL is noticed when the code asks (`ctx.cancelled`), and the SIGTERM that comes with it
interrupts the main thread. A signal that comes after the interpreter has looked for one, and before
the system call that it then makes, does not interrupt that call: so init, which passes SIGTERM on,
follows it up with signals that do nothing (NUDGE).

Exactly one RESULT or FAIL ends the conversation; after it the process waits to be killed, for an
exit could lose the message, and would run the interpreter's slow and hostile-to-hurry shutdown for
nothing. So `atexit` functions of a task do not run, and its threads are not waited for.

What the code raises becomes a FAIL with a traceback that begins in the task's own code. The frames
of casemate are left out: they are the same for everyone and explain nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any, NoReturn

import msgspec
from msgspec import Raw, Struct

from ..protocol import codec
from ..protocol.answers import RecoveryAction, ValidationResult
from ..protocol.errors import LocalViolation, UsageError
from ..protocol.events import TaskError
from ..protocol.limits import KIB, LINK_VERSION, RETRY_AFTER, VALUE_SIZE
from ..protocol.messages import NIL, Accept, Fail, Hello, Part, Result, Run
from ..protocol.pipeline import CommandEntry
from ..protocol.refusals import Refusal
from . import command, foreign, loader, refusals
from .context import PAYLOAD_SIZE, Cancelled, RuntimeContext
from .guestlink import Link

__all__ = ["INSIDE", "NUDGE", "Places", "main"]

# Ends a blocking call, and so lets the interpreter see a SIGTERM that came just before it. Ignored
# wherever it has no handler: in the programs that a task starts, and in those of `exec`.
NUDGE = signal.SIGURG

# Freed when the task has run out of memory, so that saying so has some.
RESERVE_SIZE = 512 * KIB

# The innermost frames of a traceback; a recursion's thousands are not worth formatting.
TRACEBACK_FRAMES = 100

# What an extension prints with printf waits in a buffer of its own, which only an exit would flush.
_LIBC = ctypes.CDLL(None)
_C_STDOUT = ctypes.c_void_p.in_dll(_LIBC, "stdout")

_EVERY_SIGNAL = signal.valid_signals()

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Places(Struct, frozen=True):
    """Where things lie inside the sandbox."""

    sources: str = "/sources"
    outbox: str = "/casemate/out"


class Termination:
    """SIGTERM, once, as something the task's code can act on; then never again, so that a second
    one does not interrupt a `finally`. `interrupt` says how: the default raises `Cancelled`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._is_armed = True
        self.interrupt: Callable[[], None] = _raise_cancelled
        # First, and for good: the interpreter complains of a signal whose handler went meanwhile.
        signal.signal(NUDGE, _do_nothing)
        signal.signal(signal.SIGTERM, self._handle)
        # Meant for the task's own process. In a child of it, `Cancelled` in the middle of a lock
        # that is shared with others would hang them (multiprocessing's pools end with SIGTERM).
        os.register_at_fork(after_in_child=self._leave)

    def _leave(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def disarm(self) -> bool:
        """The task's code has ended. True: it was told to."""
        was_armed, self._is_armed = self._is_armed, False
        return not was_armed

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False
            self._link.note_cancelled()
            self._link.interrupt(self.interrupt)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Its having come is what counts."""


INSIDE = Places()


def main(listener_fd: int, places: Places = INSIDE, *, preload: tuple[str, ...] = ()) -> NoReturn:
    """The guest's whole life, ended by a kill."""
    try:
        _live(listener_fd, places, preload)
    except BaseException:
        # A bug of ours. The supervisor sees a guest that left; its stderr says why.
        traceback.print_exc()
        _flush()
    os._exit(1)


def _live(listener_fd: int, places: Places, preload: tuple[str, ...]) -> NoReturn:
    # The lowest number there is, before libzmq takes a handful: a command's events need one below
    # ten, for dash reads no other in `>&$CASEMATE_EVENTS_FD`.
    low_fd = os.dup(0)
    if preload:
        _become_ordinary()
        _import_ahead(preload, places)
    link = Link(listener_fd)
    link.greet(Hello(version=LINK_VERSION, pid=os.getpid()))
    if not preload:
        _become_ordinary()  # while the engine answers
    accept, run = link.receive(), link.receive()
    if not isinstance(accept, Accept) or not isinstance(run, Run):
        raise LocalViolation(f"guest: expected ACCEPT and RUN, got {accept!r} and {run!r}")
    link.begin(run)
    termination = Termination(link)
    try:
        outcome = _perform(run, link, termination, places, low_fd)
    except Cancelled as error:  # SIGTERM came between the task's last line and `disarm`
        outcome = _failure(error)
    if not link.is_ours:
        # A child of the task's os.fork() has come out of the task's function. It is not the task.
        _flush()
        os._exit(0 if isinstance(outcome, Result) else 1)
    if link.broken is not None:
        raise link.broken
    # No handler of the task's own may interrupt what follows.
    signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
    _flush()
    link.send(outcome)
    while True:
        time.sleep(86400)


def _import_ahead(preload: tuple[str, ...], places: Places) -> None:
    """Before there is a job, and before we greet: HELLO says that it is done. What fails is not
    told, for there is no attempt yet to tell it of: the next one begins cold, and meets the same.
    """
    pid = os.getpid()
    try:
        loader.preload(preload, places.sources)
    except BaseException:
        os._exit(1)
    if os.getpid() != pid:
        os._exit(0)  # a child of an import that forked


def _become_ordinary() -> None:
    """Undo what suits a zygote and would surprise a task."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    gc.enable()
    sys.dont_write_bytecode = True  # the sources are read-only
    sys.argv = ["casemate-task"]
    # The zygote's standard streams were made for other descriptors. Lines leave as they end, so
    # that a killed task's last words are known; what UTF-8 cannot carry is escaped, not raised.
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(  # noqa: SIM115  (they live as long as we do)
            fd,
            "w" if fd else "r",
            buffering=1,
            encoding="utf-8",
            errors="backslashreplace" if fd else "surrogateescape",
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _perform(
    run: Run, link: Link, termination: Termination, places: Places, low_fd: int
) -> Result | Fail:
    reserve: bytes | None = bytes(RESERVE_SIZE)  # from calloc: counted, but not yet touched
    try:
        if run.part is not Part.EXECUTE:
            return _packed(_check(run, termination, places, low_fd), run, places)
        assert run.entry is not None  # the codec has seen to it
        context = RuntimeContext(
            link,
            run_id=run.run,
            task_id=run.task,
            attempt=run.attempt,
            spec=codec.decode_value(run.spec),
            workspace=None if run.workspace is None else Path(run.workspace),
            idempotency_key=run.idempotency_key,
            saved=codec.decode_value(run.saved),
            streams=run.streams,
            outbox=places.outbox,
        )
        input = _read_input(run)
        if isinstance(run.entry, CommandEntry):
            output = command.run(run.entry, input, context, low_fd)
        elif run.python is not None:
            output = foreign.run(run, input, context, low_fd, places.sources)
        else:
            os.close(low_fd)
            loader.preload(run.preload, places.sources)
            function = loader.load(run.entry, places.sources)
            output = _call(function, input, context, termination)
        return _result(output, run, places)
    except BaseException as error:
        reserve = None  # noqa: F841  (its memory is what we speak with)
        was_cancelled = termination.disarm()
        if was_cancelled and type(error).__name__ == "CancelledError":
            error = Cancelled("cancelled by the supervisor")
        return _failure(error)


def _check(run: Run, termination: Termination, places: Places, low_fd: int) -> Raw:
    """The answer of a validation or a recovery. Its function gets one value and no context: who
    asks is no task, and has nobody to speak to."""
    given: Any = None
    value = _read_input(run)
    if run.part is Part.VALIDATE and bytes(run.schema) != bytes(NIL):
        from .schema import faults  # its library takes a tenth of a second to import

        if found := faults(codec.decode_value(run.schema), value):
            return codec.encode_validation(ValidationResult(False, found))
        given = True
    if run.entry is not None and run.python is not None:
        return foreign.check(run, value, low_fd, places.sources)
    os.close(low_fd)
    if run.entry is not None:
        function = loader.load(run.entry, places.sources)
        subject = value if run.part is Part.VALIDATE else _error_of(value)
        given = function(subject)
        if inspect.isawaitable(given):
            given = _run_async(given, termination)
    name = "recover" if run.part is Part.RECOVER else "validate"
    if run.part is Part.RECOVER:
        if given is None or isinstance(given, RecoveryAction):
            return codec.encode_recovery(given)
        expected = "a RecoveryAction, such as RecoveryAction.retry(), or None"
    else:
        if isinstance(given, bool):
            given = ValidationResult(given)
        if isinstance(given, ValidationResult):
            return codec.encode_validation(given)
        expected = "a ValidationResult(ok, reasons), or True or False"
    raise UsageError(f"{name} returned {_type_name(given)}; it returns {expected}")


def _error_of(value: Any) -> TaskError:  # what the supervisor put together
    return msgspec.convert(value, TaskError)


def _read_input(run: Run) -> Any:  # the user's data
    if run.input_file is None:
        return codec.decode_value(run.input)
    return codec.decode_value(Path(run.input_file).read_bytes())


# -- calling ---------------------------------------------------------------------------------------


def _call(
    function: Callable[..., Any], input: Any, context: RuntimeContext, termination: Termination
) -> Any:
    """Run any of the four kinds of function to its end. The kind is that of what the call gives,
    not of the function: decorators and partials hide the latter."""
    positional, named = _arguments(function, input, context)
    given = function(*positional, **named)
    if inspect.isgenerator(given):
        return _drive(given, context)
    if inspect.isasyncgen(given):
        return _run_async(_drive_async(given, context), termination)
    if inspect.isawaitable(given):
        return _run_async(given, termination)
    return given


def _arguments(
    function: Callable[..., Any], input: Any, context: RuntimeContext
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A task takes (input, ctx), (input), (ctx) or (), told apart by its signature: the first
    parameter is the input unless it is called `ctx`, the second is the context if it has no
    default or is called `ctx`; `ctx` may be keyword-only."""
    shape = _shape(function)
    if shape is None:
        return (input,), {}
    names, required, is_variadic, has_named_context = shape
    if required > 2:
        name = getattr(function, "__qualname__", repr(function))
        raise UsageError(
            f"{name} takes {', '.join(names)}; a task takes (input, ctx), (input), (ctx) or ()"
        )
    named = {"ctx": context} if has_named_context else {}
    if is_variadic:
        return (input,) if has_named_context else (input, context), named
    if not names or names[0] == "ctx":
        return (context,) * len(names[:1]), named
    takes_context = len(names) > 1 and (required > 1 or names[1] == "ctx")
    return (input, context) if takes_context else (input,), named


def _shape(function: Callable[..., Any]) -> tuple[list[str], int, bool, bool] | None:
    """Its positional parameters, how many have no default, whether it takes `*args`, whether it
    has a keyword-only `ctx`. None: it does not tell."""
    if type(function) is FunctionType and not function.__dict__:
        # A function as written, under no decorator: its code says it all. `inspect` says it as
        # well, but copies 260 KiB of pages from the zygote for it.
        code = function.__code__
        count = code.co_argcount
        return (
            list(code.co_varnames[:count]),
            count - len(function.__defaults__ or ()),
            bool(code.co_flags & inspect.CO_VARARGS),
            "ctx" in code.co_varnames[count : count + code.co_kwonlyargcount],
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some functions written in C
        return None
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (
        [p.name for p in places],
        len([p for p in places if p.default is p.empty]),
        any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any(p.kind is p.KEYWORD_ONLY and p.name == "ctx" for p in parameters),
    )


def _drive(generator: Generator[Any, Any, Any], context: RuntimeContext) -> Any:
    """Each yield is an emit; the return value is the output. What an emit raises is raised at the
    task's own yield, where its `finally` blocks and its traceback are."""
    try:
        item = next(generator)
        while True:
            try:
                context.emit(item)
            except BaseException as error:
                item = generator.throw(error)
            else:
                item = next(generator)
    except StopIteration as stop:
        return stop.value
    finally:
        generator.close()


async def _drive_async(generator: AsyncGenerator[Any, Any], context: RuntimeContext) -> None:
    try:
        item = await anext(generator)
        while True:
            try:
                context.emit(item)
            except BaseException as error:
                item = await generator.athrow(error)
            else:
                item = await anext(generator)
    except StopAsyncIteration:
        return
    finally:
        await generator.aclose()


def _run_async(work: Awaitable[Any], termination: Termination) -> Any:
    # Here and not above: 3 MiB and 0.2 ms for each fork of every sandbox, needed by some.
    import asyncio

    async def supervised() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            # An exception out of a signal handler would tear the loop apart wherever it is; a
            # cancelled task unwinds in order. One whose loop is closed has ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

        termination.interrupt = interrupt
        return await work

    return asyncio.run(supervised())


def _raise_cancelled() -> NoReturn:
    raise Cancelled("cancelled by the supervisor")


# -- telling ---------------------------------------------------------------------------------------


def _result(output: Any, run: Run, places: Places) -> Result | Fail:
    try:
        payload = codec.encode_value(output)
    except codec.ValueRefused as error:
        return Fail(kind="invalid_output", message=str(error))
    return _packed(Raw(payload), run, places)


def _packed(payload: Raw, run: Run, places: Places) -> Result | Fail:
    """By message, or by a file in the outbox."""
    if len(payload) <= PAYLOAD_SIZE:
        return Result(output=Raw(payload))
    if len(payload) > VALUE_SIZE:
        return Fail(
            kind="output_limit",
            message=f"output of {run.task}: {len(payload)} bytes; at most {VALUE_SIZE} are carried",
        )
    import hashlib  # OpenSSL: 3.5 MiB that only large outputs need

    path = os.path.join(places.outbox, "output")
    try:
        # What the task itself may have put there, a link or a FIFO included, is not our output.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        left = memoryview(payload)
        while left:
            left = left[os.write(fd, left) :]
        os.close(fd)
    except OSError as error:
        return Fail(
            kind="output_limit",
            message=f"output of {run.task}: {len(payload)} bytes found no room in the sandbox's "
            f"temporary files: {error.strerror}",
            type=_type_name(error),
        )
    digest = hashlib.sha256(payload).digest()
    return Result(output=Raw(b"\xc0"), digest=digest, size=len(payload))


def _failure(error: BaseException) -> Fail:
    if isinstance(error, command.CommandError):
        return Fail(kind=error.kind, message=str(error), refused=refusals.met_by_programs())
    if isinstance(error, foreign.Raised):
        return Fail(
            kind=error.kind,
            message=str(error),
            type=error.type,
            traceback=error.traceback,
            retry_after=_retry_after(error),
            refused=refusals.met_by_programs(),
        )
    return Fail(
        kind="error",
        message=_message(error),
        # Our own words for a mistake say everything; the name of our class would be noise.
        type=None if type(error) is UsageError else _type_name(error),
        traceback=_traceback(error),
        retry_after=_retry_after(error),
        refused=_refused(error),
    )


def _refused(error: BaseException) -> tuple[Refusal, ...]:
    met = refusals.met_by(error)
    # What a program of the task's own has met: it told the task an exit code.
    is_programs = not met and type(error).__name__ == "CalledProcessError"
    return refusals.met_by_programs() if is_programs else met


def _retry_after(error: BaseException) -> float | None:
    """Seconds that the exception's `retry_after` asks to wait before another try."""
    try:
        asked = error.retry_after  # type: ignore[attr-defined]
        seconds = float(asked) if isinstance(asked, int | float) else math.nan
    except BaseException:  # a task's exceptions have whatever attributes they like, or none
        return None
    return min(max(seconds, 0.0), RETRY_AFTER) if math.isfinite(seconds) else None


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({error.code!r}); a task ends by returning or raising"
    if isinstance(error, ModuleNotFoundError):
        return loader.explain_missing_module(error)
    try:
        return str(error) or type(error).__name__
    except BaseException as broken:  # a task's own __str__ may raise anything
        return f"{type(error).__name__} (its str() raised {type(broken).__name__})"


def _type_name(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def _traceback(error: BaseException) -> str | None:
    """None where nothing of the task's own code is in it."""
    try:
        told = traceback.TracebackException.from_exception(
            error, limit=-TRACEBACK_FRAMES, compact=True
        )
        return "".join(told.format()) if _leave_us_out(told) else None
    except BaseException as broken:  # the task's exceptions choose what formatting them does
        return f"(no traceback: formatting it raised {type(broken).__name__})"


def _leave_us_out(told: traceback.TracebackException) -> bool:
    """Drop our frames and the import system's; False: no others are left."""
    left, has_others = [told], False
    while left:
        each = left.pop()
        each.stack[:] = [
            frame
            for frame in each.stack
            if not frame.filename.startswith((_OURS, "<frozen importlib"))
        ]
        has_others = has_others or bool(each.stack)
        left += [e for e in (each.__cause__, each.__context__) if e is not None]
        left += each.exceptions or []
    return has_others


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        # The task may have closed or replaced them, or nobody may be reading any more.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if stream is not None:
                stream.flush()
    _LIBC.fflush(_C_STDOUT)
