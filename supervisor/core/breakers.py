"""What a scheduler knows of the breakers that its runs use, whom they keep back, who is the probe.

The rows (`breaker.py`) are shared with other supervisors and live elsewhere. A word to one of them
is a command, `TellBreaker`; `BreakerMoved` answers it, and also comes unasked when the row moves.
Words are numbered, and an answer carries the number of the newest word that is in its row. Until
what was said of a failure, or asked (a first look, a claim), is answered, nothing of that key is
started: behind the last failure that a breaker allows, nothing slips through.

Who is held back stays ready, out of its run's line. When a breaker's time is over, the first of
them that could start claims the probe; it is let through when the row names it, and its lease is
renewed for as long as it lives and its run does not stand still.

A breaker's clock is nobody's: it goes on while runs are paused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ...protocol.errors import LocalViolation
from ...protocol.events import (
    BreakerClosed,
    BreakerHalfOpen,
    BreakerOpened,
    ErrorKind,
    EventData,
)
from ...protocol.limits import BREAKER_RENEWAL
from ...protocol.pipeline import Breaker, TaskSpec
from .attempt import Clock
from .breaker import (
    Claimed,
    Dropped,
    Failed,
    Happening,
    Probe,
    Renewed,
    Row,
    Standing,
    Succeeded,
    remaining,
)
from .commands import ForgetBreaker, TellBreaker
from .events import BreakerMoved
from .priority import PriorityQueue
from .state import Noted

__all__ = ["UNCOUNTED", "Breakers", "KeyClock", "Moved", "news"]

# Failures that say nothing of the thing a breaker protects: the host's, the run's, the graph's.
UNCOUNTED = frozenset(
    {
        ErrorKind.SETUP,
        ErrorKind.LOST,
        ErrorKind.CONFLICT,
        ErrorKind.CANCELLED,
        ErrorKind.TIMEOUT_RUN,
        ErrorKind.UPSTREAM_FAILED,
        ErrorKind.BREAKER_OPEN,
    }
)

# Time as the row has it and as we have it are two clocks: a claim that comes a hair too early is
# refused, and would be made again at once.
_HAIR = 0.001


class Moved(NamedTuple):
    """What follows from a row that moved: `before` it, for whom; `is_opened`: whether it was opened
    since; `freed`: who is held back no longer, first come first."""

    before: Row | None
    runs: tuple[str, ...]
    is_opened: bool
    freed: tuple[Probe, ...]


class KeyClock(Clock):
    """One key: its row, and when something is to be done about it."""

    __slots__ = ("asked", "closing", "held", "key", "probe", "row", "until", "users")

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.row: Row | None = None
        self.until = math.inf  # a claim may be made; or, with a probe, the lease is to be renewed
        self.asked = 0  # the number of the newest word whose answer is waited for
        self.closing: str | None = None  # the run whose probe succeeded, until that is answered
        self.users: dict[str, None] = {}  # runs, as they came
        self.held: dict[Probe, None] = {}  # in the order they came
        self.probe: Probe | None = None  # ours, let through

    def due(self) -> float:
        return self.until


class Breakers:
    def __init__(
        self,
        clocks: PriorityQueue[float, Clock],
        may_start: Callable[[Probe], bool],
        is_current: Callable[[Probe], bool],
        is_moving: Callable[[Probe], bool],
    ) -> None:
        """Asked of attempts: `may_start`, its run has what it takes; `is_current`, it has neither
        ended nor been given up; `is_moving`, it is not kept still by a pause."""
        self._clocks = clocks
        self._may_start = may_start
        self._is_current = is_current
        self._is_moving = is_moving
        self._keys: dict[str, KeyClock] = {}
        self._numbers = 0
        self._words: list[TellBreaker | ForgetBreaker] = []

    def words(self) -> list[TellBreaker | ForgetBreaker]:
        """What is to be said since this was asked last."""
        words, self._words = self._words, []
        return words

    # Runs.

    def enter(self, run: str, tasks: tuple[TaskSpec, ...]) -> list[tuple[str, Row]]:
        """A run begins, or goes on: the rows that are known of the keys it uses."""
        known: list[tuple[str, Row]] = []
        for name in sorted({task.breaker.key for task in tasks if task.breaker is not None}):
            key = self._keys.get(name)
            if key is None:
                key = self._keys[name] = KeyClock(name)
                self._ask(key, None)
            elif key.row is not None:
                known.append((name, key.row))
            key.users[run] = None
        return known

    def leave(self, run: str, tasks: tuple[TaskSpec, ...]) -> None:
        for name in sorted({task.breaker.key for task in tasks if task.breaker is not None}):
            key = self._keys.get(name)
            if key is None or run not in key.users:
                continue
            del key.users[run]
            if key.probe is not None and key.probe.run == run:
                self._give_up(key)
            if not key.users:
                self._clocks.discard(key)
                del self._keys[name]
                self._words.append(ForgetBreaker(name))

    def is_closing(self, run: str) -> bool:
        """Whether it has just closed a breaker, and its journal does not tell so yet."""
        return any(key.closing == run for key in self._keys.values())

    # Attempts.

    def lets(self, key: str, attempt: Probe) -> bool:
        """Whether it may start now."""
        known = self._keys[key]
        if known.row is None or known.asked:
            return False
        return known.row.standing is Standing.CLOSED or attempt == known.probe

    def hold(self, now: float, key: str, attempt: Probe) -> None:
        """It is ready, and may not start."""
        self._keys[key].held[attempt] = None
        self._seek(now, self._keys[key])

    def unhold(self, key: str, attempt: Probe) -> None:
        """It is not ready any more."""
        self._keys[key].held.pop(attempt, None)

    def succeeded(self, policy: Breaker, attempt: Probe) -> None:
        key = self._keys[policy.key]
        if attempt == key.probe:
            key.probe = None
            key.closing = attempt.run
            self._ask(key, Succeeded(attempt, policy))
        elif policy.window is None:  # it starts the count anew
            self._say(key, Succeeded(attempt, policy))

    def failed(self, policy: Breaker, attempt: Probe, kind: ErrorKind) -> None:
        if kind in UNCOUNTED:
            return  # a probe is seen to have ended by `tidy`
        key = self._keys[policy.key]
        if attempt == key.probe:
            key.probe = None
        self._ask(key, Failed(attempt, policy))

    def tidy(self) -> None:
        """Let go of probes that came to an end without an answer: cancelled, rolled back, lost."""
        for key in self._keys.values():
            if key.probe is not None and not self._is_current(key.probe):
                self._give_up(key)

    # Rows and clocks.

    def moved(self, now: float, moved: BreakerMoved) -> Moved | None:
        """None: of a key that nobody here uses any more."""
        key = self._keys.get(moved.key)
        if key is None or (key.row is None and moved.number < key.asked):
            return None
        before, row = key.row, moved.row
        key.row = row
        if moved.number >= key.asked:
            key.asked, key.closing = 0, None
        if key.probe is not None and row.probe != key.probe:
            key.probe = None  # nothing was heard of it for too long
        freed: tuple[Probe, ...] = ()
        if row.standing is Standing.CLOSED:
            freed = () if key.asked else tuple(key.held)
        elif row.probe is not None and row.probe in key.held:
            key.probe = row.probe
            freed = (row.probe,)
        elif (
            row.probe is not None
            and row.probe != key.probe
            and row.probe.run in key.users
            and not self._is_current(row.probe)
            and not key.asked
        ):
            self._ask(key, Dropped(row.probe))  # of an earlier life of the run
        for attempt in freed:
            del key.held[attempt]
        if key.probe is not None:
            self._arm(key, now + BREAKER_RENEWAL)
        else:
            left = remaining(row, moved.at)
            key.until = now + left + (_HAIR if left else 0.0)
            self._seek(now, key)
        is_opened = before is not None and row.opening > before.opening
        return Moved(before, tuple(sorted(key.users)), is_opened, freed)

    def expired(self, now: float, key: KeyClock) -> None:
        self._clocks.discard(key)
        if key.probe is None:
            self._seek(now, key)
        elif self._is_moving(key.probe):
            self._say(key, Renewed(key.probe))
            self._arm(key, now + BREAKER_RENEWAL)
        else:
            self._give_up(key)

    def wake(self, now: float, run: str) -> None:
        """A run goes on that stood still: what is held back of it may be the probe."""
        for key in self._keys.values():
            if run in key.users:
                self._seek(now, key)

    def _seek(self, now: float, key: KeyClock) -> None:
        """Claim the probe for somebody, or be told when to."""
        row = key.row
        if row is None or row.standing is Standing.CLOSED or key.probe is not None or key.asked:
            return
        attempt = next((each for each in key.held if self._may_start(each)), None)
        if attempt is None:
            self._clocks.discard(key)
        elif now >= key.until:
            self._ask(key, Claimed(attempt))
        else:
            self._clocks.put(key.until, key)

    def _arm(self, key: KeyClock, until: float) -> None:
        key.until = until
        self._clocks.put(until, key)

    def _give_up(self, key: KeyClock) -> None:
        if key.probe is None:
            raise LocalViolation(f"breaker {key.key}: no probe to give up")
        self._ask(key, Dropped(key.probe))
        key.probe = None

    def _say(self, key: KeyClock, happening: Happening | None) -> None:
        self._numbers += 1
        self._words.append(TellBreaker(self._numbers, key.key, happening))

    def _ask(self, key: KeyClock, happening: Happening | None) -> None:
        self._say(key, happening)
        key.asked = self._numbers
        self._clocks.discard(key)


_TOLD: dict[Standing, type[BreakerOpened | BreakerHalfOpen | BreakerClosed]] = {
    Standing.CLOSED: BreakerClosed,
    Standing.OPEN: BreakerOpened,
    Standing.HALF_OPEN: BreakerHalfOpen,
}


def news(key: str, row: Row, noted: Noted | None, before: Row | None) -> list[EventData]:
    """What a run's journal has to tell of a row, given what it told last, or `before`. An opening
    is told even where it has passed: attempts were killed by it."""
    if noted is None:
        if before is None and row.standing is Standing.CLOSED:
            return []
        opening = before.opening if before is not None else row.opening
        noted = Noted(Standing.CLOSED, opening)
    found: list[EventData] = []
    standing = noted.standing

    def tell(kind: type[BreakerOpened | BreakerHalfOpen | BreakerClosed]) -> None:
        found.append(
            kind(key=key, failures=row.counted, open_for=row.open_for, opening=row.opening)
        )

    is_unheard = standing is Standing.CLOSED and row.standing is not Standing.CLOSED
    if row.opening > noted.opening or is_unheard:
        tell(BreakerOpened)
        standing = Standing.OPEN
    if row.standing is not standing:
        tell(_TOLD[row.standing])
    return found
