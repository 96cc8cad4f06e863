"""What observers cost a run, and whether each of them got it whole.

    python tests/bench/observers.py [--observers 50] [--stalled 10] [--events 1000000]

One task says E items of 200 bytes as fast as it is let, twice: with nobody there, and with N
observers, of whom M have stopped reading. The run is paused before its first item, and goes on when
all of them are attached. Printed are the processor times of the engine and of the front per event,
the time it took, and for each of the others whether it got every seq once and in order.

Observers are `casemate.observe` in a few processes of the lowest priority: on two cores forty of
them need many times what the run does, so they are still catching up, by replay, long after its
end. The stalled ones are sockets that subscribe to everything and read nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import casemate
import psutil
import zmq
from casemate import Limits, Pipeline, Supervisor, Timeouts
from casemate.supervisor.state import StateDirectory, SupervisorRecord

# In one process: more would only wait for one another.
PER_PROCESS = 10


def speak(input: dict[str, int], ctx: casemate.RuntimeContext) -> None:
    time.sleep(1)  # and is paused meanwhile
    item = "x" * input["size"]
    for _ in range(input["events"]):
        ctx.emit(item)


# ------------------------------------------------------------------------------ observers


async def observe(run: str, state: str, count: int) -> None:
    async def watch() -> dict[str, int | bool]:
        seen, is_whole = 0, True
        async for event in casemate.observe(run, state=state):
            if not seen:
                print("attached", flush=True)
            is_whole &= event.seq == seen + 1
            seen = event.seq
        return {"seen": seen, "is_whole": is_whole}

    print(json.dumps(await asyncio.gather(*(watch() for _ in range(count)))), flush=True)


def stall(state: str, count: int) -> None:
    record = record_of(Path(state))
    context = zmq.Context()
    for _ in range(count):
        deaf = context.socket(zmq.SUB)
        deaf.rcvhwm = 1
        deaf.subscribe(b"")
        deaf.connect(record.events)
        assert deaf.poll(60_000)  # it is connected, and has read its last
        print("attached", flush=True)
    sys.stdin.read()
    context.destroy(linger=0)


class Watchers:
    """Processes of observers, each of whom says when it is attached."""

    def __init__(self, state: Path, run: str, watching: int, stalled: int) -> None:
        here = [sys.executable, os.path.abspath(__file__), "--state", str(state), "--run", run]

        def start(what: str, count: int) -> subprocess.Popen[str]:
            command = [*here, what, str(count)]
            pipe = subprocess.PIPE
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

        counts = [min(PER_PROCESS, watching - first) for first in range(0, watching, PER_PROCESS)]
        self._watching = [start("--watch", count) for count in counts]
        self._stalled = [start("--stall", stalled)] if stalled else []
        for each, count in zip(self._watching + self._stalled, [*counts, stalled], strict=False):
            assert each.stdout is not None
            for _ in range(count):
                assert each.stdout.readline() == "attached\n"

    def finish(self) -> list[dict[str, int | bool]]:
        found = []
        for each in self._watching:
            out, _ = each.communicate()
            found += json.loads(out.splitlines()[-1])
        for each in self._stalled:
            each.communicate()
        return found


# ------------------------------------------------------------------------------ the run


@dataclass(frozen=True)
class Cost:
    events: int
    seconds: float
    engine: float  # microseconds of processor an event
    front: float


def record_of(state: Path) -> SupervisorRecord:
    [record] = StateDirectory.open_existing(state).living_supervisors()
    return record


def used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def measure(
    state: Path, events: int, size: int, watching: int, stalled: int
) -> tuple[Cost, list[dict[str, int | bool]]]:
    pipeline = Pipeline("observed")
    pipeline.task(speak, id="speak", limits=Limits(output="64GiB"), timeouts=Timeouts(wall="24h"))
    async with Supervisor(state=state) as supervisor:
        run = await supervisor.submit(pipeline, {"events": events, "size": size})
        while (await supervisor.wait_committed(run, 0))[0] < 4:  # started
            await asyncio.sleep(0.01)
        await supervisor.pause(run)
        watchers = await asyncio.to_thread(Watchers, state, run, watching, stalled)
        engine = psutil.Process(record_of(state).pid)
        [front] = [
            each for each in engine.children() if "supervisor.front" in " ".join(each.cmdline())
        ]
        before = time.monotonic(), used(engine), used(front)
        await supervisor.resume(run)
        seq, has_ended = 0, False
        while not has_ended:
            seq, has_ended = await supervisor.wait_committed(run, seq)
        cost = Cost(
            events=seq,
            seconds=time.monotonic() - before[0],
            engine=(used(engine) - before[1]) / seq * 1e6,
            front=(used(front) - before[2]) / seq * 1e6,
        )
        return cost, await asyncio.to_thread(watchers.finish)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--observers", type=int, default=50)
    parser.add_argument("--stalled", type=int, default=10)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=200)
    # Of a process of observers.
    parser.add_argument("--state")
    parser.add_argument("--run")
    parser.add_argument("--watch", type=int)
    parser.add_argument("--stall", type=int)
    given = parser.parse_args()
    if given.watch or given.stall:
        os.nice(19)
    if given.watch:
        asyncio.run(observe(given.run, given.state, given.watch))
    elif given.stall:
        stall(given.state, given.stall)
    else:
        compare(given.observers, given.stalled, given.events, given.size)


def compare(observers: int, stalled: int, events: int, size: int) -> None:
    watching = observers - stalled
    print(f"{'observers':>10} {'events':>9} {'seconds':>8} {'engine':>12} {'front':>12}")
    for there in (False, True):
        with tempfile.TemporaryDirectory(prefix="casemate-observed-") as folder:
            counts = (watching, stalled) if there else (0, 0)
            cost, found = asyncio.run(measure(Path(folder) / "state", events, size, *counts))
        print(
            f"{sum(counts):>10} {cost.events:>9} {cost.seconds:>8.1f} "
            f"{cost.engine:>9.2f} µs {cost.front:>9.2f} µs",
            flush=True,
        )
    whole = sum(each["is_whole"] and each["seen"] == cost.events for each in found)
    print(f"{whole} of {watching} that read got every seq once, in order; {stalled} read nothing")
    sys.exit(0 if whole == watching else 1)


if __name__ == "__main__":
    main()
