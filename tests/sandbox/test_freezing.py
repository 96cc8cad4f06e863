"""A frozen sandbox: nothing of it runs, until it is thawed or killed. By v2's cgroup.freeze, and by
signals where there is none (with v1's list of processes, and without any cgroup)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from casemate.sandbox import stopping
from casemate.sandbox.cgroup import CgroupFacts, Hierarchy
from casemate.sandbox.plan import ORDER
from casemate.sandbox.process import Sandbox, Stdio, wait_readable
from casemate.sandbox.spec import Exited, Ready
from fakes import wait_until
from sealed import FASHIONS, PATIENCE, House, SealedGuest, python, this_host


def ways() -> dict[str, CgroupFacts]:
    here = this_host().cgroup
    v1 = tuple(branch for branch in here.branches if not branch.unified)
    found = {"signals": CgroupFacts(Hierarchy.NONE, ())}
    if len(v1) < len(here.branches):
        found["cgroup.freeze"] = here
    if v1:
        found["signals over v1"] = replace(here, branches=v1)
    return found


WAYS = ways()


@pytest.fixture(scope="module", params=sorted(WAYS))
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    with House(FASHIONS[0], WAYS[request.param]) as made:
        yield made


def tree(sandbox: Sandbox) -> list[int]:
    """Every process of it; looked up without the code under test."""
    assert sandbox.host_pid is not None
    return tree_of(sandbox.host_pid)


def tree_of(init: int) -> list[int]:
    found, pending = [], [init]
    while pending:
        pid = pending.pop()
        found.append(pid)
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(FileNotFoundError, ProcessLookupError):
                    text = Path(f"/proc/{pid}/task/{task}/children").read_text()
                    pending += [int(word) for word in text.split()]
    return found


def states(pid: int) -> set[str]:
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{pid}/task/{task}/stat").read_text()
                found.add(text.rpartition(")")[2].split()[0])
    return found


def stands_still(sandbox: Sandbox) -> bool:
    """The kernel says so of each thread; or of the whole group, whose threads it shows asleep."""
    if sandbox.cgroup is not None and sandbox.cgroup.is_frozen():
        return True
    return all(states(pid) <= {"T", "Z"} for pid in tree(sandbox))


def stands_still_or_is_over(sandbox: Sandbox) -> bool:
    """For one that may come to its end at any moment, also between two looks."""
    init = sandbox.host_pid
    if init is None or (sandbox.cgroup is not None and sandbox.cgroup.is_frozen()):
        return True
    return all(states(pid) <= {"T", "Z"} for pid in tree_of(init))


@contextmanager
def running(house: House, *argv: str) -> Iterator[tuple[Sandbox, int]]:
    """A program, and the end of its stdout that does not block."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    null = os.open(os.devnull, os.O_RDWR)
    sandbox = house.spawn(*argv, stdio=Stdio(null, writer, null))
    os.close(writer)
    os.close(null)
    try:
        yield sandbox, reader
    finally:
        os.close(reader)
        house.bury(sandbox)


def drain(reader: int) -> int:
    taken = 0
    with suppress(BlockingIOError):
        while more := os.read(reader, 1 << 16):
            taken += len(more)
    return taken


TALKER = "import os\nwhile True: os.write(1, b'.')"

CROWD = """
import os, signal
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                os.write(1, b'.')
        os._exit(0)
while True:
    os.write(1, b'.')
"""

BOMB = """
import os
while True:
    try:
        if os.fork() == 0:
            os.write(1, b'!')
    except OSError:
        os.write(1, b'!')
"""

# Children that wake each other, and their parent, as often as they can.
WAKERS = """
import os, signal
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        while True:
            os.write(1, b'.')
            for other in [1, 2, *range(3, 8)]:
                try: os.kill(other, signal.SIGCONT)
                except OSError: pass
    pids.append(pid)
while True:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
"""

# The first thread ends before the others, and the process shows as a zombie.
HEADLESS = """
import ctypes, os, threading
def talk():
    while True:
        os.write(1, b'.')
threading.Thread(target=talk).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
"""

PROGRAMS = {"one": TALKER, "a crowd": CROWD, "a bomb": BOMB, "wakers": WAKERS, "headless": HEADLESS}


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_frozen_sandbox_does_nothing_and_a_thawed_one_goes_on(house: House, program: str) -> None:
    with running(house, *python(PROGRAMS[program])) as (sandbox, reader):
        for _ in range(3):
            assert wait_readable(reader, PATIENCE)
            sandbox.freeze()
            assert sandbox.is_frozen
            wait_until(lambda: stands_still(sandbox))
            drain(reader)
            assert stands_still(sandbox)
            assert not wait_readable(reader, 0)
            assert not sandbox.is_dead()
            sandbox.thaw()
            assert not sandbox.is_frozen


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_a_frozen_sandbox_dies_of_kill_at_once(house: House, program: str) -> None:
    with running(house, *python(PROGRAMS[program])) as (sandbox, reader):
        assert wait_readable(reader, PATIENCE)
        sandbox.freeze()
        wait_until(lambda: stands_still(sandbox))
        sandbox.kill()
        assert sandbox.wait_dead(PATIENCE)
        drain(reader)
        assert wait_readable(reader, 0), "the pipe has ended: nobody holds it"
        assert os.read(reader, 1) == b""


