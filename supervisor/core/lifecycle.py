"""A lifecycle is a table: state → what may happen → next state.

An edge that is not in the table is refused loudly before anything changes. Edges taken are kept
(a set no larger than the table), so that a test sees which ones nobody exercises.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

from ...protocol.errors import LocalViolation

__all__ = ["Lifecycle"]

State = TypeVar("State", bound=Enum)


class Lifecycle(Generic[State]):
    __slots__ = ("taken", "transitions")

    def __init__(self, transitions: Mapping[State, Mapping[type, State]]) -> None:
        self.transitions = transitions
        self.taken: set[tuple[State, type]] = set()

    def next(self, subject: str, state: State, happening: type) -> State:
        """Where `happening` leads from `state`; `subject` names whose lifecycle it is."""
        try:
            after = self.transitions[state][happening]
        except KeyError:
            raise LocalViolation(f"{subject}: {happening.__name__} while {state.name}") from None
        self.taken.add((state, happening))
        return after

    def edges(self) -> set[tuple[State, type]]:
        return {(state, happening) for state, row in self.transitions.items() for happening in row}
