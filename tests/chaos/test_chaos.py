"""A short one of each long test; `make chaos` runs them whole."""

from __future__ import annotations

from pathlib import Path

from .kills import compare_run
from .rollbacks import Returned, return_everywhere


def test_a_run_that_was_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    outcome = compare_run(tmp_path, seed=22, tasks=20, kills=6)
    assert outcome.problems == ()
    assert set(outcome.struck) == {"engine", "zygote", "front", "guest"}


def test_the_same_where_some_of_the_edges_are_streams(tmp_path: Path) -> None:
    outcome = compare_run(tmp_path, seed=22, tasks=20, kills=6, streaming=0.4)
    assert outcome.problems == ()


def test_a_run_forked_from_and_rolled_back_to_its_checkpoints_ends_the_same(tmp_path: Path) -> None:
    assert return_everywhere(tmp_path, seed=1, tasks=8, every=3) == Returned(3, 3, ())
