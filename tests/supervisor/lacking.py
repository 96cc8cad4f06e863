"""A command as on a host that lacks something: `python lacking.py PIECE... -- COMMAND`. A filter of
system calls, which the command and all that it starts inherit, answers as such a kernel would; so
what is missing is really missing, to casemate's probe and to its sandboxes alike."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from casemate.sandbox import syscalls

# Which call, what it is answered, and which bits of its first argument it is answered so for (0:
# always).
PIECES = {
    "landlock": ("landlock_create_ruleset", errno.ENOSYS, 0),
    "landlock switched off": ("landlock_create_ruleset", errno.EOPNOTSUPP, 0),
    "landlock refused": ("landlock_create_ruleset", errno.EPERM, 0),
    "seccomp": ("seccomp", errno.EINVAL, 0),
    "user": ("unshare", errno.EPERM, syscalls.CLONE_NEWUSER),
    "pid": ("unshare", errno.EPERM, syscalls.CLONE_NEWPID),
    "mount": ("unshare", errno.EPERM, syscalls.CLONE_NEWNS),
    "net": ("unshare", errno.EINVAL, syscalls.CLONE_NEWNET),
    "uts": ("unshare", errno.EINVAL, syscalls.CLONE_NEWUTS),
    "ipc": ("unshare", errno.EINVAL, syscalls.CLONE_NEWIPC),
    "cgroup": ("unshare", errno.EINVAL, syscalls.CLONE_NEWCGROUP),
    "clone3": ("clone3", errno.ENOSYS, 0),
    "prctl": ("prctl", errno.EPERM, 0),
}

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
NUMBER, FIRST_ARGUMENT = 0, 16
ALLOW, FAIL = 0x7FFF_0000, 0x0005_0000


def program(pieces: list[str]) -> bytes:
    code = b""
    for piece in pieces:
        name, answer, bits = PIECES[piece]
        for instruction in (
            (LOAD, 0, 0, NUMBER),
            (EQUAL, 0, 3, syscalls.ARCH.numbers[name]),
            (LOAD, 0, 0, FIRST_ARGUMENT) if bits else (LOAD, 0, 0, NUMBER),
            (ANY_BIT, 0, 1, bits) if bits else (EQUAL, 0, 1, syscalls.ARCH.numbers[name]),
            (RETURN, 0, 0, FAIL | answer),
        ):
            code += struct.pack("=HBBI", *instruction)
    return code + struct.pack("=HBBI", RETURN, 0, 0, ALLOW)


def main() -> None:
    words = sys.argv[1:]
    pieces, command = words[: words.index("--")], words[words.index("--") + 1 :]
    code = program(pieces)
    held = ctypes.create_string_buffer(code, len(code))
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.seccomp(
        syscalls.SECCOMP_SET_MODE_FILTER,
        0,
        struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held)),
    )
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
