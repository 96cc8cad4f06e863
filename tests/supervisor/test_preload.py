"""`preload: [modules]`, with real sandboxes: the next attempt of a task is made ahead, behind all
walls, and stands still until it is told its job. What it imports is code of others: whatever that
does, nothing is told of it before there is an attempt, and the attempt comes all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from casemate.supervisor.config import load_config
from casemate.supervisor.pipeline import Allow
from fakes import wait_until
from runs import Embedded, Live, Place, descendants, is_alive

# `gate` is a folder of the host: a task waits there for a word of the test.
TASKS = """
import os, sys, time
def moment():
    return time.clock_gettime(time.CLOCK_MONOTONIC)
def wait_for(name):
    while not os.path.exists("{gate}/" + name):
        time.sleep(0.01)
def first(input):
    wait_for("open")
    return moment()
def second(input):
    import ahead
    return {{"imported": ahead.MOMENT}}
def alone(input):
    return True
"""
AHEAD = """
import os, time
MOMENT = time.clock_gettime(time.CLOCK_MONOTONIC)
"""


class Warm:
    """A pipeline of two, `first` → `second`, of which the first runs until the gate is opened."""

    def __init__(self, house: Embedded, place: Place, gate: Path) -> None:
        self.house, self.place, self.gate = house, place, gate
        place.tasks(TASKS.format(gate=gate))
        place.write("ahead.py", AHEAD)

    def spec(self, second: dict[str, Any] | None = None, **document: Any) -> Any:
        given = {"preload": ["ahead"], "sources": ["ahead.py"], **(second or {})}
        tasks = {
            "first": {"ro": [str(self.gate)]},
            "second": {"needs": ["first"], **given},
            **document.pop("more", {}),
        }
        allow = Allow.parse([f"path:{self.gate}", *document.pop("allow", ())])
        return self.place.spec(allow=allow, tasks=tasks, **document)

    def start(self, second: dict[str, Any] | None = None, **document: Any) -> Live:
        live = self.house.start(self.spec(second, **document))
        live.wait("task.started", "first")
        return live

    def open(self, name: str = "open") -> None:
        (self.gate / name).touch()

    def still(self) -> list[int]:
        """The pids of those that stand still."""
        return [pid for pid in guests(self.house.engine) if stands_still(pid)]

    def wait_still(self, count: int = 1) -> list[int]:
        wait_until(lambda: len(self.still()) == count)
        return self.still()


def guests(engine: int) -> list[int]:
    """Those of the sandboxes' processes that run the tasks' code."""
    found = []
    for pid in descendants(engine):
        try:
            if psutil.Process(pid).name() == "casemate-guest":
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def stands_still(pid: int) -> bool:
    try:
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return True
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), None)
        if own is None:
            return False
        for mounted in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            events = Path(mounted + own, "cgroup.events")
            if events.exists() and "frozen 1" in events.read_text():
                return True
    except (OSError, psutil.NoSuchProcess):
        pass
    return False


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    gate = tmp_path / "gate"
    gate.mkdir()
    return gate


@pytest.fixture
def warm(house: Embedded, place: Place, gate: Path) -> Iterator[Warm]:
    yield Warm(house, place, gate)
    wait_until(lambda: not guests(house.engine))  # nothing that was made ahead is left


def test_the_next_attempt_is_made_ahead_and_used(warm: Warm) -> None:
    live = warm.start()
    [guest] = warm.wait_still()
    init = psutil.Process(guest).ppid()
    warm.open()
    history = live.finish()
    assert history.output("second")["imported"] < history.output("first")
    started = history.one("task.started", "second")
    assert started.data["pid"] == init
    assert history.seq("task.completed", "first") < started.seq


def test_what_stands_around_it_is_what_stands_around_any_other(warm: Warm) -> None:
    def walls(live: Live) -> dict[str, Any]:
        found: dict[str, Any] = live.finish().one("task.started", "second").data["walls"]
        posture = found["posture"]
        # what no two sandboxes share
        for own in ("uid_map", "gid_map", "namespaces", "cgroup"):
            assert posture.pop(own)
        found["user"] = posture["env"] = None
        return found

    live = warm.start()
    warm.wait_still()
    warm.open()
    ahead = walls(live)
    cold = walls(warm.house.start(warm.spec({"preload": []})))
    assert ahead == cold


def test_what_an_import_prints_is_told_of_its_attempt(warm: Warm) -> None:
    warm.place.write("ahead.py", AHEAD + "print('imported')\n")
    live = warm.start()
    warm.wait_still()
    warm.open()
    assert live.finish().text("second", "stdout") == "imported\n"


def test_a_retry_is_made_ahead_with_its_files(warm: Warm) -> None:
    warm.place.write("workspace/given", "base")
    warm.place.tasks(
        TASKS.format(gate=warm.gate)
        + """
