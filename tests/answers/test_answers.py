"""Every cell of the table, by rules; by functions for the kinds that differ in how they end."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Embedded

from answers.table import KINDS, UNASKED, Kind, cells, is_refused, run_cells, unasked

# One that the guest tells, one that is a kill, and two whose attempts never begin.
BY_FUNCTION = {"error", "timeout.wall", "setup", "breaker_open"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name or kind.kind))
def test_each_answer_to_it_is_carried_out(house: Embedded, kind: Kind, tmp_path: Path) -> None:
    chosen = [
        cell for cell in cells()
        if cell.kind is kind and (not cell.is_function or kind.kind in BY_FUNCTION)
    ]  # fmt: skip
    got = run_cells(house, tmp_path / "repo", chosen)
    assert dict(zip(chosen, got, strict=True)) == {cell: cell.expected() for cell in chosen}


@pytest.mark.parametrize("kind", UNASKED)
def test_what_no_attempt_can_help_is_asked_of_nobody(house: Embedded, kind: str) -> None:
    assert unasked(house, kind) == UNASKED[kind][0]
    assert is_refused(kind)
