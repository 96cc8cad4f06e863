"""The engine's handles: asking, learning how it went, killing, and proof of death."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from casemate.protocol.errors import LocalViolation, RemoteViolation, SetupRefused
from casemate.protocol.messages import Hello
from casemate.sandbox.plan import ORDER
from casemate.sandbox.process import Ending, Sandbox, Stdio, wait_readable
from casemate.sandbox.spec import REQUEST_SIZE, Exited, Mode, Ready, SetupFailed
from fakes import wait_until
from sealed import FASHIONS, LIMITS, PATIENCE, House, SealedGuest, python


@pytest.fixture(scope="module", params=FASHIONS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    with House(request.param) as made:
        yield made


def test_a_command_is_ready_then_exits(house: House) -> None:
    sandbox = house.spawn("/bin/sh", "-c", "exit 7")
    ready = sandbox.wait_record(PATIENCE)
    assert isinstance(ready, Ready)
    exited = sandbox.wait_record(PATIENCE)
    assert isinstance(exited, Exited)
    assert Ending.of(exited.status) == Ending(code=7, signal=None)
    assert sandbox.wait_record(PATIENCE) is None
    assert sandbox.status_ended
    assert sandbox.wait_dead(PATIENCE)


def test_death_by_signal_is_told_apart_from_an_exit_code(house: House) -> None:
    ending = house.shell("kill -SEGV $$").ending
    assert ending == Ending(code=None, signal=signal.SIGSEGV)
    assert str(ending) == "signal SIGSEGV"
    assert house.shell("exit 139").ending == Ending(code=139, signal=None)


def test_a_program_that_is_not_there_is_a_failure_of_exec(house: House) -> None:
    missing = house.run("/no/such/program").failed
    assert missing is not None
    assert (missing.step, missing.errno) == ("exec", errno.ENOENT)
    folder = house.run("/usr").failed
    assert folder is not None
    assert (folder.step, folder.errno) == ("exec", errno.EACCES)


def test_programs_are_found_on_the_path(house: House) -> None:
    assert house.run("true").code == 0


def test_a_missing_folder_is_a_failure_of_that_step(house: House) -> None:
    failed = house.shell("true", cwd="/no/such/folder").failed
    assert failed is not None
    assert (failed.step, failed.errno) == ("folder", errno.ENOENT)


@pytest.mark.parametrize("step", ORDER)
def test_whichever_step_fails_the_code_does_not_run(house: House, step: str) -> None:
    plan = house.plan(house.spec(argv=("/bin/echo", "it ran")))
    if step not in plan.steps:  # the one that is root's alone
        assert step == "identity"
        return
    outcome = house.run(plan=plan, fail_step=step)
    assert outcome.failed is not None
    assert (outcome.failed.step, outcome.failed.errno) == (step, errno.EIO)
    assert outcome.exited is None
    assert outcome.stdout == ""


def test_a_wall_that_is_not_in_force_is_noticed_before_the_code_runs(house: House) -> None:
    plan = house.plan(house.spec(argv=("/bin/echo", "it ran")))
    for step in ("no_new_privs", "capabilities"):
        steps = tuple(name for name in plan.steps if name not in (step, "landlock", "seccomp"))
        # What is left out here is what a bug would leave out.
        broken = msgspec.structs.replace(plan, steps=steps)
        outcome = house.run(plan=broken)
        assert outcome.failed is not None
        assert outcome.failed.step == "verify"
        assert "a wall is missing" in outcome.failed.message
        assert outcome.stdout == ""


def test_sandboxes_that_were_before_leave_room_for_descriptors(
    house: House, tmp_path: Path
) -> None:
    """Under root the zygote keeps a descriptor for each slot that something was bound for."""
    few = msgspec.structs.replace(LIMITS, files=24)
    for _ in range(30):
        outcome = house.run("true", workspace=str(tmp_path), limits=few)
        assert outcome.failed is None
        assert outcome.code == 0


def test_a_failed_clone_is_the_sandboxs_failure_and_nobody_elses(house: House) -> None:
    plan = house.plan(house.spec(argv=("true",)))
    nonsense = 0x00010000 | 0x00000100  # CLONE_THREAD without CLONE_SIGHAND: EINVAL
    broken = msgspec.structs.replace(plan, clone_flags=plan.clone_flags | nonsense)
    outcome = house.run(plan=broken)
    assert outcome.failed is not None
    assert (outcome.failed.step, outcome.failed.errno) == ("clone", errno.EINVAL)
    assert house.run("true").code == 0


BROOD = """
import os, sys, time
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            sys.stdout.write('+')
            sys.stdout.flush()
            while True:
                time.sleep(1000)
        os._exit(0)
