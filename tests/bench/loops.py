"""Many small programs of which some run for ever: what the loops cost, and what is left of them.

    python tests/bench/loops.py [--tasks 200] [--loops 30] [--wall 2] [--parallel 2]

N tasks, each one of four small programs (`workload.py`); L of them, drawn by a fixed seed, have the
slip that makes it loop, and are killed at the wall limit. P attempts at once, on as many cores:
this program and all below it are bound to them.

The ideal is what no runner could beat with P slots. A loop holds a slot for its whole wall limit;
an honest program for as long as it takes by itself, which is measured here first, in this process,
without any sandbox. Their sum divided by P is the ideal, nothing for processes, walls and journal,
and as if the last slots fell free at one moment.

Before and after, a few tasks having run already so that what is made once is there: processes below
this program, open descriptors of the engine and of this program, and what the engine has resident.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import workload
from casemate import Limits, Pipeline, Supervisor, Task, Timeouts

PROGRAMS = 4

# How long after the run what it used may take to be given back: the journal's files are closed, and
# the slots' uids cleaned, after the last event has been seen.
SETTLING = 10.0


@dataclass(frozen=True)
class Held:
    """What there is at one moment."""

    processes: int  # below this program
    engine_descriptors: int
    own_descriptors: int
    engine_resident: int  # bytes


@dataclass(frozen=True)
class Outcome:
    total: float  # seconds, from the first event to the last
    ideal: float
    verdicts: dict[str, int]
    before: Held
    after: Held


def drawn(tasks: int, loops: int) -> list[bool]:
    """Which tasks loop: always the same ones."""
    chosen = set(random.Random(4).sample(range(tasks), loops))
    return [number in chosen for number in range(tasks)]


def alone(slips: list[bool]) -> float:
    """Seconds that the honest programs take one after another, by themselves."""
    began = time.perf_counter()
    for number, slip in enumerate(slips):
        if not slip:
            workload.run_program(number % PROGRAMS, slip=False)
    return time.perf_counter() - began


def pipeline(slips: list[bool], wall: float) -> Pipeline:
    what = Pipeline("loops")
    for number, slip in enumerate(slips):
        what.add_task(
            Task(
                f"t{number:03}",
                "workload.py:program",
                spec={"which": number % PROGRAMS, "slip": slip},
                limits=Limits(memory="64MiB", pids=16),
                timeouts=Timeouts(wall=wall),
            )
        )
    return what


def held() -> Held:
    own = psutil.Process()
    living = [each for each in own.children() if each.status() != psutil.STATUS_ZOMBIE]
    engine = max(living, key=psutil.Process.create_time)  # whoever embeds us may have one as well
    below = [each for each in own.children(recursive=True) if each.is_running()]
    return Held(len(below), engine.num_fds(), own.num_fds(), engine.memory_info().rss)


async def settled(before: Held) -> Held:
    """What there is when all that was used is given back, or will not be any more."""
    give_up = time.monotonic() + SETTLING
    while True:
        now = held()
        is_back = (
            now.processes <= before.processes
            and now.engine_descriptors <= before.engine_descriptors
            and now.own_descriptors <= before.own_descriptors
        )
        if is_back or time.monotonic() > give_up:
            return now
        await asyncio.sleep(0.02)


async def measure(state: Path, tasks: int, loops: int, wall: float, parallel: int) -> Outcome:
    slips = drawn(tasks, loops)
    ideal = (loops * wall + alone(slips)) / parallel
    async with Supervisor(state=state, max_parallel=parallel) as supervisor:
        async for _ in supervisor.execute(pipeline(drawn(4 * parallel, parallel), wall=0.2)):
            pass
        before = await settled(held())
        ends = Counter[str]()
        first = last = 0.0
        async for event in supervisor.execute(pipeline(slips, wall)):
            last = event.at.timestamp()
            first = first or last
            if event.kind == "task.completed":
                ends["completed"] += 1
            elif event.kind == "task.failed":
                ends[event.data["error"]["kind"]] += 1
        after = await settled(before)
    return Outcome(last - first, ideal, dict(ends), before, after)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--loops", type=int, default=30)
    parser.add_argument("--wall", type=float, default=2.0)
    parser.add_argument("--parallel", type=int, default=2)
    chosen = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: chosen.parallel]
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory(prefix="casemate-loops-") as state:
        it = asyncio.run(
            measure(Path(state), chosen.tasks, chosen.loops, chosen.wall, chosen.parallel)
        )
    ends = ", ".join(f"{count} {kind}" for kind, count in sorted(it.verdicts.items()))
    print(
        f"{chosen.tasks} tasks, {chosen.loops} for ever under wall {chosen.wall:g} s, "
        f"{chosen.parallel} at once on {len(cores)} cores: {ends}"
    )
    print(f"  total {it.total:.2f} s, ideal {it.ideal:.2f} s, {it.total / it.ideal:.3f} times it")
    for name, was, now in (
        ("processes", it.before.processes, it.after.processes),
        ("engine's descriptors", it.before.engine_descriptors, it.after.engine_descriptors),
        ("own descriptors", it.before.own_descriptors, it.after.own_descriptors),
        ("engine's MiB", it.before.engine_resident >> 20, it.after.engine_resident >> 20),
    ):
        print(f"  {name:<22}{was:>6} before{now:>6} after")


if __name__ == "__main__":
    main()
