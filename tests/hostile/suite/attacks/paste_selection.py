"""Paste into the operator's console (TIOCLINUX).

Source: CVE-2023-28100, flatpak.
"""

import errno
import fcntl
import pty
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("session", "seccomp")


def attack(target: dict[str, Any]) -> object:
    for fd in (0, 1, 2):
        paste(fd)
    return "pasted"


def outside(target: dict[str, Any]) -> object:
    _, terminal = pty.openpty()
    try:
        return paste(terminal)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):  # the kernel's word: no console
            raise
        return "reached"


def paste(fd: int) -> object:
    return fcntl.ioctl(fd, 0x541C, bytes((3,)))
