"""The engine's handles: a `Zygote` to ask for sandboxes, and a `Sandbox` that owns one.

Both are descriptors to watch and calls that never block, for `loop.add_reader`; the `wait_…` calls
are for callers without a loop. A sandbox is three things held together, so that it cannot be lost
track of: the pidfd of its init, its cgroup, and the engine's end of its status socket.

    ask ──reply──> pidfd ──status──> ready or setup ──> exit      (each may be the last)

Killing it is SIGKILL to init (the kernel then kills its pid namespace) and to the cgroup. It is
dead when the pidfd is readable, which the kernel says only after the last process of the namespace
is gone, and the cgroup is empty: that is looked at, not assumed.

`Zygote.start` must be called in a thread that lives as long as the zygote shall: the kernel ties
the parent-death signal to the thread.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Self

import msgspec

from ..protocol.errors import LocalViolation, RemoteViolation, SetupRefused
from . import packets
from .cgroup import Cgroup
from .probe import Probe
from .spec import (
    ENGINE_FD,
    REQUEST_SIZE,
    Exited,
    FdRole,
    Mode,
    Plan,
    Ready,
    SetupFailed,
    SpawnReply,
    SpawnRequest,
    StatusRecord,
    ZygoteConfig,
    ZygoteHello,
)

__all__ = ["Ending", "Sandbox", "Stdio", "Zygote"]

# A status record; the longest holds one error message. Read from inside the walls: not trusted.
RECORD_SIZE = 16 * 1024
_record = msgspec.msgpack.Decoder(StatusRecord)

# The zygote is not imported here: it brings the guest along, and with it libzmq, which has no
# place in an engine. argv[1] says where the socket is; it is moved to its place first.
BOOTSTRAP = (
    "import os, sys; fd = int(sys.argv[1]); "
    f"os.dup2(fd, {ENGINE_FD}, False); fd == {ENGINE_FD} or os.close(fd); "
    f"sys.path[:] = os.read({ENGINE_FD}, {REQUEST_SIZE}).decode('utf-8', 'surrogateescape')"
    ".split('\\0'); "
    "from casemate.sandbox.zygote import main; main()"
)

# What most guests need, imported once. Heavier things (asyncio, cloudpickle) would make every
# fork dearer for the sake of few.
PRELOAD = ("casemate.protocol", "casemate.sandbox.guest")

# How long a killed sandbox may take to be gone before `wait_dead` gives up: a hundred processes
# take 15 ms, the rest is for a loaded host.
DEATH_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Stdio:
    """Descriptors the sandbox gets as 0, 1 and 2; they stay the caller's to close."""

    stdin: int
    stdout: int
    stderr: int


@dataclass(frozen=True, slots=True)
class Ending:
    """A wait status, decoded: exactly one of the two is not None."""

    code: int | None
    signal: int | None

    @classmethod
    def of(cls, status: int) -> Self:
        if os.WIFSIGNALED(status):
            return cls(None, os.WTERMSIG(status))
        return cls(os.WEXITSTATUS(status), None)

    def __str__(self) -> str:
        if self.code is not None:
            return f"exit code {self.code}"
        try:
            return f"signal {signal.Signals(self.signal or 0).name}"
        except ValueError:
            return f"signal {self.signal}"  # a real-time one


