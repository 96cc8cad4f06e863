"""What deciding costs: µs a step of the core, for graphs of 1 000, 10 000 and 50 000 tasks.

    python tests/bench/core_scheduling.py [--tasks N ...] [--repeat R]

Each run is driven to its end by an engine that answers at once: three steps a task (Started, Told,
Ended), and one Active. Submitting is timed apart, since it is linear in the graph by nature. The
last column shows linearity: it should not grow with the graph. Medians of R runs.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections import deque
from collections.abc import Callable

from casemate.protocol.pipeline import (
    CommandEntry,
    Edge,
    Limits,
    PipelineSpec,
    Retry,
    TaskSpec,
    Timeouts,
)
from casemate.supervisor.core.commands import Spawn
from casemate.supervisor.core.events import Active, Ended, Input, Started, Submit, Told
from casemate.supervisor.core.scheduler import Scheduler
from msgspec import Raw

NOTHING = Raw(b"\xc0")
LIMITS = Limits(memory=1, cpu=None, pids=64, files=64, tmp=1, disk=1, output=1)
TIMEOUTS = Timeouts(start=10, wall=3600, idle=60, cpu=60, grace=0)
RETRY = Retry(attempts=3, delay=1, backoff=2, max_delay=60, jitter=0.1, on=("error",))


def pipeline(tasks: int, edges: list[tuple[int, int]]) -> PipelineSpec:
    names = [f"task-{number:05}" for number in range(tasks)]
    return PipelineSpec(
        name="bench",
        tasks=tuple(
            TaskSpec(
                id=name,
                execute=CommandEntry(argv=("true",)),
                spec=NOTHING,
                sources=(),
                env={},
                limits=LIMITS,
                timeouts=TIMEOUTS,
                retry=RETRY,
            )
            for name in names
        ),
        edges=tuple(Edge(names[source], names[to]) for source, to in edges),
        root="/",
    )


def chain(tasks: int) -> PipelineSpec:
    return pipeline(tasks, [(number - 1, number) for number in range(1, tasks)])


def wide(tasks: int) -> PipelineSpec:
    """One, then all but two side by side, then one."""
    middle = range(1, tasks - 1)
    return pipeline(tasks, [(0, number) for number in middle] + [(n, tasks - 1) for n in middle])


def layers(tasks: int) -> PipelineSpec:
    """Layers of a hundred, each task with three inputs in the layer before."""
    return pipeline(
        tasks,
        [
            ((number // 100 - 1) * 100 + (number + step) % 100, number)
            for number in range(100, tasks)
            for step in (1, 3, 7)
        ],
    )


def drive(spec: PipelineSpec, max_parallel: int) -> tuple[float, float, float, int]:
    """Seconds submitting, seconds stepping, the worst single step, steps."""
    scheduler = Scheduler(max_parallel=max_parallel, memory_budget=2**40)
    now = 0.0
    gc.collect()
    before = time.perf_counter()
    commands = scheduler.step(now, Submit("r", spec, NOTHING, NOTHING, seed=1))
    submitting = time.perf_counter() - before
    live = deque(command for command in commands if isinstance(command, Spawn))
    stepping = worst = 0.0
    steps = 0
    while live:
        spawn = live.popleft()
        said: list[Input] = [
            Started("r", spawn.task, spawn.attempt, pid=1),
            Active("r", spawn.task, spawn.attempt),
            Told("r", spawn.task, spawn.attempt),
            Ended("r", spawn.task, spawn.attempt, NOTHING, None),
        ]
        for input in said:
            now += 0.0001
            before = time.perf_counter()
            commands = scheduler.step(now, input)
            scheduler.deadline()
            took = time.perf_counter() - before
            stepping += took
            worst = max(worst, took)
            steps += 1
            live.extend(command for command in commands if isinstance(command, Spawn))
    return submitting, stepping, worst, steps


def active(spec: PipelineSpec) -> float:
    """Seconds an Active step takes beside 64 attempts that live."""
    scheduler = Scheduler(max_parallel=64, memory_budget=2**40)
    commands = scheduler.step(0.0, Submit("r", spec, NOTHING, NOTHING, seed=1))
    spawns = [command for command in commands if isinstance(command, Spawn)]
    for spawn in spawns:
        scheduler.step(0.0, Started("r", spawn.task, spawn.attempt, pid=1))
    said = [Active("r", spawn.task, spawn.attempt) for spawn in spawns]
    before = time.perf_counter()
    for turn in range(1000):
        for input in said:
            scheduler.step(turn * 0.01, input)
            scheduler.deadline()
    return (time.perf_counter() - before) / (1000 * len(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    shapes: dict[str, Callable[[int], PipelineSpec]] = {
        "chain": chain,
        "wide": wide,
        "layers": layers,
    }
    print(
        f"{'graph':8}{'tasks':>8}{'submit ms':>11}{'steps':>9}{'µs/step':>9}{'worst ms':>10}"
        f"{'µs/task in all':>16}"
    )
    for name, shape in shapes.items():
        for tasks in options.tasks:
            spec = shape(tasks)
            runs = [drive(spec, max_parallel=64) for _ in range(options.repeat)]
            submitting, stepping, worst, steps = (
                statistics.median(part) for part in zip(*runs, strict=True)
            )
            print(
                f"{name:8}{tasks:>8}{submitting * 1e3:>11.1f}{steps:>9.0f}"
                f"{stepping / steps * 1e6:>9.2f}{worst * 1e3:>10.2f}"
                f"{(submitting + stepping) / tasks * 1e6:>16.1f}"
            )
    print(f"an Active step: {active(pipeline(options.tasks[0], [])) * 1e6:.2f} µs")


if __name__ == "__main__":
    main()
