"""Ten minutes of the worst tenant: `python tests/bench/worst_tenant.py [--seconds N]`.

A task that is at all its limits at once (as many processes as it may have, all of them busy;
memory near the cap, let go and taken again; files written and removed; a flood of items and of
lines; killed by one limit or another, tried again, and then submitted again) runs beside a
well-behaved neighbour in the same supervisor. The neighbour's pipeline of small tasks is run over
and over: before, meanwhile, after.

    latency   of one of the neighbour's tasks: from its `task.ready` to its `task.completed`
    memory    of the supervisor's processes: resident, and what is theirs alone, over time

What is asked: memory that stays flat, and a latency within twice its quiet value.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil
from casemate import Limits, Pipeline, PipelineEvent, Retry, Supervisor, Task, Timeouts

MIB = 1024 * 1024

# Half of a host of two cores: what is left over is the neighbour's and the supervisor's.
TENANT = Limits(memory="256MiB", cpu=1.0, pids=64, tmp="64MiB", disk="64MiB", output="4MiB")
NEIGHBOUR = Limits(memory="64MiB", pids=16)

# Between two looks at the supervisor's memory.
LOOK = 2.0
REST = 0.05  # between two runs of the neighbour


def tenant() -> Pipeline:
    pipeline = Pipeline("tenant")
    everything = ["error", "timeout", "memory", "pids", "disk", "output_limit", "crash"]
    pipeline.add_task(
        Task(
            "worst",
            "workload.py:at_all_limits",
            spec={"processes": 56, "memory": 160 * MIB, "file": 8 * MIB},
            limits=TENANT,
            timeouts=Timeouts(wall="10s"),
            retry=Retry(attempts=100, delay=0, on=everything),
        )
    )
    return pipeline


def neighbour() -> Pipeline:
    pipeline = Pipeline("neighbour")
    for number in range(5):
        pipeline.add_task(Task(f"t{number}", "workload.py:small_work", limits=NEIGHBOUR))
        if number:
            pipeline.add_edge(f"t{number - 1}", f"t{number}")
    return pipeline


@dataclass
class Look:
    """The supervisor's processes at one moment, in MiB by what they are."""

    at: float
    resident: dict[str, float]
    own: dict[str, float]


@dataclass
class Watched:
    run: str = ""  # the tenant's
    looks: list[Look] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)


def supervisors_processes() -> dict[str, psutil.Process]:
    """By what their command lines say they are."""
    [engine] = psutil.Process().children()
    found = {"engine": engine}
    for child in engine.children():
        words = " ".join(child.cmdline())
        name = "front" if "front" in words else "launcher"
        found[name] = child
        if name == "launcher":
            found["zygote"] = child.children()[0]
    return found


async def watch_memory(watched: Watched) -> None:
    processes = supervisors_processes()
    began = time.monotonic()
    while True:
        look = Look(time.monotonic() - began, {}, {})
        for name, process in processes.items():
            memory = process.memory_full_info()
            look.resident[name], look.own[name] = memory.rss / MIB, memory.uss / MIB
        watched.looks.append(look)
        await asyncio.sleep(LOOK)


async def latencies(supervisor: Supervisor, seconds: float) -> list[float]:
    """Of each of the neighbour's tasks, in milliseconds."""
    pipeline, ends, found = neighbour(), time.monotonic() + seconds, list[float]()
    while time.monotonic() < ends:
        ready: dict[str | None, PipelineEvent] = {}
        async for event in supervisor.execute(pipeline):
            if event.kind == "task.ready":
                ready[event.task] = event
            elif event.kind == "task.completed":
                found.append((event.at - ready[event.task].at).total_seconds() * 1e3)
            assert event.kind != "run.failed", event
        await asyncio.sleep(REST)
    return found


async def misbehave(supervisor: Supervisor, watched: Watched) -> None:
    ended = ""
    while ended != "run.cancelled":
        async for event in supervisor.execute(tenant()):
            watched.run, ended = event.run, event.kind
            if event.kind in ("task.retrying", "task.failed"):
                watched.endings[event.data["error"]["kind"]] += 1


async def measure(seconds: float, quiet: float) -> None:
    with tempfile.TemporaryDirectory() as state:
        async with Supervisor(state=state, max_parallel=4) as supervisor:
            await latencies(supervisor, 2)  # everything is warm
            watched = Watched()
            looking = asyncio.create_task(watch_memory(watched))
            before = await latencies(supervisor, quiet)
            at_rest = len(watched.looks)
            misbehaving = asyncio.create_task(misbehave(supervisor, watched))
            during = await latencies(supervisor, seconds)
            in_trouble = watched.looks[at_rest:]
            await supervisor.cancel(watched.run)
            await misbehaving
            after = await latencies(supervisor, quiet)
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
    tell_latency({"before": before, "during": during, "after": after})
    tell_memory(in_trouble)
    print("the tenant's attempts ended by:", dict(watched.endings.most_common()))


def tell_latency(found: dict[str, list[float]]) -> None:
    print(f"{'neighbour, ms a task':22} {'tasks':>7} {'median':>8} {'p95':>8}")
    for when, values in found.items():
        middle, high = statistics.median(values), statistics.quantiles(values, n=20)[-1]
        print(f"{when:22} {len(values):7} {middle:8.1f} {high:8.1f}")
    ratio = statistics.median(found["during"]) / statistics.median(found["before"])
    print(f"during / before: {ratio:.2f} (asked: at most 2)")


def tell_memory(looks: list[Look]) -> None:
    """In six parts of the time under attack, so that a slope shows."""
    part = max(1, len(looks) // 6)
    parts = [looks[start : start + part] for start in range(0, part * 6, part)]
    parts = [each for each in parts if each]
    print("supervisor, MiB (its own), in sixths of the time; the peak")
    for name in looks[0].own:
        shown = " ".join(
            f"{statistics.median(look.own[name] for look in each):7.1f}" for each in parts
        )
        peak = max(look.own[name] for look in looks)
        print(f"  {name:9} {shown}   {peak:7.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--quiet", type=float, default=30.0, help="before and after")
    chosen = parser.parse_args()
    asyncio.run(measure(chosen.seconds, chosen.quiet))


if __name__ == "__main__":
    main()
