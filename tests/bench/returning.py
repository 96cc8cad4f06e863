"""What checkpoints and going back cost over a large workspace, with real attempts.

    python tests/bench/returning.py [--files N] [--size MIB] [--steps S] [--folder DIR]

A chain of S tasks (50) over a workspace of N files and MIB mebibytes (20 000 and 400), below DIR, a
disk that counts. Each task adds a line to three files; a checkpoint follows each. The same chain in
the same run over a workspace of three such files: what that one costs too is not the large one's
fault. All times are as the program sees them that runs it: what it hears of is durable.

    submit        until there is a run: the base is looked at, and noted; the supervisor's first
                  over this base, so that it also tries whether layers can be mounted
    begin         `task.ready` to `task.started`: layers stacked and mounted, all walls, the guest
    checkpoint    the task's last word to `checkpoint.created`: its tree dead, its files durable
    a step        of the chain, whole
    roll back     until `rollback` returns, of the run that has ended: its journal read, the base
                  looked at for changes by others; to five checkpoints, one after the other
    and go on     from there to the next `task.started`
    grown         what the S checkpoints added to the state directory, on disk
    noted         what is kept of the base, once

Medians. Beside them, once: `cp -a` of the workspace.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from casemate import Pipeline, Supervisor, Task

PER_FOLDER = 100
CHANGED = 3
RETURNS = 5

Figures = dict[str, float]
Heard = list[tuple[float, str]]  # when, which kind of event


def path(number: int) -> str:
    return f"d{number // PER_FOLDER:03}/f{number % PER_FOLDER:02}"


def make(workspace: Path, files: int, size: int) -> None:
    content = os.urandom(size)
    for number in range(files):
        file = workspace / path(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    os.sync()


def chain(workspace: Path, files: int, steps: int) -> Pipeline:
    # its folder holds both: no authority is needed for a workspace elsewhere
    shutil.copy(Path(__file__).with_name("workload.py"), workspace.parent)
    what = Pipeline("chain", root=workspace.parent, workspace=workspace.name)
    for step in range(steps):
        changed = [path((step * CHANGED + number) % files) for number in range(CHANGED)]
        what.add_task(Task(f"t{step:03}", "workload.py:add_lines", spec={"paths": changed}))
        if step:
            what.add_edge(f"t{step - 1:03}", f"t{step:03}")
    return what


def on_disk(place: Path) -> int:
    told = subprocess.run(["du", "-sk", place], capture_output=True, text=True, check=True)
    return int(told.stdout.split()[0])


async def listen(supervisor: Supervisor, run: str, since: int = 0) -> tuple[Heard, int]:
    """All until the run has ended, and the last number."""
    heard: Heard = []
    async for event in supervisor.events(run, since):
        heard.append((time.perf_counter(), event.kind))
        since = event.seq
    assert heard[-1][1] == "run.completed", heard[-1]
    return heard, since


def spans(heard: Heard, first: str, last: str) -> float:
    """The median of the times from each event of one kind to the next of the other."""
    moments = [(at, kind) for at, kind in heard if kind in (first, last)]
    return statistics.median(
        at - before
        for (before, was), (at, kind) in pairwise(moments)
        if (was, kind) == (first, last)
    )


async def measure(workspace: Path, state: Path, files: int, steps: int) -> Figures:
    figures: Figures = {}
    what = chain(workspace, files, steps)
    async with Supervisor(state=state) as supervisor:
        began = time.perf_counter()
        run = await supervisor.submit(what)
        figures["submit"] = time.perf_counter() - began
        heard, last = await listen(supervisor, run)
    figures["begin"] = spans(heard, "task.ready", "task.started")
    figures["checkpoint"] = spans(heard, "task.emitted", "checkpoint.created")
    ends = [at for at, kind in heard if kind == "task.completed"]
    figures["a step"] = statistics.median(after - before for before, after in pairwise(ends))
    figures["noted"] = on_disk(state / "runs" / run / "base.manifest")
    figures["grown"] = on_disk(state) - figures["noted"]
    returned, gone_on = [], []
    async with Supervisor(state=state) as supervisor:
        for number in range(RETURNS):
            checkpoint = f"c{steps * (2 * number + 1) // (2 * RETURNS)}"
            began = time.perf_counter()
            await supervisor.rollback(run, checkpoint)
            returned.append(time.perf_counter() - began)
            heard, last = await listen(supervisor, run, last)
            gone_on.append(next(at for at, kind in heard if kind == "task.started") - began)
    figures["roll back"] = statistics.median(returned)
    figures["and go on"] = statistics.median(gone_on) - figures["roll back"]
    return figures


def table(place: Path, files: int, size: int, steps: int) -> None:
    each = size // files
    columns: list[Figures] = []
    for name, count in (("large", files), ("small", CHANGED)):
        workspace = place / name
        make(workspace, count, each)
        columns.append(asyncio.run(measure(workspace, place / f"state-{name}", count, steps)))
    began = time.perf_counter()
    subprocess.run(["cp", "-a", place / "large", place / "copy"], check=True)
    os.sync()
    copied = time.perf_counter() - began
    whole = steps * CHANGED * each >> 10
    print(f"{steps} checkpoints, {CHANGED} files changed before each: {whole} KiB in all; medians")
    print(f"  {'':<12}{f'{files} files':>16}{f'{CHANGED} files':>16}")
    for label in ("submit", "begin", "checkpoint", "a step", "roll back", "and go on"):
        print(f"  {label:<12}" + "".join(f"{column[label] * 1e3:>13.1f} ms" for column in columns))
    for label in ("grown", "noted"):
        print(f"  {label:<12}" + "".join(f"{column[label]:>12.0f} KiB" for column in columns))
    print(f"  {'cp -a':<12}{copied * 1e3:>13.1f} ms, on disk")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="on a disk that counts (default: /tmp)")
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="casemate-returning-", dir=chosen.folder))
    try:
        table(place, chosen.files, chosen.size << 20, chosen.steps)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
