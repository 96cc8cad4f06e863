"""Which edges of the core's tables were taken, and how often.

A table itself keeps only a set (`Lifecycle.taken`), which is what the core's tests look at. Here
the question is how rarely an edge is taken: one that a hundred thousand histories take once is as
good as unexercised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from casemate.supervisor.core import attempt, breaker, state, task
from casemate.supervisor.core.lifecycle import Lifecycle

__all__ = ["TABLES", "Edges", "missing", "watch_edges"]

Edges = tuple[str, str, str]  # table, state, what happened
# Any: tables of different states.
TABLES: dict[str, Lifecycle[Any]] = {
    "run": state.LIFECYCLE,
    "task": task.LIFECYCLE,
    "attempt": attempt.LIFECYCLE,
    "breaker": breaker.LIFECYCLE,
}


class _Counted(set[tuple[Enum, type]]):
    """In the place of a table's `taken`: told of an edge each time it is taken."""

    def __init__(self, table: str, taken: Counter[Edges]) -> None:
        super().__init__()
        self.table = table
        self.counts = taken

    def add(self, edge: tuple[Enum, type]) -> None:
        self.counts[self.table, edge[0].name, edge[1].__name__] += 1


@contextmanager
def watch_edges(taken: Counter[Edges]) -> Iterator[None]:
    """Count every edge that is taken meanwhile. The fold beside the live state takes them too."""
    before = {name: table.taken for name, table in TABLES.items()}
    for name, table in TABLES.items():
        table.taken = _Counted(name, taken)
    try:
        yield
    finally:
        for name, table in TABLES.items():
            table.taken = before[name]


def missing(taken: Counter[Edges]) -> set[Edges]:
    every = {
        (name, at.name, happening.__name__)
        for name, table in TABLES.items()
        for at, happening in table.edges()
    }
    return every - taken.keys()
