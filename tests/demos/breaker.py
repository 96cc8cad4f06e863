"""Three runs, two supervisors, one breaker: who suffers, who is spared, what their journals tell.

    python tests/demos/breaker.py [STATE]

Run A calls a service that does not answer, and is tried again at once: the third failure opens the
breaker. B (of the same supervisor) and C (of another) are in the middle of a call that would hang
for an hour: both are killed, and wait. When the time is over one attempt is let through as the
probe; it succeeds, the breaker closes, and all three complete. Then the events of the three
journals by time, and what `casemate breaker list` says at the moments that matter.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from casemate.protocol.pipeline import PipelineSpec
from casemate.supervisor.cli.breaker import list_breakers
from runs import Embedded, History, Place, is_alive

TASKS = """
import time
def call(input, ctx):
    if ctx.attempt <= ctx.spec["fails"]:
        raise ConnectionError("503 service unavailable")
    if ctx.spec["hangs"] and ctx.attempt == 1:
        ctx.emit("waiting for an answer")
        time.sleep(3600)
    ctx.emit("answered")
    return ctx.attempt
"""
SHOWN = ("task.", "breaker.", "run.")
NOISE = {"task.usage", "task.progress", "task.emitted"}


def spec(place: Place, name: str, **what: object) -> PipelineSpec:
    return place.spec(
        name=name,
        tasks={
            "call": {
                "spec": {"fails": 0, "hangs": False, **what},
                "retry": {"attempts": 9, "delay": "50ms"},
                "breaker": {"key": "service", "failures": 3, "open_for": "4s"},
            }
        },
        checkpoints="none",
    )


def listed(state: Path, when: str) -> None:
    print(f"\n$ casemate breaker list        ({when})", flush=True)
    list_breakers(as_json=False, state=state)


def told(histories: dict[str, History]) -> None:
    began = min(history.events[0].at for history in histories.values())
    events = [
        (event.at, name, event)
        for name, history in histories.items()
        for event in history.events
        if event.kind.startswith(SHOWN) and event.kind not in NOISE
    ]
    for at, name, event in sorted(events, key=lambda each: each[0]):
        data, attempt = event.data, f"#{event.attempt}" if event.attempt else ""
        error = data.get("error")
        words = f"{error['kind']}: {error['message']}" if error else ""
        if event.kind.startswith("breaker."):
            words = ", ".join(f"{field}={value}" for field, value in data.items())
        elif event.kind == "task.started":
            words = f"pid {data['pid']}"
        since = (at - began).total_seconds() * 1000
        print(f"{since:7.0f} ms  {name}  {event.kind:18} {attempt:3} {words}"[:150].rstrip())


def main(state: Path, folder: Path) -> None:
    place = Place(folder)
    place.tasks(TASKS)
    with Embedded(state) as one, Embedded(state) as two:
        lives = {"B": one.start(spec(place, "b", hangs=True))}
        lives["C"] = two.start(spec(place, "c", hangs=True))
        for live in lives.values():
            live.wait("task.emitted")
        lives["A"] = one.start(spec(place, "a", fails=3))
        killed = [lives[name].wait("task.started").data["pid"] for name in "BC"]
        for name in "BC":
            lives[name].wait("task.retrying")
        listed(state, "opened")
        histories = {name: lives[name].finish() for name in "ABC"}
        listed(state, "at the end")
    print(f"\nA = {histories['A'].run} and B = {histories['B'].run} of one supervisor,")
    print(f"C = {histories['C'].run} of another\n")
    told(histories)
    opened = histories["A"].of("breaker.opened")[0].at
    print()
    for name in "BC":
        ended = histories[name].of("task.retrying")[0].at
        after = (ended - opened).total_seconds() * 1000
        print(f"{name}: dead and recorded {after:.0f} ms after A's journal has it open")
    print(f"alive of the killed: {[pid for pid in killed if is_alive(pid)]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "state"
        main(given, Path(scratch) / "pipeline")
