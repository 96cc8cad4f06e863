"""What durability and publishing cost: events a second through append → commit → front → observer.

    python tests/bench/journal.py [--events N] [--repeat R] [--folder DIR]

Items of 200 bytes, appended ten at a time as a link's read would give them. `single` waits for
each commit before the next append: that is one fsync an event. `beside a busy loop` is a loop
thread that spins two milliseconds for every 500 events; the switch interval then decides. Medians
of R runs, each in a fresh journal below DIR (a disk that counts, not tmpfs). The last column is
the cpu time of this process for each, which a loaded machine changes least.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from casemate.protocol.events import TaskCompleted, TaskEmitted
from casemate.protocol.limits import JOURNAL_BACKLOG_SIZE
from casemate.supervisor.front import Frames, FrontProcess, encode_frames
from casemate.supervisor.journal import Commit, Entry, Journal, JournalReader
from casemate.supervisor.state import OwnedRun, StateDirectory
from msgspec import Raw, msgpack

ITEM = TaskEmitted(Raw(msgpack.encode(b"x" * 197)))
TEN: list[Entry] = [("task", 1, 0.0, ITEM)] * 10


def fail(run: str, error: Exception) -> None:
    raise error


class Writing:
    """A journal with open runs, and the wait for the last of their commits."""

    def __init__(self, state: StateDirectory, runs: int) -> None:
        self.runs: list[OwnedRun] = [state.create_run() for _ in range(runs)]
        self.commits = 0
        self.events = 0
        self.arrived = threading.Condition()
        self.journal = Journal(self.on_commit, fail)
        for owned in self.runs:
            self.journal.open(owned.directory)
            self.journal.append(owned.directory.id, TEN)
        self.wait(10 * runs)
        self.commits = 0

    def on_commit(self, commit: Commit) -> None:
        with self.arrived:
            self.commits += 1
            self.events += len(commit.events)
            self.arrived.notify()

    def wait(self, events: int) -> None:
        with self.arrived:
            self.arrived.wait_for(lambda: self.events >= events)

    def close(self) -> None:
        self.journal.close()
        for owned in self.runs:
            owned.ownership.release()


def rate(state: StateDirectory, events: int, runs: int, interval: float | None = None) -> float:
    writing = Writing(state, runs)
    names = [owned.directory.id for owned in writing.runs]
    if interval is not None:
        sys.setswitchinterval(interval)
    began = time.perf_counter()
    for number in range(events // 10):
        writing.journal.append(names[number % runs], TEN)
        while writing.journal.backlog > JOURNAL_BACKLOG_SIZE:
            time.sleep(0.001)
        if interval is not None and number % 50 == 0:
            spin(0.002)
    writing.wait(events + 10 * runs)
    taken = time.perf_counter() - began
    sys.setswitchinterval(0.005)
    writing.close()
    return events / taken


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def singles(state: StateDirectory, events: int) -> float:
    writing = Writing(state, 1)
    (owned,) = writing.runs
    began = time.perf_counter()
    for number in range(events):
        writing.journal.append(owned.directory.id, TEN[:1])
        writing.wait(11 + number)
    taken = time.perf_counter() - began
    writing.close()
    return taken / events * 1000


def values(state: StateDirectory, count: int) -> float:
    """Milliseconds for one output of a megabyte, each different, each waited for."""
    writing = Writing(state, 1)
    (owned,) = writing.runs
    outputs = [Raw(msgpack.encode(bytes([n % 256]) * 1_000_000 + bytes([n]))) for n in range(count)]
    began = time.perf_counter()
    for number, output in enumerate(outputs):
        writing.journal.append(owned.directory.id, [("t", 1, 0.0, TaskCompleted(output, 1.0))])
        writing.wait(11 + number)
    taken = time.perf_counter() - began
    writing.close()
    return taken / count * 1000


def reading(state: StateDirectory, events: int) -> float:
    writing = Writing(state, 1)
    (owned,) = writing.runs
    for _ in range(events // 10):
        writing.journal.append(owned.directory.id, TEN)
    writing.close()
    began = time.perf_counter()
    with JournalReader(owned.directory) as reader:
        since = 0
        while page := reader.events(since):
            since = page[-1].seq
    return since / (time.perf_counter() - began)


OBSERVER = """
import sys, zmq
from msgspec import msgpack
with zmq.Context() as context, context.socket(zmq.SUB) as live:
    live.rcvhwm = 0
    live.subscribe(b"")
    live.connect(sys.argv[1])
    live.recv_multipart()
    print("attached", flush=True)
    got, last = 0, int(sys.argv[2])
    while True:
        topic, header, payload = live.recv_multipart()
        if topic != b"hb.":
            got += 1
            if msgpack.decode(header)["seq"] >= last:
                break
        elif max(msgpack.decode(payload).values(), default=0) >= last:
            break
    print(got, flush=True)
