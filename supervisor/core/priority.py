"""A priority queue whose entries may change their place or leave: a heap with lazy deletion.

`put` gives an item a new entry; the old one is dead and is dropped when it comes to the top. Dead
entries never outnumber the living by more than a constant: the heap is rebuilt before, or ended
attempts with an hour left on their clocks would fill the memory. Equal keys come out in the order
they were put.

An item knows its entry itself, not by a number: in a queue that it comes back to from another lie
dead entries of its own, whose numbers the other may have given it again.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

__all__ = ["PriorityQueue", "Queued"]

# Below this a rebuild costs more thought than the memory is worth.
_SLACK = 64


class Queued:
    """An item of one queue at a time. `entry`: where it stands there; None: in none."""

    __slots__ = ("entry",)

    def __init__(self) -> None:
        self.entry: object = None


Key = TypeVar("Key", float, tuple[int, int, int])
Item = TypeVar("Item", bound=Queued)


class PriorityQueue(Generic[Key, Item]):
    __slots__ = ("_entries", "_living", "_puts")

    def __init__(self) -> None:
        self._entries: list[tuple[Key, int, Item]] = []
        self._living = 0
        self._puts = 0

    def put(self, key: Key, item: Item) -> None:
        """Enter an item, or move it to another place."""
        self._living += item.entry is None
        self._puts += 1
        item.entry = entry = (key, self._puts, item)
        heapq.heappush(self._entries, entry)
        if len(self._entries) > 2 * self._living + _SLACK:
            self._entries = [entry for entry in self._entries if entry[2].entry is entry]
            heapq.heapify(self._entries)

    def discard(self, item: Item) -> None:
        """Take an item out, if it is in."""
        self._living -= item.entry is not None
        item.entry = None

    def first(self) -> tuple[Key, Item] | None:
        """The item with the smallest key, left where it is."""
        entries = self._entries
        while entries:
            key, _, item = entry = entries[0]
            if item.entry is entry:
                return key, item
            heapq.heappop(entries)
        return None
