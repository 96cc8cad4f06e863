"""`run_sandboxed`: one command, one sandbox, no pipeline, from any Python program.

    your program ──socket── a child: one `Execution` (exec.py) ── zygote ── sandbox

The kill of a runaway command must not wait for a busy host, and must come when the host dies; so
the sandbox's supervisor is a child process, from any thread. The request goes down the socket, the
report with stdout and stderr comes back, and the socket's end means the same in both directions:
the host has gone, kill; or the supervisor has gone (with every process of the sandbox).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from ..protocol.errors import CasemateError, SetupRefused, UsageError
from ..protocol.events import Usage
from ..protocol.pipeline import Timeouts
from ..sandbox.process import Stdio
from ..sandbox.scope import take_place
from ..sandbox.spec import SandboxSpec
from .core.refusals import ARGUMENTS
from .exec import COMPLETED, Execution, Report, refusal
from .sandboxes import Sandboxes

if TYPE_CHECKING:
    from .builder import Limits
    from .builder import Timeouts as SomeTimeouts

__all__ = ["SandboxResult", "run_sandboxed", "serve"]

# What the child needs of ours: enough to find its folders, and no secret.
_ENVIRONMENT = {"HOME", "PATH", "LANG", "LC_ALL", "TMPDIR", "XDG_RUNTIME_DIR"}

_RECEIVE_SIZE = 256 * 1024
_LENGTH = 4

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# After the host has given up on its child (KeyboardInterrupt): it kills and proves within this.
_PARTING = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """How it went. `verdict` is `completed` (exit code 0) or an error kind; `walls` says what was
    in force. stdout and stderr together hold at most `limits.output` bytes, `dropped` counts the
    rest. `limits.event_rate` has nothing to bound: there are no events."""

    verdict: str
    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    usage: Usage
    walls: Mapping[str, Any]
    error: str | None
    refused: tuple[str, ...]  # what walls refused, and which setting would allow it
    dropped: int

    @property
    def ok(self) -> bool:
        return self.verdict == COMPLETED


class _Request(Struct, frozen=True):
    spec: SandboxSpec
    timeouts: Timeouts


class _Reply(Struct, frozen=True):
    report: Report
    stdout: bytes = b""
    stderr: bytes = b""
    misused: str | None = None  # the message of a UsageError


def run_sandboxed(
    command: Sequence[str],
    *,
    limits: Limits | None = None,
    timeouts: SomeTimeouts | None = None,
    workspace: str | os.PathLike[str] | None = None,
    ro: Sequence[str | os.PathLike[str]] = (),
    rw: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    network: str = "none",
    proc: str = "pids",
    input: bytes | None = None,
    cwd: str | None = None,
    degrade: Sequence[str] | None = None,
) -> SandboxResult:
    """Run one command in one sandbox and wait for its end: `run_sandboxed(["python", "job.py"],
    workspace=".", limits=Limits(memory="256MiB"), timeouts=Timeouts(wall="30s"))`.

    `workspace` is seen read-only at /workspace, paths of `ro` and `rw` at their own places. The
    defaults of limits and timeouts are a task's. Whatever happens to the command is a result, a
    sandbox that cannot be built here too (verdict `setup`). Raises UsageError for what cannot be
    meant, CasemateError where the supervisor itself is gone."""
    # Here, for they take a third of a second, which the child need not spend.
    from .builder import is_guest
    from .config import load_config
    from .granted import command_spec, granted_limits, granted_timeouts

    if is_guest():
        raise UsageError("run_sandboxed: this is a sandbox already, and cannot make another")
    if isinstance(command, str) or not command:
        raise UsageError('command: expected a list of words such as ["python", "job.py"]')
    config = load_config(degrade=degrade)
    spec = command_spec(
        [os.fspath(word) for word in command],
        limits=granted_limits(limits.document() if limits is not None else {}),
        state=config.state,
        env=env,
        network=network,
        proc=proc,
        ro=ro,
        rw=rw,
        workspace=workspace,
        cwd=cwd,
        degrade=config.degrade,
        strict=config.strict,
    )
    clocks = granted_timeouts(timeouts.document() if timeouts is not None else {})
    return _ask(_Request(spec, clocks), input)


def _ask(request: _Request, input: bytes | None) -> SandboxResult:
    ours, theirs = socket.socketpair()
    code = (
        f"import sys; sys.path[:] = {[os.path.abspath(folder) for folder in sys.path]!r};"
        "from casemate.supervisor.sandboxed import serve; serve()"
    )
    stdin = _readable(input)
    try:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-I", "-c", code, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=stdin,
                env={name: text for name, text in os.environ.items() if name in _ENVIRONMENT},
                start_new_session=True,  # ^C in the host's terminal is the host's to handle
            )
    finally:
        os.close(stdin)
    with ours:
        try:
            packet = msgspec.msgpack.encode(request)
            # Its length first: to close this direction would be to hang up.
            ours.sendall(len(packet).to_bytes(_LENGTH, "little") + packet)
            body = bytearray()
            while data := ours.recv(_RECEIVE_SIZE):
                body += data
        except ConnectionError:
            body = bytearray()  # it died while we spoke
        finally:
            ours.close()
            _await_end(child)
    if not body:
        raise CasemateError(
            f"the supervisor of {request.spec.argv[0]} died ({child.returncode}), "
            "and its sandbox with it"
        )
    reply = msgspec.msgpack.decode(body, type=_Reply)
    if reply.misused is not None:
        raise UsageError(reply.misused)
    report = reply.report
    return SandboxResult(
        verdict=report.verdict,
        exit_code=report.exit_code,
        signal=report.signal,
        stdout=reply.stdout,
        stderr=reply.stderr,
        seconds=report.seconds,
        usage=report.usage,
        walls=report.walls,
        error=report.error,
        refused=report.refused,
        dropped=report.dropped,
    )


def _readable(input: bytes | None) -> int:
    """A descriptor to read it from: a file in memory, so that nobody has to feed a pipe. Sealed,
    for the sandbox could open it anew and let it grow."""
    if input is None:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("casemate-input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(input)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _await_end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(_PARTING)
    except subprocess.TimeoutExpired:
        child.kill()  # the zygote and the sandbox die with it
        child.wait()


# --- the child ---------------------------------------------------------------------------------


def serve() -> None:
    """The child's main: one request, one reply."""
    host = socket.socket(fileno=int(sys.argv[1]))
    host.set_inheritable(False)
    with host, host.makefile("rb") as stream:
        size = int.from_bytes(stream.read(_LENGTH), "little")
        packet = stream.read(size)
        if len(packet) < size or not size:
            return  # the host changed its mind
        with contextlib.suppress(OSError, SetupRefused):  # limits are sampled then; `walls` says so
            take_place()
        reply = _execute(msgspec.msgpack.decode(packet, type=_Request), host.fileno())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            host.sendall(msgspec.msgpack.encode(reply))


def _execute(request: _Request, stop: int) -> _Reply:
    clocks = request.timeouts
    try:
        sandboxes = Sandboxes(alone=True)
        try:
            sandboxes.wait_ready()
            execution = Execution(
                sandboxes,
                request.spec,
                start=clocks.start,
                wall=clocks.wall,
                idle=clocks.idle,
                cpu=clocks.cpu,
                grace=clocks.grace,
                stdio=Stdio(0, 1, 2),
                stop=stop,
                settings=ARGUMENTS,
            )
            execution.proxy(request.spec.limits.output, keep=True)
            report = execution.run()
        finally:
            sandboxes.close()
    except UsageError as error:
        return _Reply(refusal(str(error)), misused=str(error))
    except (CasemateError, OSError) as error:
        return _Reply(refusal(str(error)))
    stdout, stderr = execution.kept
    return _Reply(report, stdout, stderr)