"""


async def published(state: StateDirectory, events: int) -> tuple[float, float]:
    """Events a second until an observer has the last one, and the share that reached him live."""
    loop = asyncio.get_running_loop()
    front = FrontProcess(state)
    await front.start()
    await front.wait_ready()
    waiting = 0

    def publish(frames: Frames) -> None:
        nonlocal waiting
        front.publish(frames)
        waiting = frames.last_seq

    def on_commit(commit: Commit) -> None:
        loop.call_soon_threadsafe(publish, encode_frames(commit))

    journal = Journal(on_commit, fail)
    owned = state.create_run()
    journal.open(owned.directory)
    observer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OBSERVER, front.events_endpoint, str(events), stdout=subprocess.PIPE
    )
    assert observer.stdout is not None
    await observer.stdout.readline()
    began = time.perf_counter()
    for number in range(events // 10):
        journal.append(owned.directory.id, TEN)
        if number % 20 == 0:
            await asyncio.sleep(0)
            while journal.backlog > JOURNAL_BACKLOG_SIZE // 16 or number * 10 - waiting > 20_000:
                await asyncio.sleep(0.001)
    got = int(await observer.stdout.readline())
    taken = time.perf_counter() - began
    await observer.wait()
    await asyncio.to_thread(journal.close)
    await front.close()
    owned.ownership.release()
    return events / taken, got / events


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    n = options.events
    live: list[float] = []

    def report(
        name: str, unit: str, count: int, measure: Callable[[StateDirectory], float]
    ) -> None:
        found, cpu = [], []
        for _ in range(options.repeat):
            with tempfile.TemporaryDirectory(dir=options.folder) as path:
                state = StateDirectory.open(Path(path))
                began = time.process_time()
                found.append(measure(state))
                cpu.append((time.process_time() - began) / count * 1e6)
        value = statistics.median(found)
        shown = f"{value:12.3f}" if value < 1000 else f"{value:12,.0f}"
        print(f"{name:32}{shown} {unit:10}{statistics.median(cpu):9.1f} µs", flush=True)

    def through(state: StateDirectory) -> float:
        speed, share = asyncio.run(published(state, n))
        live.append(share)
        return speed

    report("append → commit, one run", "events/s", n, lambda s: rate(s, n, 1))
    report("append → commit, 20 runs", "events/s", n, lambda s: rate(s, n, 20))
    report("beside a busy loop, 5 ms", "events/s", n, lambda s: rate(s, n, 1, 0.005))
    report("beside a busy loop, 0.5 ms", "events/s", n, lambda s: rate(s, n, 1, 0.0005))
    report("single, one commit each", "ms", 500, lambda s: singles(s, 500))
    report("an output of 1 MB, each", "ms", 50, lambda s: values(s, 50))
    report("reading back", "events/s", n, lambda s: reading(s, n))
    report("commit → front → observer", "events/s", n, through)
    print(f"  of which live                 {statistics.median(live):12.1%}")


if __name__ == "__main__":
    main()
