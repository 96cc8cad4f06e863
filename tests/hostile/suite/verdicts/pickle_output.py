"""Return, emit and save a pickle that runs a program where it is loaded.

Source: CWE-502; pickles between workers (multiprocessing, celery) and their masters.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("values",)

# Where the host would see that one was loaded.
TRACE = Path("/tmp/casemate-attack-loaded")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(TRACE),)


def attack(input: Any, ctx: Any) -> object:
    bomb = pickle.dumps(Bomb())
    ctx.emit(bomb)
    ctx.save(bomb)
    return {"__reduce__": bomb}


def check(seen: Seen) -> None:
    require(not TRACE.exists(), "the supervisor loaded it")
    [item] = seen.items
    require(item == seen.output["__reduce__"] and b"mkdir" in item, "it is not as it was said")


def outside() -> object:
    """A milder one, loaded."""
    folder = pickle.loads(pickle.dumps(Milder()))
    os.rmdir(folder)
    return folder


class Milder:
    def __reduce__(self) -> tuple[Any, ...]:
        return tempfile.mkdtemp, ()
