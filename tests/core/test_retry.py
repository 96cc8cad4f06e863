"""Whether there is another attempt, and when."""

from __future__ import annotations

import itertools

import pytest
from casemate.protocol.events import ErrorKind
from casemate.protocol.pipeline import Retry
from casemate.supervisor.core.retry import (
    BLAMELESS,
    BLAMELESS_DELAY,
    BLAMELESS_RETRIES,
    FINAL,
    is_covered,
    retry_delay,
)

EVERYTHING = tuple(kind.value for kind in ErrorKind)


def policy(
    attempts: int = 10,
    delay: float = 1,
    backoff: float = 2,
    cap: float = 1e9,
    jitter: float = 0,
    on: tuple[str, ...] = ("error",),
) -> Retry:
    return Retry(
        attempts=attempts, delay=delay, backoff=backoff, max_delay=cap, jitter=jitter, on=on
    )


def delay_of(
    retry: Retry,
    kind: ErrorKind = ErrorKind.ERROR,
    failures: int = 0,
    blameless: int = 0,
    seed: int = 1,
    task: str = "a",
    attempt: int = 1,
) -> float | None:
    return retry_delay(
        retry,
        kind,
        failures=failures,
        blameless=blameless,
        seed=seed,
        task=task,
        attempt=attempt,
    )


def test_delays_grow_by_backoff_up_to_the_cap() -> None:
    retry = policy(delay=1, backoff=3, cap=20)
    assert [delay_of(retry, failures=failures) for failures in range(5)] == [1, 3, 9, 20, 20]


def test_attempts_count_the_first_try() -> None:
    assert delay_of(policy(attempts=1)) is None
    assert delay_of(policy(attempts=2)) == 1
    assert delay_of(policy(attempts=2), failures=1) is None


def test_a_backoff_beyond_every_number_waits_for_the_cap() -> None:
    assert delay_of(policy(attempts=9999, backoff=10, cap=60), failures=5000) == 60


def test_on_covers_a_kind_and_its_family_but_no_namesake() -> None:
    assert is_covered(ErrorKind.TIMEOUT_WALL, ("timeout",))
    assert is_covered(ErrorKind.TIMEOUT_WALL, ("crash", "timeout.wall"))
    assert not is_covered(ErrorKind.TIMEOUT_WALL, ("timeout.idle",))
    assert not is_covered(ErrorKind.TIMEOUT_WALL, ("time",))
    assert not is_covered(ErrorKind.ERROR, ())


@pytest.mark.parametrize("kind", sorted(set(ErrorKind) - BLAMELESS - FINAL))
def test_the_policy_decides_about_what_the_task_did(kind: ErrorKind) -> None:
    assert delay_of(policy(on=(kind.value,)), kind) == 1
    others = tuple(set(EVERYTHING) - {kind.value})
    assert delay_of(policy(on=others), kind) is None


@pytest.mark.parametrize("kind", sorted(FINAL))
def test_what_the_run_ended_is_never_tried_again(kind: ErrorKind) -> None:
    assert delay_of(policy(on=(*EVERYTHING, "timeout")), kind) is None


@pytest.mark.parametrize("kind", sorted(BLAMELESS))
def test_what_is_not_the_tasks_fault_is_tried_again_a_bounded_number_of_times(
    kind: ErrorKind,
) -> None:
    never = policy(attempts=1, on=())
    delays = [delay_of(never, kind, blameless=n, failures=7) for n in range(BLAMELESS_RETRIES + 1)]
    assert delays == [BLAMELESS_DELAY, 2 * BLAMELESS_DELAY, 4 * BLAMELESS_DELAY, None]


def test_jitter_is_the_same_each_time_and_differs_by_seed_task_and_attempt() -> None:
    retry = policy(delay=100, backoff=1, jitter=0.25)
    keys = list(itertools.product((1, 2), ("a", "b"), (1, 2)))
    delays = [delay_of(retry, seed=seed, task=task, attempt=n) for seed, task, n in keys]
    assert delays == [delay_of(retry, seed=seed, task=task, attempt=n) for seed, task, n in keys]
    assert len(set(delays)) == len(delays)


def test_jitter_spreads_over_its_whole_range_and_not_beyond() -> None:
    retry = policy(delay=100, backoff=1, jitter=0.25)
    delays = [delay_of(retry, attempt=attempt) or 0.0 for attempt in range(1, 1001)]
    assert 75 <= min(delays) < 77
    assert 123 < max(delays) <= 125
    assert 99 < sum(delays) / len(delays) < 101
