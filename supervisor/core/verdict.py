"""Why an attempt ended, from what was seen of it. The first cause wins.

In order: what the engine itself noticed first (`cause`: an out-of-memory event, an output flood, a
broken link), then what the guest said, then how its process ended. The core's own reason for a
kill (a timeout, a cancel) goes before all of these: see `scheduler.py`.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass

from msgspec import Raw, structs

from ...protocol.events import ErrorKind, TaskError, Usage
from ...protocol.messages import Fail

__all__ = ["Seen", "judge", "judge_command"]

# errno texts as CPython prints them: "No space left on device", "File too large".
_DISK_ERRORS = ("[Errno 28]", "[Errno 27]")
_FORK_ERRORS = ("[Errno 11]", "can't start new thread", "unable to create native thread")

_OUT_OF_MEMORY = TaskError(kind=ErrorKind.MEMORY, message="the memory limit was reached")
_NEVER_SEALED = TaskError(
    kind=ErrorKind.SETUP, message="the sandbox could not be built: it died before its walls stood"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known once the tree is dead. `status` is a wait status as `os.waitpid` gives it,
    None where the sandbox was killed from outside or never reported one."""

    output: Raw | None = None
    failure: Fail | None = None
    cause: TaskError | None = None
    status: int | None = None
    sealed: bool = True  # its walls were read back: before that no code of the task has run
    started: bool = False  # the guest greeted us
    out_of_memory: bool = False
    pids_refused: bool | None = False  # None: no cgroup counts it
    usage: Usage | None = None


def judge(seen: Seen) -> Raw | TaskError:
    """The output of an attempt that completed, or the error of one that did not."""
    error = _error(seen)
    if error is None:
        assert seen.output is not None
        return seen.output
    return structs.replace(error, usage=seen.usage)


def judge_command(seen: Seen) -> TaskError | None:
    """The same of a command that has nobody inside to speak for it: its exit code is its word.
    None: it completed."""
    if seen.cause is not None:
        error = seen.cause
    elif seen.out_of_memory:
        error = _OUT_OF_MEMORY
    elif not seen.sealed:
        error = _NEVER_SEALED
    elif seen.status == 0:
        return None
    elif seen.status is None or seen.status & 0x7F:
        error = _died(seen, "")
    else:
        kind = ErrorKind.PIDS if seen.pids_refused else ErrorKind.ERROR
        error = TaskError(kind=kind, message=f"exited with code {seen.status >> 8}")
    return structs.replace(error, usage=seen.usage)


def _error(seen: Seen) -> TaskError | None:
    if seen.cause is not None:
        return seen.cause
    if seen.out_of_memory:
        # Also where the guest lived to tell another story: the kernel killed part of its tree.
        return _OUT_OF_MEMORY
    if not seen.sealed:
        return _NEVER_SEALED
    if seen.failure is not None:
        return _told(seen.failure, seen.pids_refused)
    if seen.output is not None:
        return None
    when = "before it gave a result" if seen.started else "before it greeted the supervisor"
    return _died(seen, f" {when}")


def _told(failure: Fail, pids_refused: bool | None) -> TaskError:
    kind = ErrorKind(failure.kind)
    if kind is ErrorKind.ERROR:
        if failure.type == "MemoryError":
            kind = ErrorKind.MEMORY
        elif pids_refused is not False and any(t in failure.message for t in _FORK_ERRORS):
            kind = ErrorKind.PIDS
        elif failure.type == "OSError" and failure.message.startswith(_DISK_ERRORS):
            kind = ErrorKind.DISK
    return TaskError(
        kind=kind,
        message=failure.message,
        type=failure.type,
        traceback=failure.traceback,
        retry_after=failure.retry_after,
    )


def _died(seen: Seen, when: str) -> TaskError:
    if seen.status is None:
        return TaskError(kind=ErrorKind.LOST, message=f"the sandbox was killed from outside{when}")
    number = seen.status & 0x7F
    if number == 0:
        code = seen.status >> 8
        kind = ErrorKind.PIDS if seen.pids_refused and code else ErrorKind.CRASH
        return TaskError(kind=kind, message=f"the process exited with code {code}{when}")
    if number == signals.SIGSYS:
        # Our filter kills for nothing else, and fails what else it refuses; a task may also signal
        # itself.
        return TaskError(
            kind=ErrorKind.VIOLATION,
            message="killed by SIGSYS, as for a system call of another architecture's table "
            "(32-bit, x32), which no setting allows",
        )
    if number == signals.SIGXFSZ:
        return TaskError(kind=ErrorKind.DISK, message="a file grew past limits.disk (SIGXFSZ)")
    return TaskError(
        kind=ErrorKind.CRASH, message=f"the process was killed by {_name(number)}{when}"
    )


def _name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
