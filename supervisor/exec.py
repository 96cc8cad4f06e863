"""One command in one sandbox, without a pipeline: what `casemate exec`, `run_sandboxed` and the
doctor's trial have in common.

One thread, one poll loop, no asyncio. It watches the zygote (the pidfd), the sandbox's status
socket (ready, exit), its pidfd (death), the out-of-memory eventfd of cgroup v1, and `stop`, a
descriptor by which the caller ends the tree. Every clock is a poll timeout.

    spawn ──ready──> clocks run ──exit, limit or stop──> dead, proved ──> what is left in the pipes
                                                                      ──> the verdict

stdin, stdout and stderr are the caller's own descriptors and never pass through us, so nothing is
slower and a terminal stays one; only where silence must be noticed (`idle`), output be capped or
collected, stdout and stderr are pipes that we empty. Writing on must not block, for a reader that
has stopped would delay a kill: see `writable_copy`.

The first cause of an end wins: once the program has ended by itself, or we have killed it, later
causes change nothing.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import select
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from msgspec import Struct

from ..protocol.errors import CasemateError, RemoteViolation
from ..protocol.events import ErrorKind, TaskError, Usage
from ..protocol.limits import KIB
from ..sandbox.process import Ending, Stdio
from ..sandbox.spec import OWN_NETWORK, SandboxSpec, SetupFailed
from .core.refusals import KEYS, Settings, explained
from .core.verdict import Seen, judge_command
from .sandboxes import Account, Lease, Sandboxes

__all__ = ["COMPLETED", "Execution", "Report", "refusal", "run_command"]

COMPLETED = "completed"

# From the request to the last wall. The zygote is ready by then, so this is a thousandfold.
START_DEADLINE = 30.0

# As in the engine: once a second for the report's peaks; a tenth of a second bounds the overshoot
# where limits are only sampled; near its cpu limit as often as it could reach it.
USAGE_INTERVAL = 1.0
SAMPLE_INTERVAL = 0.1
FINEST_INTERVAL = 0.01

# Between the death of init and an empty cgroup, microseconds pass; a process in uninterruptible
# sleep may take any time, and then we say so instead of waiting for ever.
DEATH_INTERVAL = 0.002
DEATH_PATIENCE = 30.0

# Output that we have read and our reader has not: a pipe's worth, so that a pipeline flows.
PENDING_SIZE = 64 * KIB
READ_SIZE = 64 * KIB

# poll says of a pipe that it takes this much without blocking (POSIX: PIPE_BUF).
CHUNK_SIZE = 4 * KIB

# After a kill by us, for a reader that may never read again: the last words get this long.
LAST_WORDS = 1.0


class Report(Struct, frozen=True, kw_only=True):
    """How one command went. `verdict` is `completed` or an error kind; `exit_code` and `signal`
    are the program's own, both None where the tree was killed or never ran."""

    verdict: str
    ran: bool = False  # its first instruction was reached
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    refused: tuple[str, ...] = ()  # what walls refused, and which setting would allow it
    seconds: float = 0.0  # of the program, from the last wall to its end
    startup: float = 0.0  # from the request to the last wall
    usage: Usage = Usage()
    dropped: int = 0  # bytes of output beyond the cap
    walls: dict[str, Any] = {}


def refusal(why: str) -> Report:
    """The report of a sandbox that could not even be tried."""
    return Report(verdict=ErrorKind.SETUP.value, error=why)


