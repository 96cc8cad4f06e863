"""The n-th call that changes files fails, is its process's last, or is the last before the power
goes.

    child     a fork that puts itself, and whatever it starts, behind a seccomp filter: calls that
              change files wait for the word of whoever holds the listener; then it does its work
    parent    lets each of them pass, counting those below one folder, and at the n-th does what the
              fault says

Counting in the kernel's own queue catches every thread and process, Python and SQLite alike;
nothing of the code under test is patched. It needs no privilege and no compiler. What a sandbox
writes within its own mount namespace is not below the folder by its path there: it does not count.

    kill      SIGKILL to the calling process instead of the call
    torn      half of a write reaches the file, then SIGKILL
    lost      SIGKILL, and whatever was written to any file since its last fsync is gone, and so is
              each name that was renamed since its folder was synced: what a power loss may leave
    EIO, ENOSPC   the call is refused once, and the process goes on

A loss is made worse than most file systems would, with two mercies: names that were made or removed
(not renamed) since their folder was synced stay so. `lost` is for work that is one process alone.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from casemate.sandbox import syscalls

__all__ = ["FAULTS", "Outcome", "disturbed"]

FAULTS = ("kill", "torn", "lost", "EIO", "ENOSPC")


class _Call(NamedTuple):
    """Which arguments say what a call changes: `descriptor` (of the file, or of the folder that
    `path` begins at), `path`, and for a rename `target`, which follows its own folder."""

    descriptor: int | None = 0
    path: int | None = None
    target: int | None = None


_CALLS = {
    "write": _Call(),
    "writev": _Call(),
    "pwrite64": _Call(),
    "ftruncate": _Call(),
    "fallocate": _Call(),
    "sendfile": _Call(),
    "copy_file_range": _Call(2),
    "fsync": _Call(),
    "fdatasync": _Call(),
    "rename": _Call(None, 0, 1),
    "renameat": _Call(0, 1, 3),
    "renameat2": _Call(0, 1, 3),
    "unlink": _Call(None, 0),
    "unlinkat": _Call(0, 1),
    "rmdir": _Call(None, 0),
    "mkdir": _Call(None, 0),
    "mkdirat": _Call(0, 1),
    "link": _Call(None, 1),
    "linkat": _Call(2, 3),
    "symlink": _Call(None, 1),
    "symlinkat": _Call(1, 2),
}
_SYNCS = frozenset({"fsync", "fdatasync"})
# aarch64 has only the calls with `at`.
_NUMBERS = {syscalls.ARCH.numbers[name]: name for name in _CALLS if name in syscalls.ARCH.numbers}

# linux/seccomp.h: struct seccomp_notif, struct seccomp_notif_resp and their ioctls.
_NOTIFICATION = struct.Struct("QIIiIQ6Q")
_ANSWER = struct.Struct("QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_PAGE = 4096
_AT_FDCWD = 0xFFFFFF9C


@dataclass(frozen=True)
class Outcome:
    calls: int  # that changed files below the folder
    status: int  # of the child, as `os.waitstatus_to_exitcode` gives it
    told: list[int]  # what it passed to `tell`


def disturbed(
    work: Callable[[Callable[[int], None]], int], folder: Path, fault: str, nth: int
) -> Outcome:
    """Do `work(tell)` in a fork, with one fault; returns when everything it started is dead. The
    forking process must have no threads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            ours.close()
            listener = _listen()
            socket.send_fds(theirs, [b"listener"], [listener])
            os.close(listener)
            status = work(lambda number: theirs.sendall(struct.pack("q", number)))
        finally:
            os._exit(status)
    theirs.close()
    _, [listener], _, _ = socket.recv_fds(ours, 16, 1)
    try:
        calls = _Parent(listener, pid, folder, fault, nth).serve()
        _, status = os.waitpid(pid, 0)
        told = []
        while packet := ours.recv(8):
            told.append(struct.unpack("q", packet)[0])
    finally:
        os.close(listener)
        ours.close()
    return Outcome(calls, os.waitstatus_to_exitcode(status), told)


def _listen() -> int:
    """Put this process behind the filter; the descriptor that its calls are told on."""
    program = [(_LOAD_NUMBER, 0, 0, 0)]
    for number in _NUMBERS:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_USER_NOTIF)]
    program.append((_RETURN, 0, 0, _RET_ALLOW))
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    address = ctypes.cast(ctypes.c_char_p(code), ctypes.c_void_p).value
    syscalls.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    return syscalls.seccomp(
        syscalls.SECCOMP_SET_MODE_FILTER,
        syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER,
        struct.pack("HxxxxxxP", len(program), address),
    )


