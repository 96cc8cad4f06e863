"""The engine's end of the zygote: start it, ask it for sandboxes, notice its death.

A descriptor to watch and calls that never block, for `loop.add_reader`; `spawn` and the `wait_…`
calls are for callers without a loop. Requests may be made before the zygote is ready and while it
is behind: what the socket does not take waits here, with copies of its descriptors.

`Zygote.start` must be called in a thread that lives as long as the zygote shall: the kernel ties
the parent-death signal to the thread.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Self

import msgspec

from ..protocol.errors import LocalViolation, SetupRefused
from . import packets
from .cgroup import Cgroup
from .handle import RECORD_SIZE, Ending, Sandbox, wait_readable
from .probe import Probe
from .spec import (
    ENGINE_FD,
    REQUEST_SIZE,
    FdRole,
    Mode,
    Plan,
    SetupFailed,
    SpawnReply,
    SpawnRequest,
    ZygoteConfig,
    ZygoteHello,
)

__all__ = ["Ending", "Sandbox", "Stdio", "Zygote", "wait_readable"]

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


@dataclass(frozen=True, slots=True)
class Stdio:
    """Descriptors the sandbox gets as 0, 1 and 2; they stay the caller's to close."""

    stdin: int
    stdout: int
    stderr: int


class Zygote:
    """The engine's end of one zygote."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket):
        self.is_ready = False
        self.is_dead = False
        self._process = process
        self._channel = channel
        self._numbers = itertools.count(1)
        self._asked: dict[int, Sandbox] = {}
        # Failed with the zygote and not told of yet: its death may show while a request is sent.
        self._lost: list[Sandbox] = []
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
                self._died()
                break
            if not self.is_ready:
                self._greeted(msgspec.msgpack.decode(packet, type=ZygoteHello))
                continue
            answered.append(self._answered(msgspec.msgpack.decode(packet, type=SpawnReply), fds))
        self._flush()
        answered += self._lost
        self._lost.clear()
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
            elif sandbox.is_frozen:
                sandbox.freeze()
        return sandbox

    def _died(self) -> None:
        self.is_dead = True
        left = list(self._asked.values())
        self._asked.clear()
        self._lost += left
        for sandbox in left:
            sandbox.failed = SetupFailed(step="zygote", errno=0, message="the zygote died")
        for _packet, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        self._unsent.clear()

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