def run_command(
    spec: SandboxSpec,
    *,
    wall: float | None = None,
    idle: float | None = None,
    cpu: float | None = None,
    grace: float = 0.0,
    output: int | None = None,
    stdio: Stdio | None = None,
    stop: int | None = None,
    sandboxes: Sandboxes | None = None,
    settings: Settings = KEYS,
) -> Report:
    """Run `spec.argv` (Mode.EXEC) to its end and until nothing of it lives. Durations in seconds;
    `output` caps stdout and stderr together, what is beyond is dropped and counted; `stdio` are
    the program's descriptors, ours by default; when `stop` is readable the tree is killed.
    `sandboxes`: those to use, if there are some already; they stay the caller's.

    Raises SetupRefused where this host cannot build the sandbox; a failure in building it is a
    report with verdict `setup`."""
    used = sandboxes or Sandboxes()
    try:
        used.wait_ready()
        execution = Execution(
            used,
            spec,
            wall=wall,
            idle=idle,
            cpu=cpu,
            grace=grace,
            stdio=stdio,
            stop=stop,
            settings=settings,
        )
        if output is not None or idle is not None:
            execution.proxy(output)
        return execution.run()
    finally:
        if sandboxes is None:
            used.close()


def writable_copy(fd: int) -> int:
    """A descriptor for the same file whose writes never block. O_NONBLOCK on the one we were given
    would show in every process that shares it, our caller's shell first of all; so it is opened
    anew. Where that is refused (a socket, a terminal of somebody else), a plain copy."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", flags)
    return os.dup(fd)


class _Stream:
    """stdout or stderr of the program, read by us, for `target` or to be kept."""

    def __init__(self, target: int | None) -> None:
        self.source, self.theirs = os.pipe()
        os.set_blocking(self.source, False)
        self.target = None if target is None else writable_copy(target)
        self.pending = bytearray()
        self.is_open = True

    @property
    def is_full(self) -> bool:
        return self.target is not None and len(self.pending) >= PENDING_SIZE

    def read(self) -> bytes:
        """What there is; at the end, or where nobody reads on, the source is closed."""
        try:
            data = os.read(self.source, READ_SIZE)
        except BlockingIOError:
            return b""
        if not data:
            self.hang_up()
        return data

    def write(self) -> None:
        """As much as the target takes now."""
        assert self.target is not None
        try:
            written = os.write(self.target, self.pending[:CHUNK_SIZE])
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            # Our reader has gone, as `head` does: the program shall find its pipe broken too.
            self.pending.clear()
            self.hang_up()
            return
        del self.pending[:written]

    def hang_up(self) -> None:
        if self.is_open:
            self.is_open = False
            os.close(self.source)

    def close_theirs(self) -> None:
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        self.hang_up()
        self.close_theirs()
        if self.target is not None:
            os.close(self.target)
            self.target = None


class _Phase(Enum):
    STARTING = auto()  # asked for, walls under way
    RUNNING = auto()
    ASKED = auto()  # to end by itself, within its grace
    ENDING = auto()  # it has ended, or was killed: until nothing of it lives


class Execution:
    """One command from the request to the verdict. `run` once."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        spec: SandboxSpec,
        *,
        start: float = START_DEADLINE,
        wall: float | None = None,
        idle: float | None = None,
        cpu: float | None = None,
        grace: float = 0.0,
        stdio: Stdio | None = None,
        stop: int | None = None,
        settings: Settings = KEYS,
    ) -> None:
        """`settings`: what the caller's user calls the limits and walls."""
        self._sandboxes = sandboxes
        self._settings = settings
        self._spec = spec
        self._start, self._wall, self._idle = start, wall, idle
        self._cpu, self._grace = cpu, grace
        self._stdio = stdio or Stdio(0, 1, 2)
        self._stop = stop
        self._streams: list[_Stream] = []
        self._output_left: float = math.inf
        self._dropped = 0
        self._phase = _Phase.STARTING
        self._posture: dict[str, Any] = {}
        self._cause: TaskError | None = None
        self._is_init_gone = False  # and with it its pid namespace; the cgroup must be empty too
        self._asked_at = self._started_at = self._ended_at = time.monotonic()
        self._active_at = 0.0  # when it last said something
        self._doomed_at = 0.0
        self._sample_at = 0.0

    def proxy(self, output: int | None, *, keep: bool = False) -> None:
        """Let stdout and stderr pass through us, up to `output` bytes; `keep`: or stay here, for
        `kept`."""
        self._output_left = math.inf if output is None else output
        for target in (self._stdio.stdout, self._stdio.stderr):
            self._streams.append(_Stream(None if keep else target))

    @property
    def kept(self) -> tuple[bytes, bytes]:
        out, err = self._streams
        return bytes(out.pending), bytes(err.pending)

    # --- the whole of it -----------------------------------------------------------------------

    def run(self) -> Report:
        stdio = self._stdio
        if self._streams:
            out, err = self._streams
            stdio = Stdio(stdio.stdin, out.theirs, err.theirs)
        try:
            self._asked_at = time.monotonic()
            if self._sandboxes.has_died:
                self._sandboxes.restart().close()
            lease = self._sandboxes.spawn(self._spec, stdio)
            for stream in self._streams:
                stream.close_theirs()
            while not self._is_dead(lease):
                self._turn(lease)
            self._read_status(lease)
            self._drain()
            report = self._judge(lease, self._sandboxes.release(lease))
            self._flush()
            return report
        finally:
            for stream in self._streams:
                stream.close()

    def _is_dead(self, lease: Lease) -> bool:
        if not lease.sandbox.is_dead():
            return False
        if self._phase is not _Phase.ENDING:
            self._read_status(lease)  # it may be dead before we were told that it stood
            self._end()
        return True

    def _turn(self, lease: Lease) -> None:
        """Wait for something to happen, and for the nearest clock at most."""
        handlers: dict[int, Callable[[], object]] = {}
        poller = select.poll()

        def watch(fd: int, handler: Callable[[], object], events: int = select.POLLIN) -> None:
            poller.register(fd, events)
            handlers[fd] = handler

        sandbox = lease.sandbox
        watch(self._sandboxes.fileno(), self._receive)
        if not sandbox.status_ended:
            watch(sandbox.status_fileno(), functools.partial(self._read_status, lease))
        if sandbox.pidfd is not None and not self._is_init_gone:
            watch(sandbox.pidfd, functools.partial(self._on_death, lease))
        if lease.oom_fd is not None and self._cause is None:
            watch(lease.oom_fd, functools.partial(self._on_out_of_memory, lease))
        if self._stop is not None and self._cause is None:
            watch(self._stop, functools.partial(self._on_stop, lease))
        for stream in self._streams:
            if stream.is_open and not stream.is_full:
                watch(stream.source, functools.partial(self._on_output, stream))
            if stream.target is not None and stream.pending:
                watch(stream.target, stream.write, select.POLLOUT)
        clock = self._next_clock(lease)
        # Rounded up: a poll that returned early would spin until the clock is due.
        wait = max(0, int((clock - time.monotonic()) * 1000) + 1)
        for fd, _events in poller.poll(wait):
            handlers[fd]()
        self._check_clocks(lease, time.monotonic())

    # --- clocks --------------------------------------------------------------------------------

    def _next_clock(self, lease: Lease) -> float:
        match self._phase:
            case _Phase.STARTING:
                return self._asked_at + self._start
            case _Phase.ASKED:
                return self._doomed_at + self._grace
            case _Phase.ENDING:
                if self._is_init_gone:
                    return time.monotonic() + DEATH_INTERVAL
                return self._ended_at + DEATH_PATIENCE
        due = self._sample_at
        if self._wall is not None:
            due = min(due, self._started_at + self._wall)
        if self._idle is not None:
            due = min(due, self._active_at + self._idle)
        return due

    def _check_clocks(self, lease: Lease, now: float) -> None:
        match self._phase:
            case _Phase.STARTING:
                if now >= self._asked_at + self._start:
                    message = f"did not start within {self._start:g} s"
                    self._kill(lease, ErrorKind.TIMEOUT_START, message)
            case _Phase.RUNNING:
                self._check_limits(lease, now)
            case _Phase.ASKED:
                if now >= self._doomed_at + self._grace:
                    self._end()
                    lease.sandbox.kill()
            case _Phase.ENDING:
                if self._is_init_gone:
                    lease.sandbox.kill()  # whoever is still in the cgroup
                if now >= self._ended_at + DEATH_PATIENCE:
                    pid = lease.sandbox.host_pid
                    raise CasemateError(
                        f"the sandbox (pid {pid}) was killed and is not dead after "
                        f"{DEATH_PATIENCE:g} s: it hangs in the kernel"
                    )

    def _check_limits(self, lease: Lease, now: float) -> None:
        if any(stream.is_full for stream in self._streams):
            self._active_at = now  # it may be waiting for our reader, which is no fault of its own
        if self._wall is not None and now >= self._started_at + self._wall:
            self._doom(
                lease,
                ErrorKind.TIMEOUT_WALL,
                self._past("wall", f"ran longer than {self._wall:g} s"),
            )
        elif self._idle is not None and now >= self._active_at + self._idle:
            self._doom(
                lease,
                ErrorKind.TIMEOUT_IDLE,
                self._past("idle", f"said nothing for {self._idle:g} s"),
            )
        elif now >= self._sample_at:
            self._sample(lease, now)

    def _past(self, clock: str, what: str) -> str:
        return f"{what} ({self._settings.clock.format(clock)})"

    def _sample(self, lease: Lease, now: float) -> None:
        measured = lease.measure()
        interval = SAMPLE_INTERVAL if lease.is_sampled else USAGE_INTERVAL
        if (kind := lease.exceeded(measured)) is not None:
            self._kill(lease, kind, f"past its {kind} limit (sampled)")
        elif self._cpu is not None and measured.cpu is not None:
            if measured.cpu >= self._cpu:
                message = self._past("cpu", f"used more than {self._cpu:g} s of cpu time")
                self._doom(lease, ErrorKind.TIMEOUT_CPU, message)
            # It could burn on every core at once.
            soonest = (self._cpu - measured.cpu) / (os.cpu_count() or 1)
            interval = min(interval, max(soonest, FINEST_INTERVAL))
        self._sample_at = now + interval

    # --- the end -------------------------------------------------------------------------------

    def _doom(self, lease: Lease, kind: ErrorKind, message: str) -> None:
        """End it: asked first where there is grace, and while there is somebody to ask."""
        if not self._grace or self._phase is not _Phase.RUNNING:
            self._kill(lease, kind, message)
        elif self._cause is None:
            self._cause = TaskError(kind=kind, message=message)
            self._phase = _Phase.ASKED
            self._doomed_at = time.monotonic()
            lease.sandbox.terminate()

    def _kill(self, lease: Lease, kind: ErrorKind, message: str) -> None:
        if self._cause is None:
            self._cause = TaskError(kind=kind, message=message)
        self._end()
        lease.sandbox.kill()

    def _end(self) -> None:
        if self._phase is not _Phase.ENDING:
            if self._phase is _Phase.STARTING:
                self._started_at = time.monotonic()
            self._phase = _Phase.ENDING
            self._ended_at = time.monotonic()

    # --- what is noticed -----------------------------------------------------------------------

    def _receive(self) -> None:
        """The zygote's answer, which is the pidfd; or its death, and with it the sandbox's."""
        self._sandboxes.receive()

    def _read_status(self, lease: Lease) -> None:
        sandbox = lease.sandbox
        try:
            sandbox.read_status_nowait()
        except RemoteViolation as violation:
            self._kill(lease, ErrorKind.PROTOCOL, str(violation))
        if sandbox.ready is not None and self._phase is _Phase.STARTING:
            self._phase = _Phase.RUNNING
            self._posture = sandbox.posture()
            self._started_at = self._active_at = self._sample_at = time.monotonic()
        if sandbox.exited is not None or sandbox.failed is not None:
            self._end()

    def _on_death(self, lease: Lease) -> None:
        self._is_init_gone = True
        self._read_status(lease)
        self._end()

    def _on_out_of_memory(self, lease: Lease) -> None:
        """cgroup v1 kills one process of the group, or none yet: the group is ours to kill."""
        if lease.cgroup.oom_killed():
            self._kill(lease, ErrorKind.MEMORY, "the memory limit was reached")

    def _on_stop(self, lease: Lease) -> None:
        self._doom(lease, ErrorKind.CANCELLED, "stopped from outside")

    def _on_output(self, stream: _Stream) -> int:
        """The number of bytes that came; what is beyond the cap ends here."""
        data = stream.read()
        if data:
            self._active_at = time.monotonic()
            kept = data[: int(min(self._output_left, len(data)))]
            self._output_left -= len(kept)
            self._dropped += len(data) - len(kept)
            stream.pending += kept
        return len(data)

    def _drain(self) -> None:
        """Bounded by what the kernel's pipes hold: nobody writes any more."""
        for stream in self._streams:
            while stream.is_open and self._on_output(stream):
                pass

    def _flush(self) -> None:
        """What our reader has not taken yet. It may take its time, unless we killed the program:
        then nobody expects its last words to be whole."""
        deadline = math.inf if self._cause is None else time.monotonic() + LAST_WORDS
        while waiting := [s for s in self._streams if s.target is not None and s.pending]:
            poller = select.poll()
            for stream in waiting:
                assert stream.target is not None
                poller.register(stream.target, select.POLLOUT)
            if self._stop is not None and self._cause is None:
                poller.register(self._stop, select.POLLIN)
            left = deadline - time.monotonic()
            found = dict(poller.poll(None if left == math.inf else max(0, int(left * 1000))))
            if not found or self._stop in found:
                return
            for stream in waiting:
                if stream.target in found:
                    stream.write()

    # --- the verdict ---------------------------------------------------------------------------

    def _judge(self, lease: Lease, account: Account) -> Report:
        sandbox = lease.sandbox
        failed, exited, ready = sandbox.failed, sandbox.exited, sandbox.ready
        usage = account.usage
        if exited is not None:
            usage = Usage(
                memory=exited.memory if usage.memory is None else usage.memory,
                cpu=max(exited.cpu, usage.cpu or 0.0),
                pids=usage.pids,
            )
        cause = self._cause
        ending = Ending(None, None) if exited is None else Ending.of(exited.status)
        if cause is None and failed is not None:
            cause = blame(failed, self._spec)
            if failed.step == "exec":
                ending = Ending(shell_code(failed), None)
        error = judge_command(
            Seen(
                cause=cause,
                sealed=ready is not None,
                status=None if exited is None else exited.status,
                out_of_memory=account.out_of_memory,
                pids_refused=account.pids_refused,
            )
        )
        if error is not None:
            error = explained(
                error,
                () if exited is None else exited.refused,
                self._spec.limits,
                is_cut_off=sandbox.plan.walls.get("net") == OWN_NETWORK,
                unowned_memory=sandbox.plan.unowned_memory,
                settings=self._settings,
            )
        return Report(
            verdict=COMPLETED if error is None else error.kind.value,
            ran=ready is not None and failed is None,
            exit_code=ending.code,
            signal=ending.signal,
            error=None if error is None else error.message,
            refused=() if error is None else error.refused,
            seconds=round(self._ended_at - self._started_at, 6),
            startup=round(self._started_at - self._asked_at, 6),
            usage=usage,
            dropped=self._dropped,
            walls={**sandbox.plan.walls, "posture": self._posture},
        )


def blame(failed: SetupFailed, spec: SandboxSpec) -> TaskError:
    """A sandbox that never ran its program."""
    if failed.step == "exec":
        why = os.strerror(failed.errno) if failed.errno else failed.message
        return TaskError(kind=ErrorKind.ERROR, message=f"{spec.argv[0]}: {why}")
    if failed.step == "zygote":
        return TaskError(kind=ErrorKind.LOST, message=failed.message)
    message = f"the sandbox could not be built: step {failed.step}: {failed.message}"
    return TaskError(kind=ErrorKind.SETUP, message=message)


def shell_code(failed: SetupFailed) -> int:
    """127: there is no such program; 126: it cannot be run."""
    return 127 if failed.errno in (errno.ENOENT, errno.ENOTDIR) else 126
