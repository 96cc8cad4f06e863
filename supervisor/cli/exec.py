"""`casemate exec`: one command in one sandbox, as a program that a shell can use.

stdio is the caller's; what casemate itself has to say is one line each on stderr, prefixed
`casemate: `, and whole in `--report`. SIGINT, SIGTERM and SIGHUP end the tree. SIGKILL ends it too,
by way of the zygote.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from ...protocol.errors import CasemateError, UsageError
from ...protocol.events import ErrorKind
from ...protocol.units import format_size, parse_size
from ..core.refusals import FLAGS
from ..exec import COMPLETED, Report, refusal, run_command
from ..sandboxes import Sandboxes
from .scope import settle

__all__ = ["exec_command", "exit_code"]

TIMED_OUT = 124
NOT_BUILT = 125
OUT_OF_MEMORY = 128 + signal.SIGKILL

_CODES = {
    ErrorKind.TIMEOUT_WALL: TIMED_OUT,
    ErrorKind.TIMEOUT_IDLE: TIMED_OUT,
    ErrorKind.TIMEOUT_CPU: TIMED_OUT,
    ErrorKind.TIMEOUT_START: NOT_BUILT,
    ErrorKind.SETUP: NOT_BUILT,
    ErrorKind.LOST: NOT_BUILT,
    ErrorKind.PROTOCOL: NOT_BUILT,
    ErrorKind.MEMORY: OUT_OF_MEMORY,
}
# The verdicts that the exit code tells a shell just as well.
_PLAIN = {COMPLETED, ErrorKind.ERROR, ErrorKind.CRASH, ErrorKind.CANCELLED}

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exec_command(
    command: list[str],
    *,
    memory: str,
    cpu: float | None,
    pids: int,
    wall: str | None,
    idle: str | None,
    disk: str,
    tmp: str,
    files: int,
    output: str | None,
    net: str,
    ro: Sequence[Path],
    rw: Sequence[Path],
    proc: str,
    env: Sequence[str],
    degrade: Sequence[str],
    report: Path | None,
    state: Path | None,
) -> int:
    _open_missing_stdio()
    sink = _Sink(report)
    with _ending_signals() as (stop, arrived):
        settle()
        sandboxes: Sandboxes | None = None
        cap = _parsed_cap(output)
        try:
            sandboxes = Sandboxes(alone=True)
            # Not before: pydantic takes longer to load than the zygote to start, beside it.
            from ..config import load_config
            from ..granted import command_spec, granted_limits, granted_timeouts

            config = load_config(state=state, degrade=degrade or None)
            for note in config.notes:
                say(note)
            limits = granted_limits(
                {
                    "memory": memory,
                    "cpu": cpu,
                    "pids": pids,
                    "disk": disk,
                    "tmp": tmp,
                    "files": files,
                }
            )
            clocks = granted_timeouts({"wall": wall, "idle": idle})
            spec = command_spec(
                command,
                limits=limits,
                state=config.state,
                env=_environment(env),
                network=net,
                proc=proc,
                ro=ro,
                rw=rw,
                degrade=config.degrade,
                strict=config.strict,
            )
            done = run_command(
                spec,
                wall=clocks.wall,
                idle=clocks.idle,
                output=cap,
                stop=stop,
                sandboxes=sandboxes,
                settings=FLAGS,
            )
        except UsageError:
            raise
        except (CasemateError, OSError) as error:
            done = refusal(str(error))
        finally:
            if sandboxes is not None:
                sandboxes.close()
        _say(done, command[0], cap)
        sink.write(done)
        return 128 + arrived[0] if arrived else exit_code(done)


def _parsed_cap(output: str | None) -> int | None:
    try:
        return None if output is None else parse_size(output)
    except ValueError as error:
        raise UsageError(f"--output: {error}") from None


def exit_code(report: Report) -> int:
    """What a shell is told: the command's own code, or what came of it."""
    if report.verdict != COMPLETED and (code := _CODES.get(ErrorKind(report.verdict))):
        return code
    if report.signal is not None:
        return 128 + report.signal
    if report.exit_code is not None:
        return report.exit_code
    return 128 + signal.SIGKILL  # by us, for a limit that was sampled


def _say(report: Report, program: str, cap: int | None) -> None:
    backing = report.walls.get("limits", {})
    weak = [
        f"{', '.join(names)} ({how})"
        for kind, how in (("sampled", "only sampled"), ("none", "not held at all"))
        if (names := sorted(name for name, held in backing.items() if held == kind))
    ]
    if weak:
        say(
            f"no cgroup holds these limits here: {', '.join(weak)}; "
            "`casemate doctor` tells the remedy"
        )
    if report.walls.get("degraded"):
        say(f"ran without these walls: {', '.join(report.walls['degraded'])}")
    if report.dropped:
        assert cap is not None
        say(f"{report.dropped} bytes of output beyond {format_size(cap)} dropped")
    if report.error is None:
        return
    if report.verdict not in _PLAIN:
        say(f"{report.verdict}: {report.error}")
    elif report.exit_code is not None and not report.ran:
        say(report.error + _hint(program))
    for each in report.refused:
        say(f"refused: {each}")


def _hint(program: str) -> str:
    here = shutil.which(program)
    if here is None or Path(here).resolve().is_relative_to("/usr"):
        return ""
    return f" inside the sandbox; {here} of this host is shown to it by --ro {Path(here).parent}"


def say(message: str) -> None:
    """One line, whatever is in it; nothing where stderr is gone."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    with contextlib.suppress(OSError):
        os.write(2, f"casemate: {shown}\n".encode())


def _environment(words: Sequence[str]) -> dict[str, str]:
    """`K=V` as it is, `K` as it is here; not at all where it is not set here."""
    env: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise UsageError(f"--env {word}: expected NAME or NAME=VALUE")
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def _open_missing_stdio() -> None:
    """Closed by our caller (`<&-`): else the next thing we open would be the program's stdin."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            assert os.open(os.devnull, os.O_RDWR) == fd


class _Sink:
    """Where the report goes. Opened before the command runs, which might put a link in its way."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1
        if path is not None:
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise UsageError(f"--report {path}: {os.strerror(error.errno or 0)}") from None

    def write(self, report: Report) -> None:
        if self._fd < 0:
            return
        text = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        try:
            if is_file:
                os.ftruncate(self._fd, 0)
            with os.fdopen(self._fd, "wb") as file:
                file.write(text)
        except OSError as error:
            say(f"--report {self._path}: {os.strerror(error.errno or 0)}")
        self._fd = -1


@contextlib.contextmanager
def _ending_signals() -> Iterator[tuple[int, list[int]]]:
    """(readable as soon as one came, those that came). Stay caught until we exit: a second Ctrl-C
    must not keep us from proving that the tree is dead."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    arrived: list[int] = []

    def note(number: int, _frame: object) -> None:
        arrived.append(number)
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"!")

    before = {
        number: signal.signal(number, note)
        for number in _ENDING_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup, and a shell's `&`
    }
    try:
        yield reader, arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
