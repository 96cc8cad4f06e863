"""A priority queue whose entries may change their place or leave: a heap with lazy deletion.

`put` gives an item a new ticket and pushes a new entry; the entry with the old ticket is dead and
is dropped when it comes to the top. Dead entries never outnumber the living by more than a
constant: the heap is rebuilt before, or ended attempts with an hour left on their clocks would
fill the memory. Equal keys come out in the order they were put.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

__all__ = ["PriorityQueue", "Queued"]

# Below this a rebuild costs more thought than the memory is worth.
_SLACK = 64


class Queued:
    """An item of one queue. `ticket` belongs to that queue; 0: not in it."""

    __slots__ = ("ticket",)

    def __init__(self) -> None:
        self.ticket = 0


Key = TypeVar("Key", float, tuple[int, int, int])
Item = TypeVar("Item", bound=Queued)


class PriorityQueue(Generic[Key, Item]):
    __slots__ = ("_entries", "_living", "_tickets")

    def __init__(self) -> None:
        self._entries: list[tuple[Key, int, Item]] = []
        self._living = 0
        self._tickets = 0

    def put(self, key: Key, item: Item) -> None:
        """Enter an item, or move it to another place."""
        self._living += not item.ticket
        self._tickets += 1
        item.ticket = self._tickets
        heapq.heappush(self._entries, (key, item.ticket, item))
        if len(self._entries) > 2 * self._living + _SLACK:
            self._entries = [entry for entry in self._entries if entry[2].ticket == entry[1]]
            heapq.heapify(self._entries)

    def discard(self, item: Item) -> None:
        """Take an item out, if it is in."""
        self._living -= bool(item.ticket)
        item.ticket = 0

    def first(self) -> tuple[Key, Item] | None:
        """The item with the smallest key, left where it is."""
        entries = self._entries
        while entries:
            key, ticket, item = entries[0]
            if item.ticket == ticket:
                return key, item
            heapq.heappop(entries)
        return None
