"""Ask for namespaces where a filter cannot read the flags.

Source: flatpak's CVE-2021-41133; moby#42680.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "OSError"
WALLS = ("seccomp",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("clone3")
