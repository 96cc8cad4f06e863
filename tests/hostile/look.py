"""Tasks that look around and tell."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from casemate.hostile.inside import call_by_number

__all__ = ["call", "environment", "errors_of", "threads"]


def errors_of(calls: dict[str, list[list[int]]]) -> dict[str, list[int]]:
    """The errno of each system call, 0 for success."""
    return {
        name: [call_by_number(number, *arguments) for number, *arguments in each]
        for name, each in calls.items()
    }


def call(input: Any, ctx: Any) -> object:
    return errors_of(ctx.spec["calls"])


def threads() -> object:
    """The kernel's word on every thread of this process."""
    started, over = threading.Barrier(3), threading.Event()

    def stay() -> None:
        started.wait()
        over.wait()

    ours = [threading.Thread(target=stay) for _ in range(2)]
    for thread in ours:
        thread.start()
    started.wait()
    found = []
    for task in sorted(os.listdir("/proc/self/task")):
        lines = Path(f"/proc/self/task/{task}/status").read_text().splitlines()
        found.append({k: v.split() for k, v in (line.split(":", 1) for line in lines)})
    over.set()
    return found


def environment() -> object:
    return dict(os.environ)
