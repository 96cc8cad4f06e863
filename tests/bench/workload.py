"""What the benchmark's tasks do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def nothing(input: Any, ctx: Any) -> None:
    return None


def emit(input: Any, ctx: Any) -> None:
    item = "x" * ctx.spec["size"]
    for _ in range(ctx.spec["count"]):
        ctx.emit(item)


def spin(input: Any, ctx: Any) -> None:
    while True:
        pass


def crowd(input: Any, ctx: Any) -> None:
    """A busy loop with descendants, of which it tells when they are all there."""
    for _ in range(ctx.spec["descendants"]):
        if os.fork() == 0:
            time.sleep(3600)
    ctx.emit("crowded")
    spin(input, ctx)


def add_lines(input: Any, ctx: Any) -> None:
    """Change a few files, and say so."""
    for path in ctx.spec["paths"]:
        with Path(ctx.workspace, path).open("ab") as file:
            file.write(b"another line\n")
    ctx.emit("changed")


def hand_on(input: Any, ctx: Any) -> list[str]:
    """A step of a chain: the value it was given, with one line changed or as it was."""
    lines: list[str] = next(iter(input.values())) if isinstance(input, dict) else input
    step = ctx.spec["step"]
    if ctx.spec["equal"]:
        return lines
    return [*lines[:step], f"{step:064}", *lines[step + 1 :]]