def writes(input):
    open("/workspace/given", "a").write(" and layer")
def again(input, ctx):
    import ahead
    if ctx.attempt == 1:
        raise ValueError("not yet")
    open("/workspace/new", "w").write("by the second")
    return [open("/workspace/given").read(), ahead.MOMENT]
"""
    )
    retry = {"attempts": 2, "delay": "2s", "jitter": 0}
    live = warm.start(
        {"execute": "tasks.py:writes", "preload": []},
        workspace="workspace",
        more={"again": {"needs": ["second"], "preload": ["ahead"], "sources": ["ahead.py"],
                        "retry": retry}},
    )  # fmt: skip
    warm.open()
    live.wait("task.retrying", "again")
    [guest] = warm.wait_still()
    init = psutil.Process(guest).ppid()
    history = live.finish()
    started = history.of("task.started", "again")[-1]
    assert (started.attempt, started.data["pid"]) == (2, init)
    assert history.output("again")[0] == "base and layer"
    assert history.of("task.completed", "again")[0].data["layer"]["files"] == 1


def test_with_a_workspace_nothing_is_made_ahead_of_what_it_builds_on(warm: Warm) -> None:
    """Whose files it will see is not known before."""
    warm.place.write("workspace/given", "base")
    live = warm.start(workspace="workspace")
    warm.open()
    history = live.finish()
    assert history.output("second")["imported"] > history.output("first")


def test_who_waits_for_a_place_is_made_ahead(warm: Warm) -> None:
    others = {
        name: {"execute": "tasks.py:second", "preload": ["ahead"], "sources": ["ahead.py"]}
        for name in ("third", "fourth")
    }
    live = warm.start(more=others, max_parallel=1)
    warm.wait_still(2 + 1)  # also the one that comes after
    warm.open()
    history = live.finish()
    for name in ("second", *others):
        assert history.output(name)["imported"] < history.output("first")


# --- what does not come to be used ---------------------------------------------------------------


def test_a_module_that_is_not_there_is_the_attempts_own_error(warm: Warm) -> None:
    live = warm.start({"preload": ["ahead", "nowhere.to.be_found"]})
    wait_until(lambda: len(guests(warm.house.engine)) == 1)
    warm.open()
    history = live.finish()
    error = history.error("second")
    assert error["kind"] == "error"
    assert error["message"].startswith("preload: No module named 'nowhere'")


def test_an_import_that_raises_is_told_with_its_traceback(warm: Warm) -> None:
    warm.place.write("ahead.py", AHEAD + "raise ValueError('not today')\n")
    live = warm.start()
    warm.open()
    error = live.finish().error("second")
    assert (error["kind"], error["type"], error["message"]) == (
        "error",
        "ValueError",
        "not today",
    )
    assert "ahead.py" in error["traceback"]


def test_an_import_that_takes_too_long_is_given_up_and_begun_cold(warm: Warm) -> None:
    warm.place.write(
        "ahead.py", AHEAD + "import tasks\ntasks.wait_for('late')\nMOMENT = tasks.moment()\n"
    )
    live = warm.start(
        {"ro": [str(warm.gate)], "sources": ["ahead.py", "tasks.py"], "timeouts": {"start": "4s"}}
    )
    wait_until(lambda: len(guests(warm.house.engine)) == 2)
    warm.open()
    live.wait("task.started", "second")  # it has its job, and imports
    warm.open("late")
    history = live.finish()
    assert history.output("second")["imported"] > history.output("first")


def test_an_import_that_eats_its_memory_is_the_attempts_own_error(warm: Warm) -> None:
    warm.place.write("ahead.py", AHEAD + "x = []\nwhile True:\n    x.append(bytearray(1 << 20))\n")
    live = warm.start()
    warm.open()
    assert live.finish().error("second")["kind"] == "memory"


def test_one_that_is_killed_from_outside_is_begun_cold(warm: Warm) -> None:
    live = warm.start()
    [guest] = warm.wait_still()
    os.kill(psutil.Process(guest).ppid(), signal.SIGKILL)
    wait_until(lambda: not is_alive(guest))
    warm.open()
    history = live.finish()
    assert history.output("second")["imported"] > history.output("first")


def test_a_pause_throws_it_away(warm: Warm) -> None:
    live = warm.start()
    [guest] = warm.wait_still()
    warm.house.call(warm.house.supervisor.pause(live.run, drain=True))
    wait_until(lambda: not is_alive(guest))
    warm.house.call(warm.house.supervisor.resume(live.run))
    warm.open()
    assert live.finish().outcome == "run.completed"


def test_a_rollback_throws_it_away(warm: Warm) -> None:
    live = warm.start()
    [guest] = warm.wait_still()
    warm.house.call(warm.house.supervisor.rollback(live.run, before="first"))
    wait_until(lambda: not is_alive(guest))
    warm.open()
    history = live.finish()
    assert history.outcome == "run.completed"
    assert len(history.of("task.started", "second")) == 1


def test_a_run_that_is_cancelled_leaves_none(warm: Warm) -> None:
    live = warm.start()
    [guest] = warm.wait_still()
    live.cancel()
    history = live.finish()
    assert history.outcome == "run.cancelled"
    wait_until(lambda: not is_alive(guest))
    assert not history.of("task.started", "second")


def test_a_supervisor_that_is_drained_keeps_none(tmp_path: Path, place: Place, gate: Path) -> None:
    with Embedded(tmp_path / "state") as house:
        warm = Warm(house, place, gate)
        live = warm.start()
        [guest] = warm.wait_still()
        house.begin(house.supervisor.drain())
        wait_until(lambda: not is_alive(guest))
        warm.open()
        live.wait("task.completed", "first")


def test_the_engines_death_is_its_own(tmp_path: Path, place: Place, gate: Path) -> None:
    with Embedded(tmp_path / "state") as house:
        warm = Warm(house, place, gate)
        warm.start()
        [guest] = warm.wait_still()
        os.kill(house.engine, signal.SIGKILL)
        wait_until(lambda: not is_alive(guest))


def test_the_zygotes_death_is_its_own_and_the_run_goes_on(
    tmp_path: Path, place: Place, gate: Path
) -> None:
    with Embedded(tmp_path / "state") as house:
        warm = Warm(house, place, gate)
        live = warm.start()
        [guest] = warm.wait_still()
        zygote = psutil.Process(guest).parent().parent()  # type: ignore[union-attr]
        zygote.kill()  # type: ignore[union-attr]
        wait_until(lambda: not is_alive(guest))
        warm.open()
        assert live.finish().output("second")


def test_nothing_is_left_of_those_that_were_used_or_thrown_away(
    tmp_path: Path, place: Place, gate: Path
) -> None:
    with Embedded(tmp_path / "state") as house:
        warm = Warm(house, place, gate)
        engine = psutil.Process(house.engine)

        def held() -> tuple[int, int]:
            return engine.num_fds(), len(descendants(house.engine))

        before = held()  # of an engine that has not run anything
        used = warm.start()
        warm.wait_still()
        warm.open()
        used.finish()
        wait_until(lambda: held() == before)
        (gate / "open").unlink()
        thrown_away = warm.start()
        warm.wait_still()
        thrown_away.cancel()
        thrown_away.finish()
        wait_until(lambda: held() == before)


def test_a_layer_that_nobody_worked_in_is_gone(warm: Warm) -> None:
    warm.place.write("workspace/given", "base")
    warm.place.tasks(
        TASKS.format(gate=warm.gate) + "def fails(input):\n    raise ValueError('no')\n"
    )
    live = warm.start(
        {"execute": "tasks.py:fails", "retry": {"attempts": 2, "delay": "1h", "jitter": 0}},
        workspace="workspace",
    )
    warm.open()
    warm.wait_still()
    layers = warm.house.state / "runs" / live.run / "layers"
    assert (layers / "second.2").is_dir()
    live.cancel()
    live.finish()
    wait_until(lambda: not (layers / "second.2").exists())


def test_memory_that_another_task_needs_is_given_up(
    tmp_path: Path, place: Place, gate: Path
) -> None:
    two = load_config(state=tmp_path / "state", memory="300MiB")
    with Embedded(tmp_path / "state", config=two) as house:
        warm = Warm(house, place, gate)
        live = warm.start()
        [guest] = warm.wait_still()
        other = house.start(
            place.spec(
                allow=Allow.parse([f"path:{gate}"]),
                tasks={"first": {"ro": [str(gate)]}},
            )
        )
        other.wait("task.started", "first")
        assert not is_alive(guest)
        warm.open()
        assert live.finish().outcome == other.finish().outcome == "run.completed"


# --- attacks --------------------------------------------------------------------------------------


SPEAKS = """
from casemate.protocol import codec
from casemate.protocol.messages import Emit
from casemate.sandbox.guestlink import Link
from msgspec import Raw
greet = Link.greet
def speak(self):
    for _ in range(100):
        self._socket.send(codec.encode(Emit(item=Raw(b"\\x01"))))