while True:
    pass
"""


def test_kill_takes_every_descendant_along(house: House) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    sandbox = house.spawn(*python(BROOD), stdio=Stdio(null, writer, null))
    os.close(writer)
    os.close(null)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        seen = b""
        while len(seen) < 20:
            more = pipe.read(20)
            assert more
            seen += more
        assert not sandbox.is_dead()
        sandbox.kill()
        assert sandbox.wait_dead(PATIENCE)
        # Every one of them held the pipe: it ends when the last is gone, and is not waited for.
        assert wait_readable(pipe.fileno(), 0)
        assert pipe.read() == b""


BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        os.write(1, b'!')
"""


def test_a_fork_bomb_meets_the_ceiling_and_dies_whole(house: House) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    sandbox = house.spawn(*python(BOMB), stdio=Stdio(null, writer, null))
    os.close(writer)
    os.close(null)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"!"
        assert house.run("true").code == 0, "a neighbour is served meanwhile"
        sandbox.kill()
        assert sandbox.wait_dead(PATIENCE)
        assert set(pipe.readall() or b"!") == set(b"!"), "the pipe has ended: nobody holds it"


def test_what_a_command_leaves_running_dies_with_it(house: House) -> None:
    outcome = house.python(BROOD.replace("while True:\n    pass\n", ""))
    assert outcome.code == 0


def test_a_program_that_ignores_every_signal_dies(house: House) -> None:
    code = (
        "import signal, sys, time\n"
        "for number in set(signal.valid_signals()) - {9, 19}:\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "print('deaf', flush=True)\n"
        "while True: time.sleep(1000)\n"
    )
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    sandbox = house.spawn(*python(code), stdio=Stdio(null, writer, null))
    os.close(writer)
    os.close(null)
    with os.fdopen(reader) as pipe:
        assert pipe.readline() == "deaf\n"
        sandbox.kill()
        assert sandbox.wait_dead(PATIENCE)


def test_a_kill_before_the_zygote_has_answered_counts(house: House) -> None:
    sandbox = house.spawn("/bin/sleep", "1000", wait=False)
    sandbox.kill()
    assert sandbox.is_asked
    assert not sandbox.is_dead()
    while sandbox.is_asked:
        assert wait_readable(house.zygote.fileno(), PATIENCE)
        assert house.zygote.receive_nowait() == [sandbox]
    assert sandbox.wait_dead(PATIENCE)
    assert sandbox.exited is None


def test_killing_twice_and_killing_the_dead_is_harmless(house: House) -> None:
    sandbox = house.spawn("true")
    sandbox.kill()
    assert sandbox.wait_dead(PATIENCE)
    sandbox.kill()
    assert sandbox.is_dead()
    assert sandbox.host_pid is None


def test_the_host_pid_is_the_pid_as_we_see_it(house: House) -> None:
    sandbox = house.spawn("/bin/sleep", "1000")
    assert isinstance(sandbox.wait_record(PATIENCE), Ready)
    assert Path(f"/proc/{sandbox.host_pid}/comm").read_text() == "casemate-init\n"


def test_handles_are_close_on_exec(house: House) -> None:
    sandbox = house.spawn("/bin/sleep", "1000")
    assert sandbox.pidfd is not None
    for fd in (sandbox.pidfd, sandbox.status_fileno(), house.zygote.fileno()):
        assert not os.get_inheritable(fd)


def test_a_request_too_large_is_refused_and_says_so(house: House) -> None:
    with pytest.raises(SetupRefused, match=f"at most {REQUEST_SIZE}"):
        house.spawn("true", "x" * REQUEST_SIZE)
    assert house.run("true", "x" * 100_000).code == 0


