"""What the tasks of the table do: fail in one way each, for so many attempts, and be good then.

`ctx.spec` names the way and the first good attempt. A task that fails by its sandbox (it cannot be
built, it may not take the time to start) is never good.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate import RecoveryAction, ValidationResult
from casemate.hostile.inside import call_by_number, wait_for_death, write_link


def error(ctx: Any) -> object:
    raise ValueError("on purpose")


def invalid_output(ctx: Any) -> object:
    value: list[object] = []
    value.append(value)
    return value


def not_valid(ctx: Any) -> object:
    return "poor"


def busy(ctx: Any) -> object:
    while True:
        pass


def silent(ctx: Any) -> object:
    while True:
        time.sleep(60)


def balloon(ctx: Any) -> object:
    held = []
    while True:
        held.append(bytes([1]) * (1 << 20))


def threads(ctx: Any) -> object:
    while True:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


def large_file(ctx: Any) -> object:
    with Path("/tmp/file").open("wb") as file:
        file.truncate(1 << 40)
    return "made"


def flood(ctx: Any) -> object:
    while True:
        ctx.emit(b"x" * 100_000)


def crash(ctx: Any) -> object:
    os.abort()


def violation(ctx: Any) -> object:
    if platform.machine() == "x86_64":
        call_by_number(0x4000_0000 + 39)  # x32's getpid
    else:
        os.kill(os.getpid(), signal.SIGSYS)
    return "called"


def protocol(ctx: Any) -> object:
    write_link(b"\xff" * 1000)
    wait_for_death()


def victim(ctx: Any) -> object:
    ctx.emit("kill me")
    wait_for_death()


WAYS: dict[str, Callable[[Any], object]] = {
    way.__name__: way
    for way in (
        error, invalid_output, not_valid, busy, silent, balloon, threads, large_file, flood, crash,
        violation, protocol, victim,
    )
}  # fmt: skip


def act(input: Any, ctx: Any) -> object:
    if ctx.attempt >= ctx.spec["good"]:
        return "good"
    return WAYS[ctx.spec["way"]](ctx)


def before(input: Any, ctx: Any) -> str:
    return "before"


def instead(input: Any, ctx: Any) -> str:
    return "by the fallback"


def after(input: Any, ctx: Any) -> object:
    return input["task"]


def write(input: Any, ctx: Any) -> str:
    """A file of its own from the second time on."""
    name = f"{ctx.task_id}" if ctx.attempt > 1 else "same"
    Path(ctx.workspace, name).write_text(ctx.task_id)
    return "written"


def is_good(output: Any) -> ValidationResult:
    return ValidationResult(output != "poor", ["it is poor"])


# The answers, as functions; the rules say the same.


def retry(error: Any) -> RecoveryAction:
    return RecoveryAction.retry(after=0)


def skip(error: Any) -> RecoveryAction:
    return RecoveryAction.skip("skipped")


def fallback(error: Any) -> RecoveryAction:
    return RecoveryAction.fallback("other")


def rollback(error: Any) -> RecoveryAction:
    return RecoveryAction.rollback("before")


def fail(error: Any) -> RecoveryAction:
    return RecoveryAction.fail()
