"""Whether a failed attempt is tried again, and after how long.

Three sorts of failure. `setup` and `lost` are ours, not the task's: they are tried again whatever
the policy says and do not count against it, but a bounded number of times, or a host that cannot
build a sandbox (or a task that brings the engine down) would be tried for ever. What the run
itself ended (its deadline, a cancel, a failed upstream) is never tried again. For the rest the
task's policy decides. Jitter comes from the run's recorded seed, so a replay waits as long.
"""

from __future__ import annotations

from hashlib import sha256

from ...protocol.events import ErrorKind
from ...protocol.pipeline import Retry

__all__ = [
    "BLAMELESS",
    "BLAMELESS_DELAY",
    "BLAMELESS_RETRIES",
    "FINAL",
    "backoff_delay",
    "is_covered",
    "retry_delay",
]

BLAMELESS = frozenset({ErrorKind.SETUP, ErrorKind.LOST})
FINAL = frozenset({ErrorKind.TIMEOUT_RUN, ErrorKind.CANCELLED, ErrorKind.UPSTREAM_FAILED})

# What passes by itself (a zygote being replaced, a momentary lack of processes or memory) passes
# within these 0.1 + 0.2 + 0.4 s; where a host lacks a wall, a person is told so within a second.
BLAMELESS_RETRIES = 3
BLAMELESS_DELAY = 0.1


def is_covered(kind: ErrorKind, on: tuple[str, ...]) -> bool:
    """`on` names the kind itself or its family: "timeout" covers timeout.wall."""
    return any(kind == name or kind.startswith(f"{name}.") for name in on)


def retry_delay(
    policy: Retry,
    kind: ErrorKind,
    *,
    failures: int,
    blameless: int,
    seed: int,
    task: str,
    attempt: int,
    asked: float | None = None,
) -> float | None:
    """Seconds until the next attempt, None if there is none. `failures` and `blameless` count the
    attempts that failed before this one. `asked`: the least that the failure asked to wait, which
    the policy's `max_delay` still bounds."""
    if kind in FINAL:
        return None
    if kind in BLAMELESS:
        if blameless >= BLAMELESS_RETRIES:
            return None
        return BLAMELESS_DELAY * 2.0**blameless
    if failures + 1 >= policy.attempts or not is_covered(kind, policy.on):
        return None
    delay = backoff_delay(policy, failures=failures, seed=seed, task=task, attempt=attempt)
    return max(delay, min(asked or 0.0, policy.max_delay))


def backoff_delay(policy: Retry, *, failures: int, seed: int, task: str, attempt: int) -> float:
    """Seconds before the retry that follows on so many failures and one."""
    try:
        delay = min(policy.delay * policy.backoff**failures, policy.max_delay)
    except OverflowError:  # backoff 10 has left the floats by the 309th retry
        delay = policy.max_delay
    return delay * (1.0 + policy.jitter * _spread(seed, task, attempt))


def _spread(seed: int, task: str, attempt: int) -> float:
    """In [-1, 1), as good as random, the same each time."""
    digest = sha256(f"{seed}/{task}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**63 - 1.0
