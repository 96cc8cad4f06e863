"""casemate: run graphs of untrusted agent tasks, each attempt in its own sealed process.

The public names, loaded when first used: every guest may import this package, and what a task does
not use it should not pay for. `import casemate` alone loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .protocol.answers import RecoveryAction, ValidationResult
    from .protocol.errors import CasemateError, SetupRefused, UsageError
    from .protocol.events import ErrorKind, TaskError
    from .sandbox.context import RuntimeContext
    from .supervisor.api import PipelineEvent, RunResult, Supervisor
    from .supervisor.apply import Applied, ApplyRefused
    from .supervisor.builder import (
        AgentSpec,
        Breaker,
        Bulkhead,
        Limits,
        Pipeline,
        Rate,
        Retry,
        Task,
        Timeouts,
    )
    from .supervisor.changes import Diff
    from .supervisor.client import AsyncClient, Client
    from .supervisor.observing import Observation, ObservationLost, observe
    from .supervisor.sandboxed import SandboxResult, run_sandboxed

__version__ = "0.1.0"

__all__ = [
    "AgentSpec",
    "Applied",
    "ApplyRefused",
    "AsyncClient",
    "Breaker",
    "Bulkhead",
    "CasemateError",
    "Client",
    "Diff",
    "ErrorKind",
    "Limits",
    "Observation",
    "ObservationLost",
    "Pipeline",
    "PipelineEvent",
    "Rate",
    "RecoveryAction",
    "Retry",
    "RunResult",
    "RuntimeContext",
    "SandboxResult",
    "SetupRefused",
    "Supervisor",
    "Task",
    "TaskError",
    "Timeouts",
    "UsageError",
    "ValidationResult",
    "__version__",
    "observe",
    "run_sandboxed",
]

_HOME = {
    ".protocol.answers": ("RecoveryAction", "ValidationResult"),
    ".protocol.errors": ("CasemateError", "SetupRefused", "UsageError"),
    ".protocol.events": ("ErrorKind", "TaskError"),
    ".sandbox.context": ("RuntimeContext",),
    ".supervisor.api": ("PipelineEvent", "RunResult", "Supervisor"),
    ".supervisor.apply": ("Applied", "ApplyRefused"),
    ".supervisor.builder": (
        "AgentSpec",
        "Breaker",
        "Bulkhead",
        "Limits",
        "Pipeline",
        "Rate",
        "Retry",
        "Task",
        "Timeouts",
    ),
    ".supervisor.changes": ("Diff",),
    ".supervisor.client": ("AsyncClient", "Client"),
    ".supervisor.observing": ("Observation", "ObservationLost", "observe"),
    ".supervisor.sandboxed": ("SandboxResult", "run_sandboxed"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'casemate' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(module, __name__), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
