"""What attacks use: inside their sandbox the link's own descriptor and the host's go-ahead, outside
of it a child and namespaces to do no harm in, and system calls by name in both."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from casemate.protocol import codec
from casemate.protocol.messages import Artifact, Message, Result
from casemate.sandbox import syscalls
from msgspec import Raw

__all__ = [
    "BAD",
    "OUTPUT",
    "a_child",
    "artifact_file",
    "ask_kernel",
    "call_by_number",
    "claim_artifact",
    "claim_output",
    "daemonize",
    "find_link",
    "find_listener",
    "frame",
    "in_own_namespaces",
    "mark_of",
    "say",
    "take_name",
    "wait_for_death",
    "wait_for_host",
    "write_link",
]

OUTPUT = Path("/casemate/out/output")

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_NAME = 15


def find_link() -> int:
    """The connected end that the guest speaks through: the one socket here with a peer."""
    for fd in _stream_sockets(listening=False):
        with socket.socket(fileno=os.dup(fd)) as found:
            try:
                found.getpeername()
            except OSError:
                continue
            return fd
    raise LookupError("no link among the descriptors")


def find_listener() -> int:
    """The socket that the link's one connection came in by."""
    return next(_stream_sockets(listening=True))


def _stream_sockets(*, listening: bool) -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            continue  # the descriptor of the listing itself
        if not is_socket:
            continue
        with socket.socket(fileno=os.dup(fd)) as found:
            is_ours = found.family == socket.AF_UNIX and found.type == socket.SOCK_STREAM
            if is_ours and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == listening:
                yield fd


def frame(body: bytes, flags: int = 0) -> bytes:
    """One ZMTP frame, as libzmq would write it."""
    if len(body) > 255:
        return bytes((flags | 2,)) + len(body).to_bytes(8, "big") + body
    return bytes((flags, len(body))) + body


def write_link(data: bytes) -> None:
    """Past libzmq, straight into the connection."""
    fd = find_link()
    left = memoryview(data)
    while left:
        select.select([], [fd], [])
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            continue


def say(*messages: Message) -> NoReturn:
    """Well-formed messages in one write, then nothing."""
    write_link(b"".join(frame(codec.encode(message)) for message in messages))
    wait_for_death()


def claim_output(size: int, digest: bytes | None = None) -> NoReturn:
    """Tell the supervisor that the output lies in the outbox."""
    digest = digest or hashlib.sha256(b"").digest()
    say(Result(output=Raw(b"\xc0"), digest=digest, size=size))


def artifact_file(number: int = 1) -> Path:
    """Where the supervisor looks for it."""
    return OUTPUT.with_name(f"artifact-{number}")


def claim_artifact(name: str, size: int, digest: bytes | None = None) -> NoReturn:
    """Tell the supervisor that the first artifact lies in the outbox, and end well."""
    digest = digest or hashlib.sha256(b"").digest()
    say(Artifact(name=name, size=size, digest=digest), Result(output=Raw(b"\xc0")))


def wait_for_death() -> NoReturn:
    while True:
        time.sleep(60)


def mark_of(run: str, task: str) -> str:
    """A process name that says which attack it belongs to, for whoever looks from the host."""
    return "cm" + hashlib.sha256(f"{run}/{task}".encode()).hexdigest()[:12]


def take_name(name: str) -> None:
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def daemonize(name: str) -> int:
    """A grandchild in a session of its own that lives for ever under `name`: its pid, once it has
    its name."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            take_name(name)
            os.write(tell, str(os.getpid()).encode())
            wait_for_death()
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(told, 20))


def wait_for_host(task: str) -> None:
    """Until the host has seen what it wanted to see."""
    while not Path("/sources", f"{task}.go").exists():
        time.sleep(0.005)


def call_by_number(number: int, *arguments: int) -> int:
    """A system call; its errno, 0 for success."""
    ctypes.set_errno(0)
    values = [ctypes.c_long(argument) for argument in arguments]
    result = _libc.syscall(ctypes.c_long(number), *values)
    return ctypes.get_errno() if result == -1 else 0


# A bad descriptor, pid, flag and address alike: what the kernel itself would complain of.
BAD = -1

# How a filter refuses; the kernel says so too, of what it lacks or of what takes a capability.
_REFUSED = (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)


def ask_kernel(name: str, *arguments: int) -> str:
    """A system call with arguments that it must complain of, BAD where none are given: the
    complaint shows that the kernel was reached. A refusal is raised."""
    answer = call_by_number(syscalls.ARCH.numbers[name], *(arguments or (BAD,) * 6))
    if answer in _REFUSED:
        raise OSError(answer, os.strerror(answer), name)
    return f"{name} reached the kernel: {errno.errorcode.get(answer, answer)}"


@contextlib.contextmanager
def a_child() -> Iterator[int]:
    """The pid of a child that only waits, for a while."""
    child = os.fork()
    if child == 0:
        wait_for_death()
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_own_namespaces() -> None:
    """From here on this process has every capability over mounts that nobody else sees."""
    own = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP
    if _libc.unshare(own):
        raise OSError(ctypes.get_errno(), "unshare")
