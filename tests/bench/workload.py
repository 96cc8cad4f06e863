"""What the benchmark's tasks do."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from functools import partial
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


# Small programs with the classic slip that makes each of them run for ever.


def count_bits(number: int, slip: bool) -> int:
    count = 0
    while number:
        number = number ^ (number - 1) if slip else number & (number - 1)
        count += 1
    return count


def common_divisor(a: int, b: int, slip: bool) -> int:
    while b:
        a, b = (b, a) if slip else (b, a % b)
    return a


def find_first(numbers: list[int], wanted: int, slip: bool) -> int:
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < wanted:
            low = middle if slip else middle + 1
        else:
            high = middle
    return low


def square_root(number: float, slip: bool) -> float:
    guess = number
    while abs(number - (guess if slip else guess * guess)) > 1e-9 or slip:
        guess = 0.5 * (guess + number / guess)
    return guess


def run_program(which: int, slip: bool) -> float:
    """One of the four over a few thousand inputs: some ten milliseconds, or for ever."""
    numbers = list(range(1, 4001))
    if which == 0:
        return sum(count_bits(number, slip) for number in numbers)
    if which == 1:
        return sum(common_divisor(number, 4001 - number, slip) for number in numbers)
    if which == 2:
        return sum(find_first(numbers, number, slip) for number in numbers)
    return sum(square_root(number, slip) for number in numbers)


def program(input: Any, ctx: Any) -> float:
    return run_program(ctx.spec["which"], ctx.spec["slip"])


# The worst tenant and its neighbour.


def small_work(input: Any, ctx: Any) -> int:
    """A few milliseconds of everything that honest tasks do."""
    path = Path("/tmp/notes")
    path.write_bytes(bytes(64 * 1024))
    for number in range(10):
        ctx.emit({"number": number})
    print("working")
    return sum(range(50_000))


def at_all_limits(input: Any, ctx: Any) -> None:
    """One way after the other, attempt by attempt: everything at once until the clock ends it; a
    flood of items; memory without end."""
    way = ctx.attempt % 4
    if way == 1:
        while True:
            ctx.emit("x" * 1000)
    if way == 2:
        held = []
        while True:
            held.append(bytearray(1 << 20))
    jobs: list[Callable[[Any, Any], None]] = [
        spin,
        partial(hoard, ctx.spec["memory"]),
        partial(litter, ctx.spec["file"]),
        shout,
    ]
    for number in range(ctx.spec["processes"]):
        with contextlib.suppress(BlockingIOError):  # at the cap
            if os.fork() == 0:
                jobs[number if number < len(jobs) else 0](input, ctx)
    spin(input, ctx)


def hoard(size: int, input: Any, ctx: Any) -> None:
    while True:
        held = bytearray(size // 2)
        del held


def litter(size: int, input: Any, ctx: Any) -> None:
    for number in itertools.count():
        for folder in ("/tmp", "."):
            path = Path(folder, f"litter-{os.getpid()}-{number % 3}")
            with contextlib.suppress(OSError):
                path.write_bytes(bytes(size))
                path.unlink()


def shout(input: Any, ctx: Any) -> None:
    while True:
        with contextlib.suppress(OSError):
            os.write(1, b"line\n" * 200)
