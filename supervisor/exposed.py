"""The processes that face strangers, front and gate: how such a one is started, and what it may
take.

Each is a fresh interpreter that reads nothing of the user's (`-I -S`), with no variable of its
parent's that could be a secret, few descriptors, capped memory, and no core dump. What libzmq makes
of a hostile peer costs this much at most, and then the process.
"""

from __future__ import annotations

import os
import resource
import sys

from ..protocol.limits import FRONT_FILES, FRONT_MEMORY

__all__ = ["clean_environment", "command_of", "limit_self"]


def command_of(module: str) -> list[str]:
    """Calls `main` of a module of ours."""
    paths = [os.path.abspath(entry) for entry in sys.path if entry]
    code = f"import sys; sys.path[:] = {paths!r}; from {module} import main; main()"
    return [sys.executable, "-I", "-S", "-c", code]


def clean_environment() -> dict[str, str]:
    kept = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    # An interpreter with a shared library outside the linker's cache does not start without.
    if path := os.environ.get("LD_LIBRARY_PATH"):
        kept["LD_LIBRARY_PATH"] = path
    return kept


def limit_self() -> None:
    for kind, most in (
        (resource.RLIMIT_NOFILE, FRONT_FILES),
        (resource.RLIMIT_DATA, FRONT_MEMORY),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