"""


def test_what_it_says_before_it_has_a_job_is_heard_by_nobody(warm: Warm) -> None:
    patch = "def greet_late(self, hello):\n    speak(self)\n    greet(self, hello)\n"
    warm.place.write(
        "ahead.py",
        AHEAD + f"import tasks\ntasks.wait_for('speak')\n{SPEAKS}{patch}Link.greet = greet_late\n",
    )
    live = warm.start({"ro": [str(warm.gate)], "sources": ["ahead.py", "tasks.py"]})
    wait_until(lambda: len(guests(warm.house.engine)) == 2)
    warm.open("speak")
    wait_until(lambda: len(guests(warm.house.engine)) == 1)
    warm.open()
    history = live.finish()
    assert history.output("second")["imported"] > history.output("first")
    assert not history.of("task.emitted")


def test_what_it_says_while_it_is_given_its_job_is_its_own(warm: Warm) -> None:
    """Right after HELLO: some of it before it stands still, some when it goes on. Each frame comes
    before RUN and ends it, or after RUN and is an item of its attempt."""
    patch = "def greet_and_speak(self, hello):\n    greet(self, hello)\n    speak(self)\n"
    warm.place.write("ahead.py", f"{AHEAD}{SPEAKS}{patch}Link.greet = greet_and_speak\n")
    live = warm.start()
    warm.open()
    history = live.finish()
    assert history.errors() in ({}, {"second": "protocol"})
    good = warm.house.run(warm.spec({"preload": [], "execute": "tasks.py:alone"}))
    assert good.outcome == "run.completed"


def test_an_import_that_fills_its_layer_is_ended_by_limits_disk(warm: Warm) -> None:
    warm.place.write("workspace/given", "base")
    fills = """
