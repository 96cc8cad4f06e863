"""A short one of each long test; `make chaos` runs them whole."""

from __future__ import annotations

from pathlib import Path

from .kills import compare_run


def test_a_run_that_was_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    outcome = compare_run(tmp_path, seed=22, tasks=20, kills=6)
    assert outcome.problems == ()
    assert set(outcome.struck) == {"engine", "zygote", "front", "guest"}
