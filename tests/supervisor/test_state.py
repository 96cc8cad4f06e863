"""A run is seen when it is whole, and what its maker leaves who dies before goes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from casemate.protocol.errors import UsageError
from casemate.supervisor.gc import collect_garbage
from casemate.supervisor.state import RunDirectory, StateDirectory


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.open(tmp_path / "state")


def test_nobody_sees_a_run_before_it_is_filled(state: StateDirectory) -> None:
    seen: list[list[str]] = []

    def fill(run: RunDirectory) -> None:
        (run.path / "content").write_text("whole")
        seen.append(state.run_ids())
        assert list(collect_garbage(state)) == []  # somebody makes it

    owned = state.create_run(fill)
    assert seen == [[]] and state.run_ids() == [owned.directory.id]
    assert (owned.directory.path / "content").read_text() == "whole"
    assert owned.directory.is_owned()
    owned.ownership.release()


def test_there_is_no_run_that_could_not_be_filled(state: StateDirectory) -> None:
    def full(_: RunDirectory) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"):
        state.create_run(full)
    assert os.listdir(state.runs) == []


def test_what_a_dead_maker_left_is_taken_away(state: StateDirectory) -> None:
    def die(run: RunDirectory) -> None:
        (run.values / "half").write_bytes(b"x" * 10_000)
        os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        try:
            state.create_run(die)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert state.run_ids() == [] and len(os.listdir(state.runs)) == 1
    [dropped] = collect_garbage(state)
    assert dropped.run is None and dropped.bytes >= 10_000
    assert os.listdir(state.runs) == []


def test_a_maker_whose_folder_was_taken_away_makes_another(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the folder and its lock: it looks like what a dead maker left."""
    swept: list[str] = []
    make = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        make(path, mode)
        if not swept:
            swept.append(path.name)
            assert len(list(collect_garbage(state))) == 1

    monkeypatch.setattr(Path, "mkdir", mkdir)
    owned = state.create_run()
    assert state.run_ids() == [owned.directory.id] == os.listdir(state.runs)
    assert swept[0].endswith(owned.directory.id) is False
    owned.ownership.release()
