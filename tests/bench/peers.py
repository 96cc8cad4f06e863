"""What a durable chain writes, and how long it takes, beside two durable runtimes in one run.

    python tests/bench/peers.py [--steps N] [--size BYTES] [--repeat R] [--folder DIR]

A chain of N steps (100) hands on a value of so many bytes (1 MB), twice: once equal from step to
step, once with one line of it changed by each. casemate runs each step in a sealed process of its
own; LangGraph (with its SQLite checkpointer) and DBOS (with SQLite) run all of them in one process,
with no isolation. They are installed with pip into an environment that is thrown away.

    seconds   of the chain, from asking for it to having its last value
    written   bytes the kernel was asked to write (`write_bytes` of /proc/self/io, of every process
              that took part): SQLite's journals included, and whatever is overwritten later
    kept      bytes of the state directory when all of it is closed

Each figure is the median of R rounds. This file is also what runs in the peers' environment:
`peers.py --run NAME` prints one round's figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEERS = ["langgraph", "langgraph-checkpoint-sqlite", "dbos"]
NAMES = {
    "casemate": "casemate, sealed processes",
    "langgraph": "LangGraph, SQLite",
    "dbos": "DBOS, SQLite",
}
LINE = 64

Figures = dict[str, float]


def value(size: int) -> list[str]:
    """A megabyte, of lines that differ: nothing that happens to compress well."""
    return [os.urandom(LINE // 2).hex() for _ in range(size // LINE)]


def changed(lines: list[str], step: int, is_equal: bool) -> list[str]:
    """What a step makes of the value."""
    if is_equal:
        return lines
    return [*lines[:step], f"{step:0{LINE}}", *lines[step + 1 :]]


def kept(folder: Path) -> int:
    files = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return sum({(each.st_dev, each.st_ino): each.st_blocks * 512 for each in files}.values())


def written_by(process: str) -> int:
    """Bytes that reached the block layer for a process, those of its waited-for children too."""
    for line in Path(f"/proc/{process}/io").read_text().splitlines():
        name, count = line.split(": ")
        if name == "write_bytes":
            return int(count)
    raise LookupError("no write_bytes")


# --- one round each ----------------------------------------------------------------------------


def run_casemate(folder: Path, steps: int, size: int, is_equal: bool) -> Figures:
    from casemate import Pipeline, Supervisor, Task

    pipeline = Pipeline("chain")
    for number in range(steps):
        entry = Task(
            f"t{number:03}",
            "workload.py:hand_on",
            spec={"step": number, "equal": is_equal},
        )
        pipeline.add_task(entry)
        if number:
            pipeline.add_edge(f"t{number - 1:03}", f"t{number:03}")

    async def whole() -> tuple[float, int]:
        async with Supervisor(state=folder) as supervisor:
            began = time.perf_counter()
            run = await supervisor.submit(pipeline, value(size))
            async for event in supervisor.events(run, whole=False):
                last = event.kind
            seconds = time.perf_counter() - began
            assert last == "run.completed", last
            # The sandboxes have nowhere to write to but memory: large values go through the
            # outbox, which lies in it, and the engine is who keeps them.
            assert supervisor._process is not None
            return seconds, written_by(str(supervisor._process.pid))

    seconds, written = asyncio.run(whole())
    return {"seconds": seconds, "written": written, "kept": kept(folder)}


def run_langgraph(folder: Path, steps: int, size: int, is_equal: bool) -> Figures:
    import sqlite3
    from typing import TypedDict

    from langgraph.checkpoint.sqlite import (  # type: ignore[import-not-found,unused-ignore]
        SqliteSaver,
    )
    from langgraph.graph import (  # type: ignore[import-not-found,unused-ignore]
        END,
        START,
        StateGraph,
    )

    class State(TypedDict):
        lines: list[str]

    def step(number: int) -> Callable[[State], State]:
        return lambda state: {"lines": changed(state["lines"], number, is_equal)}

    graph: Any = StateGraph(State)
    names = [f"t{number:03}" for number in range(steps)]
    for number, name in enumerate(names):
        graph.add_node(name, step(number))
    for above, below in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(above, below)
    connection = sqlite3.connect(folder / "checkpoints.db", check_same_thread=False)
    chain = graph.compile(checkpointer=SqliteSaver(connection))
    first = {"lines": value(size)}
    before, began = written_by("self"), time.perf_counter()
    chain.invoke(first, {"configurable": {"thread_id": "1"}, "recursion_limit": steps + 10})
    seconds = time.perf_counter() - began
    connection.close()
    return {"seconds": seconds, "written": written_by("self") - before, "kept": kept(folder)}


def run_dbos(folder: Path, steps: int, size: int, is_equal: bool) -> Figures:
    from dbos import DBOS  # type: ignore[import-not-found,unused-ignore]

    # Nothing of the annotations below is looked at: what DBOS decorates is not typed here.
    DBOS(
        config={
            "name": "chain",
            "system_database_url": f"sqlite:///{folder / 'dbos.db'}",
            "log_level": "ERROR",
        }
    )

    def step(lines: list[str], number: int) -> list[str]:
        return changed(lines, number, is_equal)

    durable_step = DBOS.step()(step)

    def chain(lines: list[str]) -> list[str]:
        for number in range(steps):
            lines = durable_step(lines, number)
        return lines

    durable_chain = DBOS.workflow()(chain)
    DBOS.launch()
    first = value(size)
    before, began = written_by("self"), time.perf_counter()
    durable_chain(first)
    seconds = time.perf_counter() - began
    DBOS.destroy()
    return {"seconds": seconds, "written": written_by("self") - before, "kept": kept(folder)}


RUN = {"casemate": run_casemate, "langgraph": run_langgraph, "dbos": run_dbos}


# --- all of them ------------------------------------------------------------------------------


def install(place: Path) -> Path:
    """The peers' own environment; its python."""
    environment = place / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, *PEERS], check=True)
    return python