def test_freezing_and_thawing_twice_is_as_good_as_once(house: House) -> None:
    with running(house, *python(TALKER)) as (sandbox, reader):
        sandbox.thaw()
        assert wait_readable(reader, PATIENCE)
        sandbox.freeze()
        sandbox.freeze()
        wait_until(lambda: stands_still(sandbox))
        sandbox.freeze()
        drain(reader)
        sandbox.thaw()
        assert wait_readable(reader, PATIENCE)
        sandbox.thaw()
        drain(reader)
        assert wait_readable(reader, PATIENCE)


def test_the_dead_can_be_frozen_and_thawed(house: House) -> None:
    sandbox = house.spawn("true")
    while sandbox.exited is None:
        assert sandbox.wait_record(PATIENCE) is not None
    assert sandbox.wait_dead(PATIENCE)
    sandbox.freeze()
    sandbox.thaw()
    sandbox.freeze()
    assert sandbox.is_dead()


def test_what_was_frozen_before_it_was_there_starts_when_it_is_thawed(house: House) -> None:
    # By signals it may have run for a while before it stands still, but not to its end.
    given, give = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    program = ("/bin/sh", "-c", "read line; exit 7")
    sandbox = house.spawn(*program, stdio=Stdio(given, null, null), wait=False)
    sandbox.freeze()
    assert sandbox.is_asked
    wait_until(lambda: (house.zygote.receive_nowait(), not sandbox.is_asked)[1])
    wait_until(lambda: stands_still(sandbox))
    os.write(give, b"go on\n")
    assert not sandbox.is_dead()
    sandbox.thaw()
    while sandbox.exited is None:
        assert sandbox.wait_record(PATIENCE) is not None
    assert sandbox.exited.status == 7 << 8
    for fd in (given, give, null):
        os.close(fd)


def test_a_freeze_may_come_at_any_moment_of_the_building(house: House) -> None:
    """Thirty moments, each a little later than the last; whichever it was, it stands still and then
    goes on."""
    plan = house.plan(house.spec(argv=("/bin/true",)))
    for moment in range(30):
        sandbox = house.spawn(plan=plan)
        for _ in range(moment * 500):
            pass
        sandbox.freeze()
        wait_until(partial(stands_still_or_is_over, sandbox))
        sandbox.thaw()
        while sandbox.exited is None:
            assert sandbox.wait_record(PATIENCE) is not None, sandbox.failed
        assert sandbox.exited.status == 0
        house.bury(sandbox)


@pytest.mark.parametrize("step", [step for step in ORDER if step not in ("identity", "user")][::5])
def test_a_sandbox_that_fails_to_be_built_says_so_after_the_thaw(house: House, step: str) -> None:
    plan = house.plan(house.spec(argv=("/bin/true",)))
    sandbox = house.spawn(plan=plan, fail_step=step)
    sandbox.freeze()
    sandbox.thaw()
    while sandbox.failed is None:
        assert sandbox.wait_record(PATIENCE) is not None
    assert sandbox.failed.step == step


def test_a_frozen_one_that_was_never_there_can_be_killed(house: House) -> None:
    sandbox = house.spawn("/bin/sleep", "1000", wait=False)
    sandbox.freeze()
    sandbox.kill()
    wait_until(lambda: (house.zygote.receive_nowait(), not sandbox.is_asked)[1])
    assert sandbox.wait_dead(PATIENCE)


def test_a_request_to_end_waits_for_the_thaw(house: House) -> None:
    sandbox = house.spawn("/bin/sleep", "1000")
    assert isinstance(sandbox.wait_record(PATIENCE), Ready)
    sandbox.freeze()
    wait_until(lambda: stands_still(sandbox))
    sandbox.terminate()
    assert stands_still(sandbox)
    sandbox.thaw()
    assert isinstance(sandbox.wait_record(PATIENCE), Exited)


def test_a_frozen_neighbour_is_nobody_elses_affair(house: House) -> None:
    with running(house, *python(CROWD)) as (sandbox, reader):
        assert wait_readable(reader, PATIENCE)
        sandbox.freeze()
        wait_until(lambda: stands_still(sandbox))
        assert house.run("true").code == 0
        assert stands_still(sandbox)


def test_what_the_task_itself_had_stopped_stays_stopped(house: House) -> None:
    code = (
        "import os, signal\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    signal.pause()\n"
        "os.kill(pid, signal.SIGSTOP)\n"
        "os.waitpid(pid, os.WUNTRACED)\n"
        "while True: os.write(1, b'.')"
    )
    with running(house, *python(code)) as (sandbox, reader):
        assert wait_readable(reader, PATIENCE)
        (job,) = (pid for pid in tree(sandbox) if states(pid) == {"T"})
        sandbox.freeze()
        wait_until(lambda: stands_still(sandbox))
        drain(reader)
        sandbox.thaw()
        assert wait_readable(reader, PATIENCE)
        assert states(job) == {"T"}


def test_a_guest_can_be_frozen_with_libzmqs_threads(house: House) -> None:
    with SealedGuest(house) as guest:
        guest.next()
        guest.sandbox.freeze()
        wait_until(lambda: stands_still(guest.sandbox))
        guest.sandbox.thaw()


def test_a_pid_that_belongs_to_somebody_else_now_is_not_signalled() -> None:
    """It was in the list once, and is not any more."""
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["sleep", "1000"])
    try:
        assert stopping.send(signal.SIGSTOP, [pid], list) == set()
        assert "T" not in states(pid)
        assert stopping.send(signal.SIGSTOP, [pid], lambda: [pid]) == {pid}
        wait_until(lambda: states(pid) == {"T"})
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
