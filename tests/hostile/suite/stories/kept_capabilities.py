"""Keep capabilities: the kernel says they were dropped, and they were not.

Source: CVE-2022-24769 (Moby), CVE-2016-8867: sets that nobody looked at again.
"""

from __future__ import annotations

from ..require import require
from ..stage import Stage

WALLS = ("posture",)


def attack(stage: Stage) -> str:
    done = stage.lying({"capset": 0}, "echo", "it ran")
    require(done.stdout == "", "it ran")
    require(done.returncode == 125, f"exit code {done.returncode}: {done.stderr}")
    return "setup"
