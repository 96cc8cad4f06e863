"""The first table of figures: `make bench`. Each beside what it is held against, from one run.

    spawn      request to the guest's greeting, all walls; beside bubblewrap --unshare-all + python
    chain      100 no-op tasks one after another, durable
    wide       1 → 200 → 1, durable
    events     200-byte items of one task, a second from its start to its completion: through the
               link into the journal, while the front publishes and this program reads them
    kill       from the wall limit of a busy loop to the verdict in the journal, its tree dead; the
               same with 100 descendants

Medians. Timings on shared machines are noisy: compare within one run only.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from typing import Any

from casemate import Limits, Pipeline, PipelineEvent, Supervisor, Task, Timeouts

SMALL = Limits(memory="64MiB", pids=16)


def add(to: Pipeline, task: str, function: str, **options: Any) -> None:
    to.add_task(Task(task, f"workload.py:{function}", limits=SMALL, **options))


async def run(supervisor: Supervisor, what: Pipeline, input: Any = None) -> list[PipelineEvent]:
    events = [event async for event in supervisor.execute(what, input)]
    assert events[-1].kind == "run.completed", events[-1]
    return events


def span(events: list[PipelineEvent], first: str, last: str) -> float:
    """Seconds from the first event of one kind to the last of another, by the journal's stamps."""
    began = next(event.at for event in events if event.kind == first)
    ended = [event.at for event in events if event.kind == last][-1]
    return (ended - began).total_seconds()


async def chain(supervisor: Supervisor, length: int = 100) -> float:
    what = Pipeline("chain")
    for number in range(length):
        add(what, f"t{number:03}", "nothing")
        if number:
            what.add_edge(f"t{number - 1:03}", f"t{number:03}")
    return span(await run(supervisor, what), "run.started", "run.completed") / length * 1e3


async def wide(supervisor: Supervisor, width: int = 200) -> float:
    what = Pipeline("wide")
    add(what, "first", "nothing")
    add(what, "last", "nothing")
    for number in range(width):
        add(what, f"t{number:03}", "nothing")
        what.add_edge("first", f"t{number:03}")
        what.add_edge(f"t{number:03}", "last")
    seconds = span(await run(supervisor, what), "run.started", "run.completed")
    return (width + 2) / seconds


async def events(supervisor: Supervisor, count: int = 50_000) -> float:
    what = Pipeline("events")
    add(what, "source", "emit", spec={"count": count, "size": 200})
    heard = await run(supervisor, what)
    return count / span(heard, "task.started", "task.completed")


async def kill(supervisor: Supervisor, descendants: int = 0) -> float:
    wall = 1.0  # time enough to fork them
    task = Task(
        "spin",
        "workload.py:crowd",
        spec={"descendants": descendants},
        limits=Limits(memory="512MiB", pids=16 + descendants),
        timeouts=Timeouts(wall=wall),
    )
    what = Pipeline("kill")
    what.add_task(task)
    heard = [event async for event in supervisor.execute(what)]
    assert any(event.kind == "task.emitted" for event in heard), "killed before all were there"
    return (span(heard, "task.started", "task.failed") - wall) * 1e3


async def crowded(supervisor: Supervisor) -> float:
    return await kill(supervisor, descendants=100)


async def spawn(supervisor: Supervisor) -> float:
    what = Pipeline("spawn")
    add(what, "one", "nothing")
    return span(await run(supervisor, what), "task.ready", "task.started") * 1e3


def bubblewrap() -> float | None:
    """Milliseconds of a whole sealed interpreter that does nothing; None: it is not installed."""
    if shutil.which("bwrap") is None:
        return None
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc"]
    began = time.perf_counter()
    subprocess.run([*command, sys.executable, "-I", "-S", "-c", "pass"], check=True)
    return (time.perf_counter() - began) * 1e3


async def measure(rounds: int) -> list[tuple[str, str, float, str, float | None]]:
    async def median(what: Callable[[Supervisor], Coroutine[Any, Any, float]], times: int) -> float:
        return statistics.median([await what(supervisor) for _ in range(times)])

    with tempfile.TemporaryDirectory() as state:
        async with Supervisor(state=state) as supervisor:
            await spawn(supervisor)
            spawned, wrapped = [], []
            for _ in range(rounds * 5):
                spawned.append(await spawn(supervisor))
                if (single := bubblewrap()) is not None:
                    wrapped.append(single)
            against = statistics.median(wrapped) if wrapped else None
            return [
                ("spawn to greeting", "ms", statistics.median(spawned), "<= 4", against),
                ("chain of 100, a task", "ms", await median(chain, rounds), "<= 5", None),
                ("1 -> 200 -> 1, tasks", "/s", await median(wide, rounds), ">= 300", None),
                ("events, one task", "/s", await median(events, rounds), ">= 100000", None),
                ("limit to verdict", "ms", await median(kill, rounds * 4), "<= 20", None),
                ("... 100 descendants", "ms", await median(crowded, rounds * 4), "<= 20", None),
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rows = asyncio.run(measure(parser.parse_args().rounds))
    print(f"{'what':22} {'median':>10}      {'target':>10}   bwrap --unshare-all + python -I -S")
    for what, unit, value, target, against in rows:
        beside = f"{against:.1f} {unit} ({value / against:.2f} x)" if against else "-"
        print(f"{what:22} {value:10.1f} {unit:4} {target:>10}   {beside}")


if __name__ == "__main__":
    main()
