"""One breaker, one row: what may happen to it, and what never does."""

from __future__ import annotations

import pytest
from casemate.protocol.limits import BREAKER_LEASE
from casemate.protocol.pipeline import Breaker, OnOpen
from casemate.supervisor.core.breaker import (
    TABLE,
    Claimed,
    Dropped,
    Failed,
    Forced,
    Happening,
    Probe,
    Renewed,
    Reset,
    Row,
    Standing,
    Succeeded,
    remaining,
    step,
)
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

A, B, C = (Probe("r", name, 1) for name in "abc")


def policy(
    failures: int = 3,
    window: float | None = 60,
    open_for: float = 30,
    backoff: float = 2,
    max_open_for: float = 100,
) -> Breaker:
    return Breaker(
        key="k",
        failures=failures,
        window=window,
        open_for=open_for,
        backoff=backoff,
        max_open_for=max_open_for,
        on_open=OnOpen.KILL,
        wait=None,
    )


def failed(attempt: Probe = A, **of: float | None) -> Failed:
    return Failed(attempt, policy(**of))  # type: ignore[arg-type]  # as `policy` has them


def succeeded(attempt: Probe = A, **of: float | None) -> Succeeded:
    return Succeeded(attempt, policy(**of))  # type: ignore[arg-type]  # as `policy` has them


def told(*said: tuple[float, Happening], row: Row | None = None) -> Row:
    row = row or Row()
    for now, happening in said:
        row = step(row, now, happening)
    return row


OPEN = told((0, failed()), (1, failed()), (2, failed()))
HALF_OPEN = told((32, Claimed(A)), row=OPEN)


def test_it_opens_at_the_last_of_so_many_failures_within_the_window() -> None:
    row = told((0, failed()), (59, failed()))
    assert row.standing is Standing.CLOSED
    late = step(row, 61, failed())  # the first is out of the window
    assert late.standing is Standing.CLOSED
    assert late.failures == (59, 61)
    opened = step(row, 60, failed())
    assert (opened.standing, opened.counted, opened.opening) == (Standing.OPEN, 3, 1)
    assert remaining(opened, 70) == 20


def test_a_success_changes_nothing_where_a_window_counts() -> None:
    row = told((0, failed()), (1, failed()), (2, succeeded()), (3, failed()))
    assert row.standing is Standing.OPEN


def test_in_a_row_means_that_a_success_starts_the_count_anew() -> None:
    row = told((0, failed(window=None)), (10_000, failed(window=None)))
    assert step(row, 20_000, failed(window=None)).standing is Standing.OPEN
    row = told((20_000, succeeded(window=None)), (20_001, failed(window=None)), row=row)
    assert row.standing is Standing.CLOSED
    assert len(row.failures) == 1


def test_an_open_one_lets_nobody_through_before_its_time_and_then_one() -> None:
    assert step(OPEN, 31.9, Claimed(A)) == OPEN
    assert HALF_OPEN.standing is Standing.HALF_OPEN
    assert HALF_OPEN.probe == A
    assert step(HALF_OPEN, 33, Claimed(B)) == HALF_OPEN
    assert step(HALF_OPEN, 33, Claimed(A)).probe == A


def test_the_probe_decides_and_nobody_else() -> None:
    for other in (succeeded(B), failed(B), Dropped(B), Renewed(B)):
        assert step(HALF_OPEN, 33, other) == HALF_OPEN
    closed = step(HALF_OPEN, 33, succeeded(A))
    assert (closed.standing, closed.failures, closed.probe) == (Standing.CLOSED, (), None)
    opened = step(HALF_OPEN, 33, failed(A))
    assert (opened.standing, opened.opening, opened.counted) == (Standing.OPEN, 2, 1)


def test_each_probe_that_fails_makes_the_next_wait_longer_up_to_a_cap() -> None:
    row, waits = HALF_OPEN, []
    for _ in range(4):
        row = step(row, row.since + 1, failed(A))
        waits.append(row.open_for)
        row = step(row, row.since + row.open_for, Claimed(A))
    assert waits == [60, 100, 100, 100]
    closed = step(row, row.since, succeeded(A))
    again = told(*((row.since, failed()) for _ in range(3)), row=closed)
    assert again.open_for == 30
    far = replace(HALF_OPEN, probes=5000)
    assert step(far, 33, failed(A, backoff=10)).open_for == 100  # beyond what a float can hold


def test_a_probe_of_which_nothing_is_heard_gives_way_to_another() -> None:
    assert step(HALF_OPEN, 32 + BREAKER_LEASE - 0.1, Claimed(B)).probe == A
    assert step(HALF_OPEN, 32 + BREAKER_LEASE, Claimed(B)).probe == B
    kept = told((35, Renewed(A)), (32 + BREAKER_LEASE, Claimed(B)), row=HALF_OPEN)
    assert kept.probe == A
    free = step(HALF_OPEN, 33, Dropped(A))
    assert (free.standing, free.probe, remaining(free, 33)) == (Standing.HALF_OPEN, None, 0)
    assert step(free, 33, Claimed(B)).probe == B


@pytest.mark.parametrize("row", [Row(), OPEN, HALF_OPEN], ids=lambda row: row.standing)
def test_a_person_opens_and_resets_it_at_any_time(row: Row) -> None:
    opened = step(row, 40, Forced(7))
    assert (opened.standing, opened.open_for, opened.probe) == (Standing.OPEN, 7, None)
    assert (opened.opening, opened.counted) == (row.opening + 1, 0)
    closed = step(opened, 41, Reset())
    assert closed == Row(since=40, open_for=7, opening=opened.opening)