if os.environ["CASEMATE_ATTEMPT"] == "2":
    while True:
        for number in range(64):
            with open(f"/workspace/{number}", "wb") as file:
                file.write(bytes(1 << 20))
"""
    warm.place.write("ahead.py", AHEAD + fills)
    again = "def again(input, ctx):\n    if ctx.attempt == 1: raise ValueError('not yet')\n"
    warm.place.tasks(TASKS.format(gate=warm.gate) + again)
    live = warm.start(
        {
            "execute": "tasks.py:again",
            "retry": {"attempts": 2, "delay": "1h", "jitter": 0},
            "limits": {"disk": "8MiB"},
        },
        workspace="workspace",
    )
    warm.open()
    live.wait("task.retrying", "second")
    wait_until(lambda: len(guests(warm.house.engine)) == 1)
    wait_until(lambda: not guests(warm.house.engine))
    live.cancel()
    live.finish()


def test_what_it_forks_stands_still_with_it_and_dies_with_it(warm: Warm) -> None:
    """One child goes on out of the import as if it were the guest, one counts for ever."""
    warm.place.write(
        "ahead.py",
        AHEAD
        + """
if os.fork() == 0:
    os.setsid()
    while True:
        pass
if child := os.fork():
    os.waitpid(child, 0)  # or it may stand still with the others
""",
    )
    live = warm.start()
    still = warm.wait_still(2)
    used = [psutil.Process(pid).cpu_times() for pid in still]
    assert warm.wait_still(2) == still
    assert [psutil.Process(pid).cpu_times() for pid in still] == used
    warm.open()
    history = live.finish()
    assert history.output("second")["imported"] < history.output("first")
    wait_until(lambda: not any(is_alive(pid) for pid in still))


def test_what_could_reach_the_host_is_imported_for_an_attempt_alone(warm: Warm) -> None:
    """`second` comes before `third`, and would have been made before it."""
    written = warm.gate.parent / "written"
    written.mkdir()
    third = {"execute": "tasks.py:second", "needs": ["first"], "preload": ["ahead"],
             "sources": ["ahead.py"]}  # fmt: skip
    live = warm.start({"rw": [str(written)]}, more={"third": third}, allow=[f"rw:{written}"])
    warm.wait_still(1)
    warm.open()
    history = live.finish()
    assert history.output("second")["imported"] > history.output("first")
    assert history.output("third")["imported"] < history.output("first")
