"""A breaker: when it opens, whom it lets through, when it closes.

One row a key, shared by all runs of a state directory. `step` is the whole of it: row × time ×
happening → row. It knows no clock and no store; whoever keeps the rows calls it inside one
transaction, so that of two supervisors that claim the probe one gets it.

    CLOSED ──── failures within the window ───▶ OPEN
    OPEN ────── its time is over: a claim ────▶ HALF_OPEN, with one attempt as the probe
    HALF_OPEN ─ the probe succeeds ───────────▶ CLOSED
    HALF_OPEN ─ the probe fails ──────────────▶ OPEN, for longer

The probe is leased: who holds it says so again and again, and when nothing is heard of it (its
supervisor died, its run is paused) the next may claim it. What is said of any other attempt while
the breaker is not closed changes nothing: it was let through before.

Times are the wall clock's, for they outlive a boot. A clock that was put back would keep a breaker
open for as long: what lies ahead of now is taken to be now. One that jumps ahead ends a wait early,
which costs one probe.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ...protocol.events import BreakerClosed, BreakerHalfOpen, BreakerOpened, EventData
from ...protocol.limits import BREAKER_LEASE
from ...protocol.pipeline import Breaker
from .lifecycle import Lifecycle

__all__ = [
    "LIFECYCLE",
    "TABLE",
    "TRANSITIONS",
    "Claimed",
    "Dropped",
    "Failed",
    "Forced",
    "Happening",
    "Probe",
    "Renewed",
    "Reset",
    "Row",
    "Standing",
    "Succeeded",
    "remaining",
    "step",
]


class Standing(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


# What a run's journal may tell of a breaker. It need not tell all: what came and went between two
# looks at the row is left out, but for an opening.
TRANSITIONS: dict[Standing, dict[type[EventData], Standing]] = {
    Standing.CLOSED: {BreakerOpened: Standing.OPEN},
    Standing.OPEN: {
        BreakerOpened: Standing.OPEN,
        BreakerHalfOpen: Standing.HALF_OPEN,
        BreakerClosed: Standing.CLOSED,
    },
    Standing.HALF_OPEN: {
        BreakerOpened: Standing.OPEN,
        BreakerClosed: Standing.CLOSED,
    },
}
LIFECYCLE: Lifecycle[Standing] = Lifecycle(TRANSITIONS)


class Probe(Struct, frozen=True, order=True):
    """The one attempt that is let through; no two ever have the same name."""

    run: str
    task: str
    attempt: int


class Row(Struct, frozen=True, kw_only=True):
    standing: Standing = Standing.CLOSED
    failures: tuple[float, ...] = ()  # when, oldest first: those that count while it is closed
    since: float = 0.0  # when it was opened; half-open: when the probe was last heard of
    open_for: float = 0.0  # what it waits, or waited, since its latest opening
    counted: int = 0  # failures that led to that
    opening: int = 0  # the number of that
    probes: int = 0  # that have failed since it was closed
    probe: Probe | None = None


class Failed(Struct, frozen=True, tag=True):
    """An attempt did, by its own fault. The policy is its task's, here and below."""

    attempt: Probe
    policy: Breaker


class Succeeded(Struct, frozen=True, tag=True):
    attempt: Probe
    policy: Breaker


class Dropped(Struct, frozen=True, tag=True):
    """An attempt ended, or will never begin, and nothing follows from that."""

    attempt: Probe


class Claimed(Struct, frozen=True, tag=True):
    """An attempt would be the probe."""

    attempt: Probe


class Renewed(Struct, frozen=True, tag=True):
    """The probe is still at it."""

    attempt: Probe


class Forced(Struct, frozen=True, tag=True):
    """A person opens it."""

    open_for: float


class Reset(Struct, frozen=True, tag=True):
    """A person closes it, and nothing is held against anybody any more."""


Happening = Failed | Succeeded | Dropped | Claimed | Renewed | Forced | Reset


