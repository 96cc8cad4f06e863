"""What `preload` saves: from the end of one task to the first word of the next, which imports.

    python tests/bench/preload.py [--module numpy] [--times 15]

Two tasks, one after the other, N times with `preload` and N times without, in turns. The first
lasts as long as the sandbox of the second may take to be made ahead. What is told is the median,
and the worst, of the time between `task.completed` of the first and the item that the second emits
when its imports are done, by the engine's clock; and beside it the same without any import.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from datetime import datetime
from pathlib import Path

from casemate import Supervisor
from casemate.supervisor.pipeline import compile_document

TASKS = """
import time
def first(input):
    time.sleep({pause})
def second(input, ctx):
    {line}
    ctx.emit(True)
"""


async def gap(supervisor: Supervisor, folder: Path, module: str | None, *, ahead: bool) -> float:
    """Seconds."""
    line = f"import {module}" if module else "pass"
    folder.joinpath("tasks.py").write_text(TASKS.format(pause=1.5, line=line))
    second: dict[str, object] = {"execute": "tasks.py:second", "needs": ["first"]}
    if ahead:
        second["preload"] = [module or "json"]
    tasks = {"first": {"execute": "tasks.py:first"}, "second": second}
    ended: datetime | None = None
    async for event in supervisor.execute(
        compile_document({"name": "preload", "tasks": tasks}, root=folder)
    ):
        if event.kind == "task.completed" and event.task == "first":
            ended = event.at
        elif event.kind == "task.emitted":
            assert ended is not None
            said = event.at
        elif event.kind == "run.failed":
            raise SystemExit(f"the run failed: {event.data}")
    assert ended is not None
    return (said - ended).total_seconds()


async def measure(module: str, times: int) -> None:
    kinds = {
        f"import {module}": (module, False),
        f"import {module}, preload": (module, True),
        "no import": (None, False),
        "no import, preload": (None, True),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "pipeline")
        folder.mkdir()
        async with Supervisor(state=Path(name, "state")) as supervisor:
            for _ in range(times):
                for kind, (imported, ahead) in kinds.items():
                    found[kind].append(await gap(supervisor, folder, imported, ahead=ahead))
    for kind, gaps in found.items():
        median, worst = statistics.median(gaps) * 1000, max(gaps) * 1000
        print(f"{kind:32} {median:8.1f} ms   worst {worst:8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--module", default="numpy")
    parser.add_argument("--times", type=int, default=15)
    options = parser.parse_args()
    asyncio.run(measure(options.module, options.times))


if __name__ == "__main__":
    main()