def measure(
    name: str, python: Path, place: Path, chosen: argparse.Namespace, is_equal: bool
) -> Figures:
    rounds: list[Figures] = []
    for _ in range(chosen.repeat):
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
        command = [str(python), __file__, "--run", name, "--folder", str(folder)]
        command += ["--steps", str(chosen.steps), "--size", str(chosen.size)]
        done = subprocess.run(
            [*command, *(["--equal"] if is_equal else [])],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(folder)
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def table(place: Path, chosen: argparse.Namespace) -> None:
    theirs = install(place)
    python = {name: Path(sys.executable) if name == "casemate" else theirs for name in RUN}
    print(f"a chain of {chosen.steps} steps, a value of {chosen.size / 1e6:g} MB; medians")
    for is_equal in (True, False):
        print("  equal from step to step" if is_equal else "  one line changed by each step")
        heads = ("ms a step", "MB written", "MB kept", "× time", "× kept")
        print(f"    {'':<30}" + "".join(f"{head:>12}" for head in heads))
        ours: Figures | None = None
        for name, title in NAMES.items():
            found = measure(name, python[name], place, chosen, is_equal)
            ours = ours or found
            print(
                f"    {title:<30}{found['seconds'] * 1000 / chosen.steps:>12.2f}"
                f"{found['written'] / 1e6:>12.1f}{found['kept'] / 1e6:>12.1f}"
                f"{found['seconds'] / ours['seconds']:>12.2f}{found['kept'] / ours['kept']:>12.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on a disk that counts (default: /tmp)")
    parser.add_argument("--run", choices=sorted(RUN), help=argparse.SUPPRESS)
    parser.add_argument("--equal", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run is not None:
        print(json.dumps(RUN[chosen.run](chosen.folder, chosen.steps, chosen.size, chosen.equal)))
        return
    place = Path(tempfile.mkdtemp(prefix="casemate-peers-", dir=chosen.folder))
    try:
        table(place, chosen)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
