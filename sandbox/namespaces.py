"""Namespaces and the ids inside them.

There are two layers. The *zygote's* layer is made once: as an ordinary user a user namespace that
maps only our own id, and in it (or, as root, in the host's) a pid and a mount namespace. Every
sandbox then gets pid, ipc, uts and net namespaces from `clone3`, a mount and a cgroup namespace by
unshare, and at the very end a user namespace of its own. That last order is a wall: the sandbox's
user namespace owns no other namespace, so its (soon dropped) capabilities would rule over nothing,
and mounts made before are not locked against their own maker.

Ids are mapped by writing to files of /proc/self, by a descriptor of that folder where our own /proc
is read-only: in whichever /proc, "self" is right.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct

from . import packets, syscalls

__all__ = [
    "bring_up_loopback",
    "enter_sandbox_user",
    "enter_zygote_user",
    "make_idmap",
    "open_self",
    "reap",
    "write",
]


def open_self() -> int:
    return os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def write_own_maps(own: int, *, inside: tuple[int, int], outside: tuple[int, int]) -> None:
    """One (uid, gid) each; `own`: see `open_self`. Without privilege over the parent namespace the
    kernel wants setgroups denied first: leaving a group could otherwise gain access."""
    write("setgroups", "deny", own)
    write("uid_map", f"{inside[0]} {outside[0]} 1", own)
    write("gid_map", f"{inside[1]} {outside[1]} 1", own)


def write(path: str, text: str, folder: int | None = None) -> None:
    """One write(2), as files of the kernel want it; a tenth of what pathlib takes."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def enter_zygote_user() -> None:
    """Become the owner of namespaces without being root, under our own ids."""
    ids = (os.geteuid(), os.getegid())
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    own = open_self()
    try:
        write_own_maps(own, inside=ids, outside=ids)
    finally:
        os.close(own)


def enter_sandbox_user(inside_id: int, own: int) -> None:
    """The sandbox's own user namespace: last of all, see above."""
    outside = (os.geteuid(), os.getegid())
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    write_own_maps(own, inside=(inside_id, inside_id), outside=outside)


_IFREQ = struct.Struct("16sh22x")
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40


def bring_up_loopback() -> None:
    """127.0.0.1 inside: many test suites talk to themselves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as inet:
        fcntl.ioctl(inet, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP_RUNNING))


def make_idmap(owner: tuple[int, int], host_id: int) -> int:
    """A user namespace that says: files of `owner` on disk look like files of `host_id`.

    Handed to mount_setattr(MOUNT_ATTR_IDMAP). It needs a process to be born in it: a helper that
    hands over its folder in /proc and waits. The maps must be opened and written by us, since the
    kernel asks both for privilege over the parent namespace (root's).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            folder = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            packets.send(theirs, struct.pack("i", 0), [folder])
            theirs.recv(1)  # until the parent has what it wants and hangs up
        except OSError as error:
            theirs.send(struct.pack("i", error.errno or errno.EIO))
        finally:
            os._exit(0)
    theirs.close()
    try:
        answer, fds, _ = packets.receive(ours, 4, 1)
        if not fds:
            number = struct.unpack("i", answer)[0] if len(answer) == 4 else errno.EIO
            raise OSError(number, f"user namespace for an idmapped mount: {os.strerror(number)}")
        folder = fds[0]
        try:
            for name, inside in zip(("uid_map", "gid_map"), owner, strict=True):
                write(name, f"{inside} {host_id} 1", folder)
            return os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
    finally:
        ours.close()
        reap(pid)


def reap(pid: int) -> None:
    """The kernel may have done it for us: the zygote ignores SIGCHLD."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
