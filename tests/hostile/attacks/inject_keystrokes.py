"""Type into the operator's terminal (TIOCSTI, CVE-2017-5226)."""

import fcntl
import termios
from typing import Any

EXPECTED = "PermissionError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    for fd in (0, 1, 2):
        fcntl.ioctl(fd, termios.TIOCSTI, b"x")
    return "typed"
