"""The zygote as a process: clean, single-threaded, never waiting for a sandbox; and its death."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol.errors import SetupRefused
from casemate.sandbox import cgroup
from casemate.sandbox.process import Sandbox, Zygote, wait_readable
from casemate.sandbox.spec import Ready
from fakes import wait_until
from msgspec import structs
from sealed import FASHIONS, LIMITS, PATIENCE, House, this_host

SECRET = "casemate-test-secret-93a0"


@pytest.fixture(params=FASHIONS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    os.environ["CASEMATE_TEST_SECRET"] = SECRET
    with House(request.param) as made:
        yield made
    del os.environ["CASEMATE_TEST_SECRET"]


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def zygote_pid(house: House) -> int:
    (pid,) = children(house.zygote.launcher_pid)
    return pid


def living(house: House) -> list[Sandbox]:
    sandboxes = [house.spawn("/bin/sleep", "1000") for _ in range(3)]
    for sandbox in sandboxes:
        assert isinstance(sandbox.wait_record(PATIENCE), Ready)
        assert not sandbox.is_dead()
    return sandboxes


def test_it_is_started_without_the_engines_environment(house: House) -> None:
    for pid in (house.zygote.launcher_pid, zygote_pid(house)):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert environment == b"LANG=C.UTF-8\0"
        assert SECRET.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_it_has_one_thread_and_no_terminal(house: House) -> None:
    for pid in (house.zygote.launcher_pid, zygote_pid(house)):
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
        terminal = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4]
        assert terminal == "0"
        assert os.getsid(pid) == house.zygote.launcher_pid


def descriptors(pid: int) -> dict[int, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {int(entry.name): str(entry.readlink()) for entry in folder.iterdir()}


def test_it_holds_its_socket_the_template_and_nothing_else(house: House) -> None:
    found = descriptors(zygote_pid(house))
    assert [found.pop(fd) for fd in (0, 1, 2)] == ["/dev/null"] * 3
    assert found.pop(3).startswith("socket:")
    assert sorted(target.split(":")[0] for target in found.values()) == ["/", "mnt"]
    launcher = descriptors(house.zygote.launcher_pid)
    assert set(launcher) == {0, 1, 2, *(fd for fd in launcher if "pipe:" in launcher[fd])}


def test_it_closes_what_it_was_sent_and_has_its_dead_reaped(house: House) -> None:
    pid = zygote_pid(house)
    assert house.run("true").code == 0
    before = descriptors(pid)
    for _ in range(5):
        assert house.run("true").code == 0
    house.run("true", fail_step="mounts")
    assert descriptors(pid) == before
    wait_until(lambda: children(pid) == [])


def test_owners_of_bound_files_cost_one_namespace_each(house: House, tmp_path: Path) -> None:
    plan = house.plan(house.spec(argv=("true",), workspace=str(tmp_path), sources=str(tmp_path)))
    pid = zygote_pid(house)
    assert house.run(plan=plan).code == 0
    before = descriptors(pid)
    assert house.run(plan=plan).code == 0
    assert descriptors(pid) == before


def test_it_is_pid_1_of_its_own_namespace_and_its_death_takes_all_along(house: House) -> None:
    sandboxes = living(house)
    pid = zygote_pid(house)
    assert "\t1\n" in Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1][:40]
    os.kill(pid, signal.SIGKILL)
    for sandbox in sandboxes:
        assert sandbox.wait_dead(PATIENCE)
        assert sandbox.exited is None
    assert wait_readable(house.zygote.fileno(), PATIENCE)
    house.zygote.receive_nowait()
    assert house.zygote.is_dead


def test_the_launchers_death_is_the_zygotes(house: House) -> None:
    sandboxes = living(house)
    os.kill(house.zygote.launcher_pid, signal.SIGKILL)
    for sandbox in sandboxes:
        assert sandbox.wait_dead(PATIENCE)


def test_hanging_up_is_the_end_of_all(house: House) -> None:
    sandboxes = living(house)
    house.zygote.close()
    for sandbox in sandboxes:
        assert sandbox.wait_dead(PATIENCE)


def test_what_a_dead_zygote_was_asked_for_fails(house: House) -> None:
    pid = zygote_pid(house)
    os.kill(pid, signal.SIGSTOP)
    asked = [house.spawn("true", wait=False) for _ in range(3)]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (house.zygote.receive_nowait(), house.zygote.is_dead)[1])
    for sandbox in asked:
        assert sandbox.failed is not None
        assert sandbox.failed.step == "zygote"
        assert sandbox.is_dead()
    late = house.spawn("true", wait=False)
    assert late.failed is not None
    assert late.failed.step == "zygote"


def test_a_death_that_shows_while_a_request_is_sent_is_told_all_the_same(house: House) -> None:
    pid = zygote_pid(house)
    os.kill(pid, signal.SIGSTOP)
    first = house.spawn("true", wait=False)
    end = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    wait_readable(end, PATIENCE)
    os.close(end)
    second = house.spawn("true", wait=False)  # finds the socket broken
    assert house.zygote.is_dead
    assert house.zygote.receive_nowait() == [first, second]
    assert house.zygote.receive_nowait() == []


def test_a_zygote_that_does_not_keep_up_never_blocks_us(house: House) -> None:
    pid = zygote_pid(house)
    os.kill(pid, signal.SIGSTOP)
    plan = house.plan(house.spec(argv=("true", "x" * 60_000)))
    asked = [
        house.spawn(plan=plan, wait=False) for _ in range(12)
    ]  # far more than the socket takes
    assert all(sandbox.is_asked for sandbox in asked)
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: (house.zygote.receive_nowait(), not any(s.is_asked for s in asked))[1])
    for sandbox in asked:
        while sandbox.exited is None:
            assert sandbox.wait_record(PATIENCE) is not None
        assert sandbox.exited.status == 0


def test_a_stopped_sandbox_does_not_keep_others_from_starting(house: House) -> None:
    sandbox = house.spawn("/bin/sleep", "1000")
    assert sandbox.pidfd is not None
    signal.pidfd_send_signal(sandbox.pidfd, signal.SIGSTOP)
    assert house.run("true").code == 0
    sandbox.kill()
    assert sandbox.wait_dead(PATIENCE)


ENGINE = """
import os, sys
from casemate.sandbox.process import Stdio, Zygote
from sealed import House
house = House(sys.argv[1])
sandbox = house.spawn('/bin/sleep', '1000')
sandbox.wait_record(60)
print(house.zygote.launcher_pid, sandbox.host_pid, house.cgroups.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("fashion", FASHIONS)
def test_if_the_engine_is_killed_every_sandbox_dies(fashion: str) -> None:
    path = os.pathsep.join(sys.path)
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE, fashion],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert engine.stdout is not None
    assert engine.stdin is not None
    launcher, sandbox, folder = engine.stdout.readline().split()
    handles = [os.pidfd_open(int(pid)) for pid in (launcher, sandbox)]
    engine.kill()
    engine.wait()
    engine.stdin.close()
    engine.stdout.close()
    for handle in handles:
        assert wait_readable(handle, PATIENCE)
        os.close(handle)
    swept = cgroup.sweep(this_host().cgroup)  # what the dead engine could not remove
    assert [path for path in swept.left if path.name == folder.decode()] == []


def test_a_zygote_that_cannot_start_says_which_step_failed() -> None:
    with Zygote.start(structs.replace(this_host(), prefixes=("/etc",))) as zygote:
        with pytest.raises(SetupRefused, match=r"template.*/etc would show too much"):
            zygote.wait_ready(PATIENCE)
        assert zygote.is_dead


def test_it_can_be_watched_by_a_loop(house: House) -> None:
    plan = house.plan(house.spec(argv=("true",), limits=LIMITS))
    sandbox = house.spawn(plan=plan, wait=False)
    poller = select.epoll()
    poller.register(house.zygote.fileno(), select.EPOLLIN)
    assert poller.poll(PATIENCE)
    assert house.zygote.receive_nowait() == [sandbox]
    assert sandbox.pidfd is not None
    poller.register(sandbox.pidfd, select.EPOLLIN)
    while not any(fd == sandbox.pidfd for fd, _ in poller.poll(PATIENCE)):
        pass
    poller.close()
    assert [type(r).__name__ for r in sandbox.read_status_nowait()] == ["Ready", "Exited"]
    assert sandbox.status_ended
