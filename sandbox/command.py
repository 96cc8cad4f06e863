"""A task in any language: one process, its input in a file, its events as lines of JSON.

The guest writes the input as JSON to a file named by `$CASEMATE_INPUT` and starts the command as
the leader of a session and process group of its own, with stdin, stdout and stderr as they are
and one pipe, numbered by `$CASEMATE_EVENTS_FD`; nothing else survives the exec. Each line on the
pipe is a JSON object with one key: `emit`, `progress`, `log`, `save`, `artifact` or `output`. They
are passed on as they come, so a slow supervisor fills the pipe and blocks the command, and nothing
is buffered. What an earlier attempt saved is a file of JSON named by `$CASEMATE_SAVED`, which is
not set when there is none.

The items of a stream edge come through a FIFO, one line of JSON each, named by
`$CASEMATE_STREAM_<UPSTREAM>`: end of file follows the last. Each FIFO has a thread that waits until
the program opens it, then moves items from the link into it. A thread, because only a blocking open
says when there is a reader: a descriptor opened early (O_RDWR) would not block, but could never be
closed without losing what lies in the FIFO or the end of file of a program that opens it late. It
is read once: when the program has closed it, the FIFO is gone, and what still comes of the stream
is thrown away. A program that never opens it keeps a thread waiting, which dies with the process.

The end is the process's end, never the pipe's: a background child that holds the pipe open is
not waited for. What lies in the pipe at that moment still counts; the rest dies with the sandbox.
The wait is one `poll` over the pipe and the wakeup descriptor that SIGCHLD writes to.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from ..protocol import codec
from ..protocol.errors import CasemateError
from ..protocol.limits import EVENTS_LINE_SIZE, MIB
from ..protocol.pipeline import CommandEntry
from .context import RuntimeContext, Stream

__all__ = [
    "CommandError",
    "Events",
    "attend",
    "make_fifos",
    "new_file",
    "new_path",
    "open_events",
    "run",
    "signal_name",
    "start",
]

# The default capacity of a pipe: one read takes all there is.
READ_SIZE = 64 * 1024

# What a pipe can hold at most (fs.pipe-max-size of an unprivileged process). After the command's
# end this much is read and no more, or a background child could keep us reading for ever.
PIPE_SIZE = 1 * MIB

KEYS = ("emit", "progress", "log", "save", "artifact", "output")


class CommandError(Exception):
    """The command did not do its job; `kind` is the error kind that the guest claims for it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Events:
    """Bytes of the pipe → lines → calls of the context. Sans-IO but for those calls."""

    keys: tuple[str, ...] = KEYS

    def __init__(self, context: RuntimeContext) -> None:
        self._context = context
        self._buffer = bytearray()
        self._searched = 0  # how much of the buffer is known to hold no newline
        self._line = 0
        self.has_output = False
        self.output: Any = None  # user's data

    def feed(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while (end := self._buffer.find(b"\n", max(start, self._searched))) >= 0:
            self._take(bytes(self._buffer[start:end]))
            start = end + 1
        del self._buffer[:start]
        self._searched = len(self._buffer)
        if len(self._buffer) > EVENTS_LINE_SIZE:
            self._line += 1
            raise self._refused(f"longer than {EVENTS_LINE_SIZE} bytes")

    def close(self) -> None:
        """The last line needs no newline."""
        if self._buffer:
            self._take(bytes(self._buffer))
            self._buffer.clear()

    def _take(self, line: bytes) -> None:
        self._line += 1
        if not line.strip():
            return
        try:
            event = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise self._refused(f"not JSON: {error}", line) from None
        if not isinstance(event, dict) or len(event) != 1 or next(iter(event)) not in self.keys:
            raise self._refused(f"expected an object with one key of {', '.join(self.keys)}", line)
        [(key, value)] = event.items()
        try:
            self.act(key, codec.from_jsonable(value, key))
        except codec.ValueRefused as error:
            raise self._refused(str(error), line) from None
        except (ValueError, OverflowError) as error:
            raise self._refused(f"{key}: {error}", line) from None

    def act(self, key: str, value: Any) -> None:
        if key == "emit":
            self._context.emit(value)
        elif key == "progress":
            if isinstance(value, dict):
                if not {"done"} <= value.keys() <= {"done", "total"}:
                    raise ValueError("expected a number or {done, total}")
                self._context.progress(_number(value["done"]), _total(value.get("total")))
            else:
                self._context.progress(_number(value))
        elif key == "log":
            if isinstance(value, dict):
                fields = {name: field for name, field in value.items() if name != "message"}
                self._context.log(value.get("message", ""), **fields)
            else:
                self._context.log(value)
        elif key == "save":
            self._context.save(value)
        elif key == "artifact":
            self._hand_over(value)
        elif self.has_output:
            raise ValueError("a second output; a task has one")
        else:
            self.has_output = True
            self.output = value

    def _hand_over(self, value: Any) -> None:
        """Its path, or {path, name}."""
        given = value if isinstance(value, dict) else {"path": value}
        path, name = given.get("path"), given.get("name")
        if not given.keys() <= {"path", "name"} or not isinstance(path, str):
            raise ValueError("expected a path or {path, name}")
        if name is not None and not isinstance(name, str):
            raise ValueError(f"name: expected a text, got {type(name).__name__}")
        try:
            self._context.artifact(path, name)
        except OSError as error:
            raise ValueError(f"{path!r}: {error.strerror}") from None

    def _refused(self, why: str, line: bytes = b"") -> CommandError:
        shown = line[:200].decode("utf-8", "backslashreplace")
        more = "…" if len(line) > 200 else ""
        where = f"line {self._line} of $CASEMATE_EVENTS_FD"
        return CommandError("error", f"{where}: {why}" + (f": {shown}{more}" if shown else ""))


def run(entry: CommandEntry, input: object, context: RuntimeContext, events_fd: int) -> Any:
    """Run the command to its end and return its output (user's data), or raise CommandError.
    `events_fd` is a descriptor whose number is taken over for the command's events."""
    environment = dict(os.environ)
    environment["CASEMATE_INPUT"] = new_file("input", input)
    environment.pop("CASEMATE_SAVED", None)
    if context.saved is not None:
        environment["CASEMATE_SAVED"] = new_file("saved", context.saved)
    fifos = make_fifos(context.streams)
    environment |= {_variable(stream.upstream): path for path, stream in fifos}
    environment["CASEMATE_EVENTS_FD"] = str(events_fd)
    events_read = open_events(events_fd)
    process = start(entry.argv, environment, (events_fd,))
    os.close(events_fd)
    events = Events(context)

    def forward(number: int, frame: FrameType | None) -> None:
        # Straight from the handler: the main thread may be blocked in a send.
        with contextlib.suppress(ProcessLookupError):  # the whole group is gone: nothing to end
            os.killpg(process.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, forward)
    attend(process, events_read, events, fifos)
    return _judge(entry.argv[0], process.returncode, events)


def open_events(events_fd: int) -> int:
    """A pipe whose end for the program takes over `events_fd`; the other."""
    events_read, events_write = os.pipe()
    os.dup2(events_write, events_fd, inheritable=False)
    os.close(events_write)
    os.set_blocking(events_read, False)
    return events_read


def attend(
    process: subprocess.Popen[bytes],
    events_read: int,
    events: Events,
    fifos: list[tuple[str, Stream]],
) -> None:
    """Pass on what the process says, and what it reads, to its end."""
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    # A handler of any kind makes SIGCHLD write to the wakeup descriptor; SIG_DFL would not.
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    # After the start: its fork is quicker, and copies no thread's lock.
    feeders = [_Feeder(stream, path, wake_write) for path, stream in fifos]
    poller = select.poll()
    poller.register(events_read, select.POLLIN)
    poller.register(wake_read, select.POLLIN)
    while process.poll() is None:
        for fd, _ in poller.poll():
            if fd == wake_read:
                os.read(wake_read, READ_SIZE)
                for feeder in feeders:
                    if feeder.failure is not None:
                        raise feeder.failure
            elif data := os.read(events_read, READ_SIZE):
                events.feed(data)
            else:
                poller.unregister(events_read)  # closed by the command, which may run on
    _drain(events_read, events)


class _Feeder:
    """Moves the items of one stream into its FIFO."""

    def __init__(self, stream: Stream, path: str, wake_fd: int) -> None:
        self.failure: CommandError | None = None
        self._stream = stream
        self._path = Path(path)
        self._wake_fd = wake_fd
        threading.Thread(target=self._feed, name=path, daemon=True).start()

    def _feed(self) -> None:
        try:
            with self._path.open("wb", buffering=0) as fifo:  # here it waits for the reader
                for item in self._stream:
                    line = json.dumps(codec.to_jsonable(item, "item"), ensure_ascii=False)
                    left = memoryview(line.encode() + b"\n")
                    while left:
                        left = left[fifo.write(left) :]
                # Before the end of file: who opens it again is told at once, and does not wait.
                self._path.unlink()
        except RuntimeError:
            return  # the task has ended
        except OSError:
            # The program has closed the FIFO before its end, or removed it: it wants no more. What
            # it left unread would hold up who speaks.
            with contextlib.suppress(OSError):
                self._path.unlink()
            with contextlib.suppress(RuntimeError, CasemateError):
                for _ in self._stream:
                    pass
        except CasemateError as error:
            name = _variable(self._stream.upstream)
            self.failure = CommandError("error", f"${name}: {error}")
            with contextlib.suppress(BlockingIOError):  # full: it wakes the main thread anyway
                os.write(self._wake_fd, b"!")


def new_file(name: str, value: object) -> str:
    """The path of a new file with this value."""
    path = Path(new_path(f"{name}-{os.getpid()}.json"))
    with path.open("x", encoding="utf-8") as file:
        json.dump(codec.to_jsonable(value, name), file, ensure_ascii=False)
    return str(path)


def new_path(name: str) -> str:
    return os.path.join(os.environ.get("TMPDIR", "/tmp"), f"casemate-{name}")


def _variable(upstream: str) -> str:
    return f"CASEMATE_STREAM_{upstream.upper().replace('-', '_')}"


def make_fifos(streams: tuple[Stream, ...]) -> list[tuple[str, Stream]]:
    made: dict[str, Stream] = {}
    fifos: list[tuple[str, Stream]] = []
    for stream in streams:
        name = _variable(stream.upstream)
        if name in made:
            raise CommandError(
                "error",
                f"the streams of {made[name].upstream} and {stream.upstream} would both be "
                f"${name}: rename one of these tasks",
            )
        made[name] = stream
        path = new_path(f"stream-{os.getpid()}-{stream.upstream}")
        os.mkfifo(path, 0o600)
        fifos.append((path, stream))
    return fifos


def start(
    argv: tuple[str, ...], environment: dict[str, str], fds: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(argv, env=environment, pass_fds=fds, start_new_session=True)
    except OSError as error:
        program, path = argv[0], environment.get("PATH", "")
        folders = [""] if "/" in program else path.split(":")
        is_there = any(os.path.exists(os.path.join(folder, program)) for folder in folders)
        # A folder of PATH that is closed to us hides behind EACCES that no other has it either.
        if error.errno in (errno.ENOENT, errno.EACCES) and not is_there:
            looked = "" if "/" in program else f" in PATH ({path})"
            why = f"not found in the sandbox{looked}"
        elif error.errno == errno.ENOENT:
            why = "found, but the interpreter that its first line names is not in the sandbox"
        elif error.errno == errno.EACCES:
            why = "not executable (is its x bit set, is it a file?)"
        elif error.errno == errno.ENOEXEC:
            why = "not a program for this machine, nor a script that begins with #!"
        else:
            why = error.strerror or str(error)
        raise CommandError("error", f"cannot run {program!r}: {why}") from None


def _drain(fd: int, events: Events) -> None:
    left = PIPE_SIZE
    while left > 0:
        try:
            data = os.read(fd, min(left, READ_SIZE))
        except BlockingIOError:
            break
        if not data:
            break
        left -= len(data)
        events.feed(data)
    events.close()


def _judge(program: str, code: int, events: Events) -> Any:
    if code == 0:
        return events.output
    if code < 0:
        raise CommandError("crash", f"{program!r} was killed by {signal_name(-code)}")
    hint = {126: " (a shell's word for: not executable)", 127: " (a shell's word for: not found)"}
    raise CommandError("error", f"{program!r} ended with exit code {code}{hint.get(code, '')}")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _total(value: Any) -> float | None:
    return None if value is None else _number(value)
