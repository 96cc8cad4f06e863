"""Be born into a new user namespace.

Source: clone(2): what unshare gives, by another call; Docker's profile masks its flags.
"""

import signal
from typing import Any

from casemate.sandbox.syscalls import CLONE_NEWUSER

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True

# Not with CLONE_NEWUSER: of that the kernel complains, and no child is born.
CLONE_FS = 0x00000200


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("clone", CLONE_NEWUSER | CLONE_FS | signal.SIGCHLD, 0, 0, 0, 0)
