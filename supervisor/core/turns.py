"""Whose turn it is: an order that may be unfair, made so that nobody waits for ever.

The turn goes to the smallest key; but who has waited longest is passed over at most `PATIENCE`
times, and is next then, whatever its key. So a key may say that one goes before another always
(a priority), and the other still gets its share.

To have waited is to have stood here since one was last `served`, or came. Every move costs the
same, however many wait.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from .priority import PriorityQueue, Queued

__all__ = ["PATIENCE", "Turns"]

# What a higher priority is worth: eight turns of nine, where it always has something to do. With
# fewer it would say little, and with many more the lowest would wait as if for ever.
PATIENCE = 8

Waiting = TypeVar("Waiting", bound=Queued)


class Turns(Generic[Waiting]):
    __slots__ = ("_by_age", "_by_key", "_passed")

    def __init__(self) -> None:
        self._by_key: PriorityQueue[tuple[int, int, int], Waiting] = PriorityQueue()
        self._by_age: OrderedDict[Waiting, None] = OrderedDict()
        self._passed = 0  # how often the eldest was, since it is the eldest

    def put(self, key: tuple[int, int, int], waiting: Waiting) -> None:
        """Enter, or change the key; the age stays."""
        if waiting.entry is None:
            self._by_age[waiting] = None
        self._by_key.put(key, waiting)

    def discard(self, waiting: Waiting) -> None:
        """Take it out, if it is in."""
        if waiting.entry is not None:
            self._by_key.discard(waiting)
            if self._passed and next(iter(self._by_age)) is waiting:
                self._passed = 0
            del self._by_age[waiting]

    def first(self) -> Waiting | None:
        """Whose turn it is, left where it is."""
        if self._passed >= PATIENCE:
            return next(iter(self._by_age))
        first = self._by_key.first()
        return None if first is None else first[1]

    def served(self, waiting: Waiting) -> None:
        """It had its turn, and is the youngest now."""
        if len(self._by_age) == 1:
            return
        if next(iter(self._by_age)) is waiting:
            self._passed = 0
        else:
            self._passed += 1
        self._by_age.move_to_end(waiting)

    def __bool__(self) -> bool:
        return bool(self._by_age)
