"""Limits that several tasks share under a key: how many at a time, how many within a period.

A `Gate` is a count with a limit. What wants to start takes a place at each of its gates, or waits
at the first that has none, and holds no place anywhere meanwhile. A place is taken before the start
and then started or given back; a bulkhead has it back when the attempt ends.

The count is one for each key, whoever names it; the limit is each one's own word. Where two
pipelines disagree (4 at a time, and 8), there are two gates of one count, and each keeps to its
own: the stricter one starts nothing that would be a fifth.

Who waits at a gate does so by run: a `Party` is what one run has there. Places go round the
parties, the highest priority first, and none is passed over for ever (`Turns`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from ...protocol.units import format_rate
from .attempt import Clock
from .priority import PriorityQueue, Queued
from .turns import Turns

if TYPE_CHECKING:
    from .admission import Line, Waiter

__all__ = ["Bulkhead", "Count", "Gate", "Name", "Party", "RateLimit"]

Name = tuple[str, str, int, float]  # of a gate: what it counts, the key, the limit, the period


class Count:
    """What is counted under one key."""

    __slots__ = ("gates", "kept", "key", "period", "starts", "taken")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.gates: list[Gate] = []
        self.taken = 0
        # Of rates: when the last ones started, as many as the widest of the gates asks for.
        self.starts: deque[float] = deque()
        self.kept = 0
        self.period = 0.0


class Party(Queued):
    """What one run has waiting at one gate, in the run's own order."""

    __slots__ = ("gate", "line", "waiters")

    def __init__(self, gate: Gate, line: Line) -> None:
        super().__init__()
        self.gate = gate
        self.line = line
        self.waiters: PriorityQueue[float, Waiter] = PriorityQueue()


class Gate(Clock):
    """As a clock: when it opens by itself, where somebody waits."""

    __slots__ = ("arrivals", "count", "name", "parties", "turns", "users")

    def __init__(self, name: Name, count: Count) -> None:
        super().__init__()
        self.name = name
        self.count = count
        count.gates.append(self)
        self.arrivals = 0  # of parties, and of those that were served and queue up again
        self.parties: dict[Line, Party] = {}
        self.turns: Turns[Party] = Turns()
        self.users = 0  # runs that name it

    @abstractmethod
    def has_room(self, now: float) -> bool: ...

    def is_overdrawn(self, now: float) -> bool:
        """Whether a place that was taken may not be used now: others, who may by their own
        word, took so many that it would be one too many by this one's."""
        self.count.taken -= 1
        has_room = self.has_room(now)
        self.count.taken += 1
        return not has_room

    def take(self) -> None:
        self.count.taken += 1

    def give_back(self) -> None:
        """A place that was taken and not used."""
        self.count.taken -= 1

    def start(self, now: float) -> None:
        """A place that was taken is used from now on."""

    def end(self) -> None:
        """What used it has ended."""

    @abstractmethod
    def words(self) -> str:
        """Why who waits here does."""

    def due(self) -> float:
        return math.inf


class Bulkhead(Gate):
    """At most `limit` at a time."""

    __slots__ = ("limit",)

    def __init__(self, name: Name, count: Count) -> None:
        super().__init__(name, count)
        self.limit = name[2]

    def has_room(self, now: float) -> bool:
        return self.count.taken < self.limit

    def end(self) -> None:
        self.count.taken -= 1

    def words(self) -> str:
        kind, key = self.count.key
        if kind == "bulkhead":
            return f"Under the bulkhead {key} {self.limit} may run at once, in all runs, and do."
        return f"Its max_parallel is {self.limit}, in all runs, and so many of it are alive."


class RateLimit(Gate):
    """At most `limit` starts within any `period`: counted exactly, over the last starts, since a
    bucket that fills up lets twice as many through around the end of a rest."""

    __slots__ = ("limit", "period")

    def __init__(self, name: Name, count: Count) -> None:
        super().__init__(name, count)
        self.limit, self.period = name[2], name[3]
        count.kept = max(count.kept, self.limit)
        count.period = max(count.period, self.period)

    def has_room(self, now: float) -> bool:
        return self.due() <= now

    def start(self, now: float) -> None:
        count = self.count
        count.taken -= 1
        count.starts.append(now)
        if len(count.starts) > count.kept:
            count.starts.popleft()

    def words(self) -> str:
        kind, key = self.count.key
        rate = format_rate(self.limit, self.period)
        where = f"Under the key {key}" if kind == "rate" else "Of it"
        return f"{where} {rate} may start (rate), in all runs, and did."

    def due(self) -> float:
        left = self.limit - self.count.taken  # what is taken and not started has no time yet
        if left <= 0:
            return math.inf
        starts = self.count.starts
        return -math.inf if len(starts) < left else starts[-left] + self.period
