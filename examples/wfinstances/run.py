"""Run the graph of a recorded scientific workflow (WfCommons WfFormat JSON) through casemate.

    python examples/wfinstances/run.py [FILE.json ...] [--scale 0.001]

Without a file it takes those in ../shared/data/wfinstances beside the repository. Each task becomes
a sealed process that sleeps its recorded run time times --scale. Afterwards the events are read
once more: every parent must have completed before its child started. Exits 0 when all held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from casemate import Limits, Pipeline, Supervisor, Task

ROOT = Path(__file__).resolve().parents[2]


def build(workflow: dict[str, Any], name: str, scale: float) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline, and {task: its parents} under casemate's task ids."""
    tasks = workflow["specification"]["tasks"]
    seconds = {task["id"]: task["runtimeInSeconds"] for task in workflow["execution"]["tasks"]}
    ids = {task["id"]: f"t{number:04}" for number, task in enumerate(tasks)}
    pipeline = Pipeline(name)
    parents = {}
    for task in tasks:
        pipeline.add_task(
            Task(
                ids[task["id"]],
                "step.py:step",
                spec={"name": task["name"], "seconds": seconds[task["id"]] * scale},
                limits=Limits(memory="64MiB"),
            )
        )
        parents[ids[task["id"]]] = [ids[parent] for parent in task["parents"]]
    for child, its_parents in parents.items():
        for parent in its_parents:
            pipeline.add_edge(parent, child)
    return pipeline, parents


async def run(pipeline: Pipeline) -> tuple[str, dict[str, int], dict[str, int]]:
    """How the run ended, and the event numbers of each task's start and completion."""
    started, completed, ended = {}, {}, "nothing"
    async with Supervisor() as supervisor:
        async for event in supervisor.execute(pipeline):
            if event.kind == "task.started":
                started[str(event.task)] = event.seq
            elif event.kind == "task.completed":
                completed[str(event.task)] = event.seq
            ended = event.kind
    return ended, started, completed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--scale", type=float, default=0.001)
    arguments = parser.parse_args()
    files = arguments.files or sorted((ROOT.parent / "shared/data/wfinstances").glob("*.json"))
    if not files:
        print("no workflow given, and none in ../shared/data/wfinstances", file=sys.stderr)
        return 2
    good = True
    for file in files:
        workflow = json.loads(file.read_text(encoding="utf-8"))["workflow"]
        pipeline, parents = build(workflow, "wfinstance", arguments.scale)
        began = time.monotonic()
        ended, started, completed = asyncio.run(run(pipeline))
        seconds = time.monotonic() - began
        broken = [
            f"{child} began before {parent} ended"
            for child, its_parents in parents.items()
            for parent in its_parents
            if not completed.get(parent, sys.maxsize) < started.get(child, 0)
        ]
        edges = sum(map(len, parents.values()))
        print(
            f"{file.name}: {ended}, {len(completed)} of {len(parents)} tasks in {seconds:.1f} s, "
            f"{edges} edges, {len(broken)} out of order"
        )
        for line in broken[:10]:
            print(f"  {line}")
        good = good and ended == "run.completed" and not broken
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