def test_a_clock_that_was_put_back_makes_no_wait_longer() -> None:
    ahead = told(*((1_000_000.0, failed()) for _ in range(3)))
    assert remaining(ahead, 5) == 30
    refused = step(ahead, 5, Claimed(A))
    assert (refused.standing, refused.since) == (Standing.OPEN, 5)
    assert step(refused, 35, Claimed(A)).probe == A
    counted = told((1_000_000.0, failed()), (5, failed()), (66, failed()))
    assert counted.failures == (66,)


# Whatever is said in whatever order. Times go on, most often.

_attempts = st.sampled_from([A, B, C])
_policies = st.builds(
    policy,
    failures=st.integers(1, 4),
    window=st.sampled_from([None, 5.0, 60.0]),
    open_for=st.sampled_from([0.0, 1.0, 30.0]),
    backoff=st.sampled_from([1.0, 2.0]),
    max_open_for=st.sampled_from([30.0, 100.0]),
)
_happenings = st.one_of(
    st.builds(Failed, _attempts, _policies),
    st.builds(Failed, _attempts, _policies),
    st.builds(Succeeded, _attempts, _policies),
    st.builds(Dropped, _attempts),
    st.builds(Claimed, _attempts),
    st.builds(Claimed, _attempts),
    st.builds(Renewed, _attempts),
    st.builds(Forced, st.sampled_from([0.0, 10.0])),
    st.builds(Reset),
)
_stories = st.lists(
    st.tuples(st.sampled_from([-20.0, 0.0, 0.5, 2.0, 6.0, 40.0]), _happenings), max_size=40
)


def check(before: Row, now: float, said: Happening, after: Row) -> None:
    if before.standing is not after.standing and after.standing is Standing.HALF_OPEN:
        assert isinstance(said, Claimed)
        assert remaining(before, now) == 0
    if before.standing is Standing.HALF_OPEN and not isinstance(said, Forced | Reset):
        if after.standing is not Standing.HALF_OPEN:
            assert isinstance(said, Failed | Succeeded)
            assert said.attempt == before.probe
        elif isinstance(said, Claimed) and after.probe != before.probe:
            assert before.probe is None or now - before.since >= BREAKER_LEASE
    assert (after.probe is not None) <= (after.standing is Standing.HALF_OPEN)
    assert not after.failures or after.standing is Standing.CLOSED
    assert after.opening - before.opening in (0, 1)
    is_opening = after.opening > before.opening
    assert is_opening <= (after.standing is Standing.OPEN)
    assert is_opening <= isinstance(said, Failed | Forced)
    if isinstance(said, Failed):
        assert len(after.failures) < said.policy.failures or after.failures == before.failures
        assert after.open_for <= 100
    assert 0 <= remaining(after, now) <= max(after.open_for, BREAKER_LEASE)
    assert after.since <= max(now, before.since)


@given(_stories)
def test_whatever_is_said_the_laws_of_a_breaker_hold(
    story: list[tuple[float, Happening]],
) -> None:
    row, now = Row(), 100.0
    for passed, said in story:
        now += passed
        after = step(row, now, said)
        check(row, now, said, after)
        assert step(row, now, said) == after
        row = after


def test_no_silence_lasts_for_ever() -> None:
    """From anywhere: whoever asks again and again is let through, once all others are silent."""
    for row in (OPEN, HALF_OPEN, step(HALF_OPEN, 33, failed(A)), step(OPEN, 3, Forced(500))):
        now = row.since
        while row.probe != C:
            now += max(0.1, remaining(row, now))
            row = step(row, now, Claimed(C))
            assert now < row.since + 600


def test_the_table_says_what_each_happening_does_where() -> None:
    """Where a row has nothing for a happening, nothing changes; and every cell has its edge."""
    rows = {row.standing: row for row in (Row(), OPEN, HALF_OPEN)}
    said: list[Happening] = [
        failed(A), succeeded(A), Dropped(A), Claimed(A), Renewed(A), Forced(1), Reset(),
    ]  # fmt: skip
    for standing, row in rows.items():
        for each in said:
            if type(each) not in TABLE[standing]:
                assert step(row, 33, each) == row
    taken = {
        (standing, type(each), step(row, 33, each).standing)
        for standing, row in rows.items()
        for each in said
        if type(each) in TABLE[standing]
    }
    taken.add((Standing.CLOSED, Failed, step(Row(), 33, failed(A, failures=1)).standing))
    taken.add((Standing.OPEN, Claimed, step(OPEN, 3, Claimed(A)).standing))
    taken.add((Standing.HALF_OPEN, Failed, step(HALF_OPEN, 33, failed(B)).standing))
    taken.add((Standing.HALF_OPEN, Succeeded, step(HALF_OPEN, 33, succeeded(B)).standing))
    closed, opened, half = Standing.CLOSED, Standing.OPEN, Standing.HALF_OPEN
    assert taken == {
        (closed, Failed, closed), (closed, Failed, opened), (closed, Succeeded, closed),
        (closed, Forced, opened), (closed, Reset, closed),
        (opened, Claimed, opened), (opened, Claimed, half), (opened, Forced, opened),
        (opened, Reset, closed),
        (half, Failed, opened), (half, Failed, half), (half, Succeeded, closed),
        (half, Succeeded, half), (half, Dropped, half), (half, Claimed, half),
        (half, Renewed, half), (half, Forced, opened), (half, Reset, closed),
    }  # fmt: skip