class Sandbox:
    """One attempt's process tree."""

    def __init__(self, number: int, plan: Plan, status: socket.socket, cgroup: Cgroup | None):
        self.number = number
        self.plan = plan
        self.cgroup = cgroup
        self.pidfd: int | None = None  # from the zygote's reply on
        self.outbox: int | None = None  # the guest's outbox folder, from `ready` on; ours to close
        self.ready: Ready | None = None
        self.failed: SetupFailed | None = None
        self.exited: Exited | None = None
        self.is_killed = False
        self._status = status
        self.status_ended = False

    def status_fileno(self) -> int:
        return self._status.fileno()

    @property
    def is_asked(self) -> bool:
        """The zygote has not answered yet."""
        return self.pidfd is None and self.failed is None

    @property
    def host_pid(self) -> int | None:
        """Init's pid as this process sees it; None when it is gone. For people."""
        if self.pidfd is None:
            return None
        with open(f"/proc/self/fdinfo/{self.pidfd}") as lines:  # noqa: PTH123 - a line at a time
            for line in lines:
                name, _, value = line.partition(":")
                if name == "Pid":
                    return int(value) if int(value) > 0 else None
        return None

    def read_status_nowait(self) -> list[StatusRecord]:
        """What has come; also kept in `ready`, `failed`, `exited`. Empty list: nothing yet, or
        (`status_ended`) never again."""
        records: list[StatusRecord] = []
        while (record := self._receive()) is not None:
            records.append(record)
        return records

    def wait_record(self, timeout: float) -> StatusRecord | None:
        """The next record; None: there will be none, or not in time."""
        if not self.status_ended:
            wait_readable(self._status.fileno(), timeout)
        return self._receive()

    def _receive(self) -> StatusRecord | None:
        if self.status_ended:
            return None
        try:
            packet, fds, _ = packets.receive(self._status, RECORD_SIZE, 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # killed with something of ours unread
            packet, fds = b"", []
        if not packet:
            self.status_ended = True
            return None
        return self._note(packet, fds)

    def _note(self, packet: bytes, fds: list[int]) -> StatusRecord:
        record: StatusRecord | None = None
        try:
            record = _record.decode(packet)
        except (ValueError, RecursionError) as error:
            raise RemoteViolation(f"sandbox {self.number}: status record: {error}") from None
        finally:
            keep = isinstance(record, Ready) and self.outbox is None and len(fds) == 1
            if keep:
                self.outbox = fds[0]
            else:
                for fd in fds:
                    os.close(fd)
        match record:
            case Ready():
                self.ready = self.ready or record
            case SetupFailed():
                self.failed = self.failed or record
            case Exited():
                self.exited = self.exited or record
        return record

    def terminate(self) -> None:
        """SIGTERM to the guest, by way of init: a request, not an end."""
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """The whole tree, at once and without waiting. May come at any moment, and twice."""
        self.is_killed = True
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if self.cgroup is not None:
            self.cgroup.kill()

    def is_dead(self) -> bool:
        """Nothing of it lives. Before the zygote's answer nobody can know: False."""
        if self.pidfd is None:
            return self.failed is not None
        if not wait_readable(self.pidfd, 0):
            return False
        return self.cgroup is None or self.cgroup.is_empty()

    def wait_dead(self, timeout: float = DEATH_PATIENCE) -> bool:
        """Blocks; False: it still lives."""
        deadline = time.monotonic() + timeout
        if self.pidfd is not None:
            wait_readable(self.pidfd, timeout)
        if self.cgroup is not None:
            self.cgroup.wait_empty(max(0.0, deadline - time.monotonic()))
        return self.is_dead()

    def close(self) -> None:
        """Give back the descriptors. Kill it first: nobody can afterwards."""
        self._status.close()
        for fd in (self.pidfd, self.outbox):
            if fd is not None:
                os.close(fd)
        self.pidfd = self.outbox = None


class Zygote:
    """The engine's end of one zygote."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket):
        self.is_ready = False
        self.is_dead = False
        self._process = process
        self._channel = channel
        self._numbers = itertools.count(1)
        self._asked: dict[int, Sandbox] = {}
        # Packets the socket would not take: the zygote is behind. With copies of their descriptors.
        self._unsent: deque[tuple[bytes, list[int]]] = deque()

    @classmethod
    def start(cls, probe: Probe, *, preload: tuple[str, ...] = PRELOAD) -> Self:
        """Returns at once: requests may be made and wait until it is ready."""
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(theirs.fileno())],
                env={"LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # no terminal, and no Ctrl-C meant for us
                cwd="/",
            )
        folders = [os.path.abspath(folder) for folder in sys.path]
        config = ZygoteConfig(
            unprivileged=not probe.privileged,
            prefixes=probe.prefixes,
            prefix=probe.prefix,
            preload=preload,
        )
        ours.send("\0".join(folders).encode("utf-8", "surrogateescape"))
        ours.send(msgspec.msgpack.encode(config))
        ours.setblocking(False)
        return cls(process, ours)

    def fileno(self) -> int:
        """Readable: call `receive_nowait`."""
        return self._channel.fileno()

    @property
    def launcher_pid(self) -> int:
        return self._process.pid

    def wait_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.is_ready:
            if not wait_readable(self.fileno(), max(0.0, deadline - time.monotonic())):
                raise SetupRefused(f"the zygote was not ready after {timeout} s")
            self.receive_nowait()
            if self.is_dead:
                raise SetupRefused("the zygote died while it was starting")

    def spawn_nowait(
        self,
        plan: Plan,
        stdio: Stdio,
        *,
        link: int | None = None,
        cgroup: Cgroup | None = None,
        fail_step: str | None = None,
    ) -> Sandbox:
        """Ask for a sandbox. The handle is the caller's: to kill, and to close. The descriptors
        are copied by the kernel on the way: the caller closes its own."""
        if (plan.mode is Mode.GUEST) != (link is not None):
            raise LocalViolation(
                f"a sandbox in mode {plan.mode}: a guest, and only a guest, has a link"
            )
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        )
        ours.setblocking(False)
        sandbox = Sandbox(next(self._numbers), plan, ours, cgroup)
        fds = [
            (FdRole.STATUS, theirs.fileno()),
            (FdRole.STDIN, stdio.stdin),
            (FdRole.STDOUT, stdio.stdout),
            (FdRole.STDERR, stdio.stderr),
        ]
        if link is not None:
            fds.append((FdRole.LINK, link))
        join = cgroup.join() if cgroup is not None else None
        if join is not None:
            fds += [(FdRole.CGROUP_TASKS, fd) for fd in join.tasks]
            if join.unified is not None:
                fds.append((FdRole.CGROUP_DIR, join.unified))
        try:
            request = SpawnRequest(
                id=sandbox.number,
                plan=plan,
                fds=tuple(role for role, _fd in fds),
                fail_step=fail_step,
            )
            packet = msgspec.msgpack.encode(request)
            if len(packet) > REQUEST_SIZE:
                raise SetupRefused(
                    f"arguments and environment take {len(packet)} bytes, "
                    f"at most {REQUEST_SIZE} fit"
                )
            self._asked[sandbox.number] = sandbox
            self._send(packet, [fd for _role, fd in fds])
        except BaseException:
            self._asked.pop(sandbox.number, None)
            sandbox.close()
            raise
        finally:
            theirs.close()
            if join is not None:
                join.close()
        return sandbox

    def _send(self, packet: bytes, fds: list[int]) -> None:
        if self._unsent:
            self._unsent.append((packet, [os.dup(fd) for fd in fds]))
            return
        try:
            packets.send(self._channel, packet, fds)
        except BlockingIOError:
            self._unsent.append((packet, [os.dup(fd) for fd in fds]))
        except (BrokenPipeError, ConnectionResetError):
            self._died()

    def _flush(self) -> None:
        """Each answer frees room for what could not be sent, so answers are when to try again."""
        while self._unsent:
            packet, fds = self._unsent[0]
            try:
                packets.send(self._channel, packet, fds)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._died()
                return
            self._unsent.popleft()
            for fd in fds:
                os.close(fd)

    def receive_nowait(self) -> list[Sandbox]:
        """Sandboxes that the zygote has answered for since the last call: each has its pidfd, or
        `failed`. When the zygote is dead (`is_dead`), those it has not answered for have `failed`;
        the others tell of their death themselves. Raises SetupRefused if it could not start."""
        answered: list[Sandbox] = []
        while not self.is_dead:
            try:
                packet, fds, _ = packets.receive(self._channel, RECORD_SIZE, 1)
            except BlockingIOError:
                break
            except ConnectionResetError:
                packet, fds = b"", []
            if not packet:
                answered += self._died()
                break
            if not self.is_ready:
                self._greeted(msgspec.msgpack.decode(packet, type=ZygoteHello))
                continue
            answered.append(self._answered(msgspec.msgpack.decode(packet, type=SpawnReply), fds))
        self._flush()
        return answered

    def _greeted(self, hello: ZygoteHello) -> None:
        if hello.error is not None:
            self._died()
            raise SetupRefused(f"the zygote cannot start ({hello.step}): {hello.error}")
        self.is_ready = True

    def _answered(self, reply: SpawnReply, fds: list[int]) -> Sandbox:
        sandbox = self._asked.pop(reply.id)
        if reply.error is not None:
            sandbox.failed = SetupFailed(step="clone", errno=reply.errno, message=reply.error)
        else:
            (sandbox.pidfd,) = fds
            if sandbox.is_killed:
                sandbox.kill()
        return sandbox

    def _died(self) -> list[Sandbox]:
        self.is_dead = True
        left = list(self._asked.values())
        self._asked.clear()
        for sandbox in left:
            sandbox.failed = SetupFailed(step="zygote", errno=0, message="the zygote died")
        for _packet, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()
        return left

    def spawn(
        self,
        plan: Plan,
        stdio: Stdio,
        *,
        link: int | None = None,
        cgroup: Cgroup | None = None,
        fail_step: str | None = None,
    ) -> Sandbox:
        """`spawn_nowait`, and wait for the zygote's answer."""
        sandbox = self.spawn_nowait(plan, stdio, link=link, cgroup=cgroup, fail_step=fail_step)
        while sandbox.is_asked:
            wait_readable(self.fileno(), None)
            self.receive_nowait()
        return sandbox

    def close(self) -> None:
        """Hang up: the zygote exits, and every sandbox dies with it. Waits for its end."""
        self._died()
        self._channel.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_reason: object) -> None:
        self.close()


def wait_readable(fd: int, timeout: float | None) -> bool:
    """poll and not select: an engine with many sandboxes has descriptors above 1023."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))
