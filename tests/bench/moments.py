"""What a person waits for: an edit to be seen, and a front to be back.

    python tests/bench/moments.py [--times 15]

    edit to result   `run --watch` of the review demo, `agents.py` saved with another `report`:
                     until `run.completed` is there with the new output. All else is kept.
    front is back    the front is killed with -9 while a run goes on: until a subscriber that was
                     there has been told the new epoch, and until a client has its answer.

Seconds: the least, the median, the most. Each has the waits of its parts in it: watchfiles looks
every 50 ms, libzmq connects again after 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import zmq
from casemate import Client, Supervisor
from casemate.protocol.follow import read_frames
from casemate.supervisor.pipeline import compile_document
from casemate.supervisor.state import StateDirectory

DEMO = Path(__file__).parents[2] / "examples" / "review"
CASEMATE = [sys.executable, "-c", "from casemate.supervisor.cli import main; main()"]
FOR_A_WHILE = """
import time
def speak(input, ctx):
    while True:
        ctx.emit(1)
        time.sleep(0.02)
"""


def edits(folder: Path, times: int) -> list[float]:
    place = Path(shutil.copytree(DEMO, folder / "review"))
    source = place / "agents.py"
    command = [*CASEMATE, "run", str(place / "pipeline.yaml"), "--watch", "--json"]
    taken: list[float] = []
    with subprocess.Popen(
        [*command, "--state", str(folder / "state")], stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        said, saved = "passed", 0.0
        for line in watching.stdout:
            event = json.loads(line)
            if event["kind"] != "run.completed":
                continue
            now = time.monotonic()
            assert event["data"]["outputs"]["report"]["tests"] == said, event
            if saved:
                taken.append(now - saved)
            if len(taken) == times:
                break
            time.sleep(1)  # as a person would
            new = f"passed, {len(taken)}"
            source.write_text(source.read_text().replace(f'"{said}"', f'"{new}"'))
            said, saved = new, time.monotonic()
        watching.send_signal(signal.SIGINT)
    return taken


def _front_of(engine: int) -> psutil.Process:
    while True:
        for each in psutil.Process(engine).children():
            if "supervisor.front" in " ".join(each.cmdline()):
                return each
        time.sleep(0.01)


def _epoch(subscriber: zmq.Socket[bytes]) -> int:
    return read_frames(subscriber.recv_multipart()).epoch


async def fronts(folder: Path, times: int) -> tuple[list[float], list[float]]:
    state = folder / "state"
    (folder / "tasks.py").write_text(FOR_A_WHILE)
    spec = compile_document(
        {"name": "speak", "tasks": {"speak": {"execute": "tasks.py:speak"}}}, root=folder
    )
    async with Supervisor(state=str(state)) as supervisor:
        run = await supervisor.submit(spec)
        try:
            return await asyncio.to_thread(_kills, state, run, times)
        finally:
            await supervisor.cancel(run)


def _kills(state: Path, run: str, times: int) -> tuple[list[float], list[float]]:
    [record] = StateDirectory(state).living_supervisors()
    told: list[float] = []
    answered: list[float] = []
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        subscriber.subscribe(b"")
        subscriber.connect(record.events)
        for _ in range(times):
            time.sleep(2)
            before = _epoch(subscriber)
            while subscriber.poll(0):
                before = _epoch(subscriber)
            at = time.monotonic()
            _front_of(record.pid).kill()
            with Client(state=str(state)) as client:
                client.resume(run)
            answered.append(time.monotonic() - at)
            while _epoch(subscriber) == before:
                pass
            told.append(time.monotonic() - at)
    return told, answered


def line(name: str, seconds: Sequence[float]) -> None:
    least, most = min(seconds), max(seconds)
    print(f"{name:34} {least:7.3f} {statistics.median(seconds):7.3f} {most:7.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--times", type=int, default=15)
    times: int = parser.parse_args().times
    print(f"{'seconds':34} {'least':>7} {'median':>7} {'most':>7}")
    with tempfile.TemporaryDirectory() as folder:
        line("edit to result", edits(Path(folder), times))
    with tempfile.TemporaryDirectory() as folder:
        told, answered = asyncio.run(fronts(Path(folder), times))
    line("front is back, a client's answer", answered)
    line("front is back, new epoch is told", told)


if __name__ == "__main__":
    main()
