"""The life of a task, as its run's journal tells it.

What happens to a task is a recorded fact, and each fact moves it along one edge. This is the
durable half: it knows nothing of processes or clocks. One attempt's life, from spawn to death, is
in `attempt.py`; between two facts here an attempt may pass through several phases there.

An attempt's number is given by `task.ready`; from there on it ends with exactly one of completed,
skipped, retrying, recovered, failed, cancelled, restarted. What happens to a task without an
attempt (upstream failed, run cancelled while it waited or between two attempts) has no number in
that event.

A rollback takes any task back to the start, whatever became of it; an attempt that was under way
has ended as restarted before. The numbers of attempts go on.
"""

from __future__ import annotations

from enum import auto

from ...protocol.events import (
    EventData,
    RunForked,
    RunRolledBack,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskReady,
    TaskRecovered,
    TaskRestarted,
    TaskRetrying,
    TaskSkipped,
    TaskStarted,
)
from .lifecycle import Lifecycle, State

__all__ = ["LIFECYCLE", "TRANSITIONS", "Standing"]


class Standing(State):
    WAITING = auto()  # for its upstream
    READY = auto()  # for a slot, or for its sandbox
    RUNNING = auto()  # also while its output or its error is looked at
    BACKOFF = auto()  # between two attempts
    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()


# Of an attempt, also where its sandbox never came to be.
_ATTEMPT_ENDS: dict[type[EventData], Standing] = {
    TaskRetrying: Standing.BACKOFF,
    TaskRecovered: Standing.WAITING,
    TaskSkipped: Standing.COMPLETED,
    TaskFailed: Standing.FAILED,
    TaskCancelled: Standing.CANCELLED,
    TaskRestarted: Standing.WAITING,
}

_UNDONE: dict[type[EventData], Standing] = {
    RunRolledBack: Standing.WAITING,
    RunForked: Standing.WAITING,
}

TRANSITIONS: dict[Standing, dict[type[EventData], Standing]] = {
    Standing.WAITING: {
        TaskReady: Standing.READY,
        TaskFailed: Standing.FAILED,
        TaskCancelled: Standing.CANCELLED,
        **_UNDONE,
    },
    Standing.READY: {
        TaskStarted: Standing.RUNNING,
        **_ATTEMPT_ENDS,
    },
    Standing.RUNNING: {
        TaskCompleted: Standing.COMPLETED,
        **_ATTEMPT_ENDS,
    },
    Standing.BACKOFF: {
        TaskReady: Standing.READY,
        TaskFailed: Standing.FAILED,
        TaskCancelled: Standing.CANCELLED,
        TaskRestarted: Standing.WAITING,
        **_UNDONE,
    },
    Standing.COMPLETED: _UNDONE,
    Standing.FAILED: _UNDONE,
    Standing.CANCELLED: _UNDONE,
}
LIFECYCLE: Lifecycle[Standing] = Lifecycle(TRANSITIONS)
