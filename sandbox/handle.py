"""A `Sandbox`: the handle that owns one attempt's process tree.

Descriptors to watch and calls that never block, for `loop.add_reader`; the `wait_…` calls are for
callers without a loop. It is three things held together, so that no sandbox can be lost track of:
the pidfd of its init, its cgroup, and the engine's end of its status socket.

    ask ──reply──> pidfd ──status──> ready or setup ──> exit      (each may be the last)

Killing it is SIGKILL to init (the kernel then kills its pid namespace) and to the cgroup. It is
dead when the pidfd is readable, which the kernel says only after the last process of the namespace
is gone, and the cgroup is empty: that is looked at, not assumed.

Freezing it is one word to the cgroup where there is v2's, and SIGSTOP to each process where there
is not (stopping.py). Both may come at any moment, and a frozen sandbox dies of `kill` at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from ..protocol.errors import RemoteViolation
from . import packets, posture, stopping
from .cgroup import Cgroup
from .spec import Exited, Plan, Ready, SetupFailed, StatusRecord

__all__ = ["RECORD_SIZE", "Ending", "Sandbox", "wait_readable"]

# A status record; the longest is a posture, of which the mounts are most. Read from inside the
# walls: not trusted.
RECORD_SIZE = 64 * 1024
_record = msgspec.msgpack.Decoder(StatusRecord)

# How long a killed sandbox may take to be gone before `wait_dead` gives up: a hundred processes
# take 15 ms, the rest is for a loaded host.
DEATH_PATIENCE = 30.0


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
        self.is_frozen = False  # it was told to; see `freeze`
        # By SIGSTOP of ours: pids as we see them, beside init; None: signals were not needed.
        self._stopped: frozenset[int] | None = None
        self._posture: dict[str, Any] | None = None
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
                if self.ready is None and self.failed is None:
                    told = self._told(record)
                    if wrong := posture.unlike(self.plan, told):
                        message = f"a wall is missing: {wrong}"
                        record = self.failed = SetupFailed(step="verify", errno=0, message=message)
                    else:
                        self.ready, self._posture = record, told
            case SetupFailed():
                self.failed = self.failed or record
            case Exited():
                self.exited = self.exited or record
        return record

    def _told(self, ready: Ready) -> dict[str, Any]:
        try:
            return posture.told(self.plan, ready.posture)
        except (ValueError, LookupError) as error:
            raise RemoteViolation(f"sandbox {self.number}: its posture: {error}") from None

    def posture(self) -> dict[str, Any]:
        """What is in force, as the kernel tells it; empty before `ready`. To be asked while its
        cgroup is there."""
        if self._posture is None:
            return {}
        try:
            limits = self.cgroup.in_force() if self.cgroup is not None else {}
        except OSError as error:
            limits = {"unreadable": str(error)}
        return {**self._posture, "limits": limits}

    def terminate(self) -> None:
        """SIGTERM to the guest, by way of init: a request, not an end."""
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def freeze(self) -> None:
        """Nothing of it runs until `thaw`; what is pending for it (bytes, signals) waits. Without
        waiting, at any moment, and as often as one likes.

        By cgroup it holds for what is not born yet: a sandbox asked for and not built stands still
        from its first instruction on. By signals, which need the zygote's answer (it sees to that:
        `Zygote.receive_nowait`), init is stopped first, wherever it is in its building, and can
        fork no more. It then takes milliseconds, and calling it again, now and then while the pause
        lasts, stops what a hostile tree may have slipped past it. A process inside learns of
        SIGSTOP: its parent sees it stopped.
        """
        self.is_frozen = True
        if self.cgroup is not None and self.cgroup.freeze_nowait():
            return
        if self.pidfd is not None:
            stopped = stopping.stop(self.pidfd, self._members)
            self._stopped = stopped | (self._stopped or frozenset())

    def thaw(self) -> None:
        self.is_frozen = False
        if self.cgroup is not None:
            self.cgroup.thaw_nowait()
        if self.pidfd is not None and self._stopped is not None:
            stopping.go_on(self.pidfd, self._stopped, self._members)
        self._stopped = None

    def _members(self) -> list[int]:
        """Its pids as we see them, init's among them or not."""
        if self.cgroup is not None and self.cgroup.folders:
            return self.cgroup.members()
        init = self.host_pid
        return [] if init is None else stopping.descendants(init)

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


def wait_readable(fd: int, timeout: float | None) -> bool:
    """poll and not select: an engine with many sandboxes has descriptors above 1023."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))
