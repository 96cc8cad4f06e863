"""Longer stories: what the core is told, line by line, and what it answers.

A transcript in `scripts/` holds declarations and inputs as `simulated.py` explains them; lines
that begin with `>` are answers. `pytest tests/core --regenerate` writes the answers anew, and the
diff is reviewed as carefully as code. Together the transcripts take every edge of every table.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from casemate.protocol.errors import LocalViolation, UsageError
from casemate.supervisor.core import attempt, state, task

from .simulated import Simulated, show_deadline

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


def play(script: str) -> str:
    """The script with its answers as they are now."""
    lines: list[str] = []
    simulated = Simulated()
    for line in script.splitlines():
        if line.startswith(">"):
            continue
        lines.append(line)
        if not line or line.startswith("#"):
            continue
        if not line[0].isdigit():
            simulated.declare(line)
            continue
        now, _, said = line.partition(" ")
        before = copy.deepcopy(simulated.states)
        try:
            answers = simulated.at(float(now), said)
        except (LocalViolation, UsageError) as refusal:
            assert simulated.states == before, "refused, and yet something changed"
            answers = [f"{type(refusal).__name__}: {refusal}"]
        until = show_deadline(simulated.scheduler)
        lines.extend(f"> {answer}" for answer in [*answers, *([until] if until else [])])
        if not answers and not until:
            lines.append("> nothing")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.stem))
def test_the_core_answers_as_written(path: Path, request: pytest.FixtureRequest) -> None:
    script = path.read_text(encoding="utf-8")
    answered = play(script)
    # Registered only where this folder's conftest is read first: `pytest tests/core`.
    if request.config.getoption("--regenerate", default=False):
        path.write_text(answered, encoding="utf-8")
    else:
        assert answered == script


def test_the_transcripts_take_every_edge_of_every_table() -> None:
    for table in (task.LIFECYCLE, attempt.LIFECYCLE, state.LIFECYCLE):
        table.taken.clear()
    for path in SCRIPTS:
        play(path.read_text(encoding="utf-8"))
    assert task.LIFECYCLE.taken == task.LIFECYCLE.edges()
    assert attempt.LIFECYCLE.taken == attempt.LIFECYCLE.edges()
    assert state.LIFECYCLE.taken == state.LIFECYCLE.edges()