def test_a_guest_and_only_a_guest_has_a_link(house: House) -> None:
    plan = house.plan(house.spec(Mode.GUEST))
    with pytest.raises(LocalViolation, match="link"):
        house.spawn(plan=plan)


def test_a_guest_greets_from_behind_the_walls_and_hands_over_its_outbox(house: House) -> None:
    with SealedGuest(house) as guest:
        hello = guest.next()
        assert isinstance(hello, Hello)
        assert hello.pid == 2
        assert isinstance(guest.sandbox.wait_record(PATIENCE), Ready)
        assert guest.sandbox.outbox is not None
        assert os.listdir(f"/proc/self/fd/{guest.sandbox.outbox}") == []
        assert not os.get_inheritable(guest.sandbox.outbox)


@pytest.fixture
def lone() -> Iterator[tuple[Sandbox, socket.socket]]:
    """A handle whose status socket is the test's: what if the inside lies?"""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with House() as house:
        plan = house.plan(house.spec(argv=("true",)))
    sandbox = Sandbox(1, plan, ours, None)
    with theirs:
        yield sandbox, theirs
    sandbox.close()


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"\x80",
        msgspec.msgpack.encode({"kind": "ready"}),
        msgspec.msgpack.encode({"kind": "exit", "status": "0", "cpu": 0.0, "memory": 0}),
        msgspec.msgpack.encode({"kind": "other"}),
        b"\x91" * 15_000,
    ],
)
def test_a_status_record_that_is_none_is_the_insides_fault(
    lone: tuple[Sandbox, socket.socket], packet: bytes
) -> None:
    sandbox, inside = lone
    inside.send(packet)
    with pytest.raises(RemoteViolation, match="sandbox 1: status record"):
        sandbox.read_status_nowait()


def test_the_first_record_of_a_kind_counts(lone: tuple[Sandbox, socket.socket]) -> None:
    sandbox, inside = lone
    for status in (256, 512):
        inside.send(msgspec.msgpack.encode(Exited(status=status, cpu=0.0, memory=0)))
    assert len(sandbox.read_status_nowait()) == 2
    assert sandbox.exited is not None
    assert sandbox.exited.status == 256


def test_descriptors_nobody_asked_for_are_closed(lone: tuple[Sandbox, socket.socket]) -> None:
    sandbox, inside = lone
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    packet = msgspec.msgpack.encode(SetupFailed(step="x", errno=1, message=""))
    socket.send_fds(inside, [packet], [writer] * 50)
    os.close(writer)
    assert [type(record) for record in sandbox.read_status_nowait()] == [SetupFailed]
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) == before
    assert sandbox.outbox is None


def test_usage_of_the_tree_comes_with_the_exit(house: House) -> None:
    code = (
        "import os\n"
        "block = b'x' * (64 << 20)\n"
        "if os.fork():\n"
        "    os.wait()\n"
        "else:\n"
        "    sum(range(3_000_000))\n"
    )
    exited = house.python(code).exited
    assert exited is not None
    assert exited.cpu > 0
    assert exited.memory >= 64 << 20


def test_many_at_once_are_all_answered(house: House) -> None:
    plan = house.plan(house.spec(argv=("true",)))
    sandboxes = [house.spawn(plan=plan, wait=False) for _ in range(20)]
    wait_until(lambda: (house.zygote.receive_nowait(), not any(s.is_asked for s in sandboxes))[1])
    for sandbox in sandboxes:
        while sandbox.exited is None:
            assert sandbox.wait_record(PATIENCE) is not None
        assert sandbox.exited.status == 0
        house.bury(sandbox)


def test_a_flood_of_output_nobody_reads_does_not_keep_it_alive(house: House) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    sandbox = house.spawn("/bin/sh", "-c", "yes", stdio=Stdio(null, writer, writer))
    os.close(writer)
    os.close(null)
    assert wait_readable(reader, PATIENCE)
    sandbox.kill()
    assert sandbox.wait_dead(PATIENCE)
    os.close(reader)


def test_walls_in_force_can_be_sent_as_data(house: House) -> None:
    walls = house.plan(house.spec(argv=("true",))).walls
    assert json.loads(msgspec.json.encode(walls)) == walls
    assert walls["degraded"] == []
