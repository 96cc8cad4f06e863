"""A lifecycle is a table: state → what may happen → next state.

An edge that is not in the table is refused loudly before anything changes. Edges taken are kept
(a set no larger than the table), so that a test sees which ones nobody exercises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Generic, TypeVar

from ...protocol.errors import LocalViolation

__all__ = ["Lifecycle", "State"]


class State(Enum):
    """Hashed by identity: the hash of an `Enum` is a call of Python, and each move makes two."""

    __hash__ = object.__hash__


At = TypeVar("At", bound=Enum)


class Lifecycle(Generic[At]):
    __slots__ = ("taken", "transitions")

    def __init__(self, transitions: Mapping[At, Mapping[type, At]]) -> None:
        self.transitions = transitions
        self.taken: set[tuple[At, type]] = set()

    def next(self, subject: Callable[[], str], state: At, happening: type) -> At:
        """Where `happening` leads from `state`; `subject` names whose lifecycle it is, where that
        has to be told."""
        try:
            after = self.transitions[state][happening]
        except KeyError:
            raise LocalViolation(f"{subject()}: {happening.__name__} while {state.name}") from None
        self.taken.add((state, happening))
        return after

    def edges(self) -> set[tuple[At, type]]:
        return {(state, happening) for state, row in self.transitions.items() for happening in row}
