"""Ask for a system call that the filter's authors never heard of.

Source: new calls pass deny-lists (flatpak#4462, after CVE-2021-41133); ENOSYS for the unknown:
runc#2151.
"""

import os
from typing import Any

from ..inside import call_by_number

EXPECTED = "OSError"
WALLS = ("seccomp",)


def attack(target: dict[str, Any]) -> object:
    if number := call_by_number(2000):
        raise OSError(number, os.strerror(number))
    return "known"


def outside(target: dict[str, Any]) -> object:
    # One more that the filter's authors may not have heard of, which answers.
    return os.memfd_create("known")
