"""What the host saw of one task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from casemate.supervisor.api import PipelineEvent

from .require import require

__all__ = ["Seen"]

_ENDINGS = ("task.completed", "task.failed", "task.retrying", "task.cancelled")


@dataclass(slots=True)
class Seen:
    task: str
    events: list[PipelineEvent] = field(default_factory=list)
    was_alive: bool = False  # its init, when it started
    is_alive: bool = False  # its init, at its verdict
    was_marked: bool = False  # a process with its mark, while it ran
    is_marked: bool = False  # and at its verdict

    @property
    def kind(self) -> str:
        """Its verdict."""
        last = self.events[-1] if self.events else None
        if last is None or last.kind not in ("task.completed", "task.failed"):
            return f"no verdict ({last})"
        return "completed" if last.kind == "task.completed" else str(self.error["kind"])

    @property
    def error(self) -> dict[str, Any]:
        require("error" in self.events[-1].data, self.events[-1])
        error: dict[str, Any] = self.events[-1].data["error"]
        return error

    @property
    def output(self) -> Any:  # the task's own
        require(self.events[-1].kind == "task.completed", self.events[-1])
        return self.events[-1].data["output"]

    @property
    def items(self) -> list[Any]:
        return [data["item"] for data in self.data("task.emitted")]

    @property
    def walls(self) -> dict[str, Any]:
        """Those in force, as its start told them."""
        [started] = self.data("task.started")
        walls: dict[str, Any] = started["walls"]
        return walls

    @property
    def is_sampled(self) -> bool:
        """It started, and no cgroup held its limits."""
        return bool(self.data("task.started")) and "sampled" in self.walls["limits"].values()

    def data(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.kind == kind]

    def logged(self, stream: str) -> str:
        return "".join(d["text"] for d in self.data("task.log") if d["stream"] == stream)

    def dropped(self, stream: str) -> int:
        return sum(d["dropped"] for d in self.data("task.log") if d["stream"] == stream)

    def check_ended(self) -> None:
        """Its attempt ended once, and with it everything that it had started."""
        endings = [event.kind for event in self.events if event.kind in _ENDINGS]
        require(endings == [self.events[-1].kind], endings)
        require(self.was_alive, "the host never saw its init: nothing is proved")
        require(not self.is_alive, "its init outlived the verdict")

    def check_daemon_ended(self) -> None:
        """What it left behind was there, and ended with it."""
        require(self.was_marked, "the host never saw alive what it started")
        require(not self.is_marked, "what it started outlived the verdict")