def step(row: Row, now: float, happening: Happening) -> Row:
    """What a row becomes; the same row where nothing follows."""
    act = TABLE[row.standing].get(type(happening))
    if act is None:
        return row
    return act(_at(row, now), now, happening)


def remaining(row: Row, now: float) -> float:
    """Seconds until a claim may be granted: 0 where it may now, or where nobody need claim."""
    if row.standing is Standing.CLOSED or (row.standing is Standing.HALF_OPEN and not row.probe):
        return 0.0
    span = row.open_for if row.standing is Standing.OPEN else BREAKER_LEASE
    return max(0.0, span - (now - min(row.since, now)))


def _at(row: Row, now: float) -> Row:
    """The row with nothing ahead of now. Itself where nothing is: most often."""
    if row.since <= now and (not row.failures or row.failures[-1] <= now):
        return row
    failures = tuple(min(each, now) for each in row.failures)
    return replace(row, since=min(row.since, now), failures=failures)


def _count(row: Row, now: float, failed: Failed) -> Row:
    policy = failed.policy
    recent = [*row.failures, now]
    if policy.window is not None:
        recent = [each for each in recent if now - each <= policy.window]
    if len(recent) < policy.failures:
        return replace(row, failures=tuple(recent))
    return _open(row, now, policy.open_for, len(recent))


def _open(row: Row, now: float, open_for: float, counted: int) -> Row:
    return replace(
        row,
        standing=Standing.OPEN,
        failures=(),
        since=now,
        open_for=open_for,
        counted=counted,
        opening=row.opening + 1,
        probe=None,
    )


def _start_anew(row: Row, now: float, succeeded: Succeeded) -> Row:
    return replace(row, failures=()) if succeeded.policy.window is None else row


def _force(row: Row, now: float, forced: Forced) -> Row:
    return _open(row, now, forced.open_for, 0)


def _close(row: Row, now: float, reset: Reset | Succeeded) -> Row:
    return replace(row, standing=Standing.CLOSED, failures=(), probes=0, probe=None)


def _claim(row: Row, now: float, claimed: Claimed) -> Row:
    if remaining(row, now) > 0:
        return row
    return replace(row, standing=Standing.HALF_OPEN, since=now, probe=claimed.attempt)


def _close_if_probe(row: Row, now: float, succeeded: Succeeded) -> Row:
    return _close(row, now, succeeded) if succeeded.attempt == row.probe else row


def _open_if_probe(row: Row, now: float, failed: Failed) -> Row:
    if failed.attempt != row.probe:
        return row
    policy, probes = failed.policy, row.probes + 1
    try:
        open_for = min(policy.open_for * policy.backoff**probes, policy.max_open_for)
    except OverflowError:  # backoff 10 has left the floats by the 309th
        open_for = policy.max_open_for
    return replace(_open(row, now, open_for, 1), probes=probes)


def _let_go_if_probe(row: Row, now: float, dropped: Dropped) -> Row:
    return replace(row, probe=None) if dropped.attempt == row.probe else row


def _renew_if_probe(row: Row, now: float, renewed: Renewed) -> Row:
    return replace(row, since=now) if renewed.attempt == row.probe else row


# What is not here changes nothing. Any: each function takes the one type it is listed under.
TABLE: dict[Standing, dict[type[Happening], Callable[[Row, float, Any], Row]]] = {
    Standing.CLOSED: {
        Failed: _count,
        Succeeded: _start_anew,
        Forced: _force,
        Reset: _close,
    },
    Standing.OPEN: {
        Claimed: _claim,
        Forced: _force,
        Reset: _close,
    },
    Standing.HALF_OPEN: {
        Failed: _open_if_probe,
        Succeeded: _close_if_probe,
        Dropped: _let_go_if_probe,
        Claimed: _claim,
        Renewed: _renew_if_probe,
        Forced: _force,
        Reset: _close,
    },
}
