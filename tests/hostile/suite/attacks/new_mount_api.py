"""Mount by the newer calls, which filters written for mount(2) do not know.

Source: CVE-2022-0185: fsconfig; flatpak's CVE-2021-41133.
"""

from typing import Any

from ..inside import ask_kernel

EXPECTED = "PermissionError"
WALLS = ("seccomp", "capabilities")
RUNS_OUTSIDE = True
NEEDS = "sys_admin"


def attack(target: dict[str, Any]) -> object:
    return ask_kernel("fsopen")