class _Parent:
    def __init__(self, listener: int, pid: int, folder: Path, fault: str, nth: int) -> None:
        self._listener = listener
        self._pid = pid
        self._folder = str(folder.resolve())
        self._fault = fault
        self._nth = nth
        self._calls = 0
        self._unsynced: dict[str, bytes] = {}  # files as they were when they were last synced
        self._renamed: list[tuple[str, str]] = []

    def serve(self) -> int:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            [(_, happened)] = poll.poll()
            if not happened & select.POLLIN:
                return self._calls  # everything behind the filter has ended
            buffer = array.array("B", bytes(_NOTIFICATION.size))
            try:
                fcntl.ioctl(self._listener, _RECEIVE, buffer, True)
            except FileNotFoundError:
                continue  # killed while it waited
            ticket, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
            self._answer(ticket, self._judge(pid, _NUMBERS[number], arguments))

    def _answer(self, ticket: int, refusal: int) -> None:
        flags = 0 if refusal else _CONTINUE
        with contextlib.suppress(FileNotFoundError):  # it is dead, by our hand
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(ticket, 0, -refusal, flags))

    def _judge(self, pid: int, name: str, arguments: list[int]) -> int:
        """The error to refuse a call with, or 0."""
        call = _CALLS[name]
        try:
            path = self._path(pid, arguments, call.descriptor, call.path)
            is_ours = path.startswith(self._folder)
        except OSError:
            is_ours = False  # a sandbox that nobody may look into, or a descriptor that is none
        if not is_ours:
            return 0
        self._calls += 1
        if self._calls != self._nth:
            if self._fault == "lost":
                self._note(pid, name, path, arguments)
            return 0
        if self._fault in ("EIO", "ENOSPC"):
            return int(getattr(errno, self._fault))
        if self._fault == "torn" and name in ("write", "pwrite64"):
            self._tear(pid, name, arguments)
        os.kill(pid, signal.SIGKILL)  # of any thread: its process
        if self._fault == "lost":
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
            self._lose()
        return 0

    def _path(
        self, pid: int, arguments: list[int], descriptor: int | None, path: int | None
    ) -> str:
        number = _AT_FDCWD if descriptor is None else arguments[descriptor] & 0xFFFFFFFF
        name = "cwd" if number == _AT_FDCWD else f"fd/{number}"
        below = os.readlink(f"/proc/{pid}/{name}")
        return below if path is None else os.path.join(below, self._text(pid, arguments[path]))

    def _text(self, pid: int, address: int) -> str:
        found = b""
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            while b"\0" not in found:
                # By pages: the one after its last need not be there.
                at = address + len(found)
                memory.seek(at)
                found += memory.read(_PAGE - at % _PAGE)
        return os.fsdecode(found.partition(b"\0")[0])

    # What a power loss takes away.

    def _note(self, pid: int, name: str, path: str, arguments: list[int]) -> None:
        call = _CALLS[name]
        if name in _SYNCS:
            self._unsynced.pop(path, None)
            self._renamed = [
                (old, new) for old, new in self._renamed if os.path.dirname(new) != path
            ]
        elif call.path is None:
            if path not in self._unsynced:
                assert call.descriptor is not None
                file = Path(f"/proc/{pid}/fd/{arguments[call.descriptor]}")
                self._unsynced[path] = file.read_bytes()
        elif call.target is not None:
            folder = None if call.descriptor is None else call.target - 1
            new = self._path(pid, arguments, folder, call.target)
            self._unsynced = {_moved(at, path, new): was for at, was in self._unsynced.items()}
            self._renamed = [
                (_moved(was, path, new), _moved(at, path, new)) for was, at in self._renamed
            ]
            self._renamed.append((path, new))

    def _lose(self) -> None:
        for path, data in self._unsynced.items():
            if os.path.exists(path):
                Path(path).chmod(0o600)
                Path(path).write_bytes(data)
        for old, new in reversed(self._renamed):
            if os.path.exists(new):
                os.rename(new, old)

    def _tear(self, pid: int, name: str, arguments: list[int]) -> None:
        half = arguments[2] // 2
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(arguments[1])
            data = memory.read(half)
        with Path(f"/proc/{pid}/fd/{arguments[0]}").open("r+b") as file:
            file.seek(arguments[3] if name == "pwrite64" else 0)
            file.write(data)


def _moved(path: str, old: str, new: str) -> str:
    """Where what was at `path` is, after a rename of it or of a folder above it."""
    return new + path[len(old) :] if path == old or path.startswith(old + "/") else path
