"""Whichever write is the last, or is torn, lost or refused: nothing that was told is lost.

Here at a few writes of each kind; `make faults` does it at every one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from casemate.protocol.events import RunStarted
from casemate.supervisor.core.commands import Record
from casemate.supervisor.core.events import Submit
from casemate.supervisor.core.scheduler import Scheduler
from casemate.supervisor.files import Files, begin_files
from casemate.supervisor.journal import Entry, Journal
from casemate.supervisor.state import StateDirectory
from core.simulated import NIL, raw
from every_write import SPEC, AlwaysOverlays, outcome, take_up
from faulty import FAULTS
from msgspec import structs

TESTS = Path(__file__).parent.parent
COUNT = 12


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_survives_a_fault_at_any_of_its_writes(fault: str, tmp_path: Path) -> None:
    script = TESTS / "supervisor" / "every_write.py"
    done = subprocess.run(
        [sys.executable, "-B", str(script), fault, str(tmp_path), str(COUNT), "7"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # How much one commit holds varies, and with it how many there are: the last may not come.
    assert int(done.stdout) >= COUNT - 2


def test_an_attempt_that_had_its_layer_before_its_number_was_durable_begins_again(
    tmp_path: Path,
) -> None:
    """The engine makes an attempt's layer while the journal still writes: neither waits."""
    (tmp_path / "base").mkdir()
    state = StateDirectory.open(tmp_path / "state")
    spec = structs.replace(SPEC, workspace=str(tmp_path / "base"))
    owned = state.create_run(lambda run: begin_files(run, spec, state.path))
    run = owned.directory.id
    files = Files.of_run(owned.directory, spec, AlwaysOverlays(), state.path)
    assert files is not None
    records = Scheduler(2, 1000).step(0.0, Submit(run, spec, NIL, raw(spec), 7))
    durable: list[Entry] = [
        (None, None, 0.0, each.data)
        for each in records
        if isinstance(each, Record) and isinstance(each.data, RunStarted)
    ]
    journal = Journal(lambda _: None, lambda _, error: pytest.fail(str(error)))
    journal.open(owned.directory)
    journal.append(run, durable)
    journal.close()
    files.workspace.store.begin("a.1")
    (owned.directory.path / "layers" / "a.1" / "upper" / "lost").write_text("of the lost attempt")
    owned.ownership.release()

    assert take_up(state, run)
    _, made = outcome(state, run)
    assert sorted(made) == ["by-a", "by-b", "by-c", "by-d"]
