"""Whichever write is the last, or is torn, lost or refused: nothing that was told is lost.

Here at a few writes of each kind; `make faults` does it at every one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faulty import FAULTS

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
