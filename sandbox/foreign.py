"""The guest's end of a task whose function runs in an interpreter of its own choice.

    guest (our interpreter) ── pipe of JSON lines ◀── shim.py (theirs) → the function
                            ── one byte for each `save` and `artifact` ──▶

That interpreter has nothing of ours, and cannot take our guest along even where its version is the
same: our msgspec and pyzmq would be in the one `sys.modules` that the task's own packages are in,
and whichever version came first would be everybody's. So the guest stays what it is, and the task
is a process beside it, as a command is (`command.py`), behind the same walls: they stood before
either was started. It costs that interpreter's start: 40 ms of CPU with the shim's imports (3.11).

The link, its credit and its order are the guest's affair alone; a function there has less in reach
than one in the guest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

from msgspec import Raw

from ..protocol import codec
from ..protocol.answers import Action, RecoveryAction, ValidationResult
from ..protocol.messages import Part, Run
from ..protocol.pipeline import FileEntry, ModuleEntry
from . import command
from .command import CommandError, Events
from .context import RuntimeContext

__all__ = ["Raised", "check", "run"]

_HERE = os.path.dirname(os.path.abspath(__file__))
SHIM = os.path.join(_HERE, "shim.py")
PACKAGE = os.path.dirname(_HERE)


class Raised(Exception):
    """What the function raised, as the shim tells it."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__(str(told.get("message")))
        self.kind = "invalid_output" if told.get("kind") == "invalid_output" else "error"
        self.type = _text(told.get("type"))
        self.traceback = _text(told.get("traceback"))
        self.retry_after = told.get("retry_after")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class _Said(Events):
    """A command's words, and the two that only the shim knows. A check has no context: there, an
    output and a failure is all there is to say."""

    keys: tuple[str, ...] = (*command.KEYS, "failed")

    def __init__(self, context: RuntimeContext | None, done_fd: int) -> None:
        super().__init__(context)  # type: ignore[arg-type]  # `act` lets nothing through to it
        self._has_context = context is not None
        self._done_fd = done_fd
        self.failure: Raised | None = None

    def act(self, key: str, value: Any) -> None:
        if key == "failed":
            self.failure = Raised(value if isinstance(value, dict) else {})
        elif key != "output" and not self._has_context:
            raise ValueError("a check has nobody to speak to")
        else:
            super().act(key, value)
            if key in ("save", "artifact"):  # it goes on when that has been done
                os.write(self._done_fd, b"!")


def run(job: Run, input: object, context: RuntimeContext, events_fd: int, sources: str) -> Any:
    """The output of the job's function (user's data). Raises Raised, or CommandError."""
    about = {
        "run_id": context.run_id,
        "task_id": context.task_id,
        "attempt": context.attempt,
        "spec": codec.to_jsonable(context.spec, "spec"),
        "idempotency_key": context.idempotency_key,
        "deadline": context.deadline,
        "workspace": job.workspace,
    }
    return _perform(job, input, context, about, events_fd, sources)


def check(job: Run, value: object, events_fd: int, sources: str) -> Raw:
    """The answer of a validation or a recovery, encoded."""
    given = _perform(job, value, None, {"spec": None}, events_fd, sources)
    if job.part is Part.VALIDATE:
        return codec.encode_validation(ValidationResult(given["ok"], given["reasons"]))
    if given is None:
        return codec.encode_recovery(None)
    return codec.encode_recovery(
        RecoveryAction(
            do=Action(given["do"]), after=given["after"], output=given["output"], to=given["to"]
        )
    )


def _perform(
    job: Run,
    value: object,
    context: RuntimeContext | None,
    about: dict[str, Any],
    events_fd: int,
    sources: str,
) -> Any:
    assert job.python is not None and isinstance(job.entry, FileEntry | ModuleEntry)
    where = (
        {"file": job.entry.file}
        if isinstance(job.entry, FileEntry)
        else {"module": job.entry.module}
    )
    saved = None if context is None else context.saved
    fifos = command.make_fifos(context.streams) if context is not None else []
    done_read, done_write = os.pipe()
    description = {
        "part": str(job.part),
        "entry": {**where, "name": job.entry.name},
        "sources": sources,
        "package": PACKAGE,
        "input": command.new_file("input", value),
        "saved": None if saved is None else command.new_file("saved", saved),
        "context": {**about, "streams": {stream.upstream: path for path, stream in fifos}},
        "events_fd": events_fd,
        "done_fd": done_read,
    }
    path = command.new_path(f"job-{os.getpid()}.json")
    with open(path, "x", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(description, file, ensure_ascii=False)
    events_read = command.open_events(events_fd)
    process = command.start(
        (job.python, "-I", SHIM, path), dict(os.environ), (events_fd, done_read)
    )
    os.close(events_fd)
    os.close(done_read)

    def forward(number: int, frame: FrameType | None) -> None:
        # To the function's process alone: what it started is its own to end.
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    for number in (signal.SIGTERM, signal.SIGURG):  # and the nudges that follow (guest.NUDGE)
        signal.signal(number, forward)
    said = _Said(context, done_write)
    command.attend(process, events_read, said, fifos)
    return _judge(job.python, process.returncode, said)


def _judge(python: str, code: int, said: _Said) -> Any:
    if said.failure is not None:
        raise said.failure
    if code == 0 and said.has_output:
        return said.output
    if code < 0:
        raise CommandError("crash", f"{python!r} was killed by {command.signal_name(-code)}")
    raise CommandError(
        "crash", f"{python!r} ended with exit code {code} and no result; is it Python 3.8 or newer?"
    )
