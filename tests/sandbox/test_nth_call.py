"""Whichever call fails while a sandbox is built, the task's code does not run, nothing is left, and
the next sandbox is built. `--every-call` tries each of them, else each seventh, another seventh in
each fashion."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import nth_call
import pytest
from casemate.sandbox import process
from casemate.sandbox.process import Sandbox, Stdio
from casemate.sandbox.spec import Bind, Plan
from msgspec import structs
from sealed import FASHIONS, PATIENCE, House

STEP = 7
WALLS = ("capabilities", "no_new_privs", "filter", "landlock", "shared", "rlimits", "mounts", "fds")


@pytest.fixture(params=FASHIONS)
def house(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    before, _, _ = process.BOOTSTRAP.partition("from casemate.sandbox.zygote")
    monkeypatch.setattr(process, "BOOTSTRAP", before + nth_call.BOOTSTRAP)
    with House(request.param) as made:
        yield made


@pytest.fixture
def plan(house: House, tmp_path: Path) -> Plan:
    """One that takes many steps: what is given at several places, a folder to write to."""
    given = tmp_path / "given"
    given.mkdir()
    (given / "file").write_text("x")
    binds = (Bind(str(given), "/data/read"), Bind(str(given), "/data/written", writable=True))
    return house.plan(
        house.spec(
            argv=("/bin/echo", "it ran"),
            workspace=str(given),
            input_file=str(given / "file"),
            binds=binds,
        )
    )


def attempt(house: House, plan: Plan, asked: str | None) -> tuple[Sandbox, str]:
    """A sandbox to its end, and what its program said."""
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        sandbox = house.spawn(plan=plan, stdio=Stdio(null, writer, null), fail_step=asked)
    finally:
        os.close(writer)
        os.close(null)
    while sandbox.exited is None and sandbox.failed is None and not sandbox.status_ended:
        sandbox.wait_record(PATIENCE)
    house.bury(sandbox)
    with os.fdopen(reader) as said:
        return sandbox, said.read()


def zygote_of(house: House) -> int:
    launcher = house.zygote.launcher_pid
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (pid,) = map(int, children)
    return pid


def left_by(pid: int) -> tuple[list[str], int, str]:
    """Descriptors and mounts of the zygote, and its children. User namespaces for the owners of
    bound files are kept on purpose."""
    kinds = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        kind = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0]
        if kind != "user":
            kinds.append(kind)
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return sorted(kinds), len(mounts), Path(f"/proc/{pid}/task/{pid}/children").read_text()


def for_slot(plan: Plan, number: int) -> Plan:
    """As another sandbox, for which the zygote has nothing ready."""
    if plan.host_id is None:
        return plan
    return structs.replace(plan, host_id=plan.host_id + number)


def test_whichever_call_fails_no_code_runs_and_nothing_is_left(
    house: House, plan: Plan, request: pytest.FixtureRequest
) -> None:
    sandbox, said = attempt(house, plan, "count")
    count = int(said.split()[0])
    assert said.split()[1:] == ["it", "ran"]
    assert count > 150
    whole = {name: sandbox.posture()[name] for name in WALLS}
    zygote = zygote_of(house)
    before, mounts = left_by(zygote), Path("/proc/self/mountinfo").read_text()
    step = 1 if request.config.getoption("--every-call", default=False) else STEP
    first = 1 + FASHIONS.index(request.node.callspec.params["house"])
    tolerated = []
    for number in range(first, count + 1, step):
        sandbox, said = attempt(house, for_slot(plan, number), f"call {number}")
        if sandbox.ready is None:
            assert said == "", number
        elif sandbox.failed is not None:
            assert (sandbox.failed.step, said) == ("exec", ""), number
        else:
            # Nothing was lost with that call: every wall stands all the same.
            assert {name: sandbox.posture()[name] for name in WALLS} == whole, number
            tolerated.append(number)
    # To map the owners of a public folder that is only read: it can be read without.
    assert len(tolerated) <= 8, tolerated
    assert left_by(zygote) == before
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert attempt(house, plan, None)[1] == "it ran\n"
