"""`casemate breaker`: how the breakers of a state directory stand, and a person's hand on them.

No supervisor is asked: the rows are shared, and every supervisor sees within a quarter of a second
what was written here.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ...protocol.errors import UsageError
from ...protocol.pipeline import BREAKER_KEY_PATTERN
from ...protocol.units import parse_duration
from ..breakers import BreakerStore, standing_of
from ..core.breaker import Forced, Happening, Reset, Row
from ..state import StateDirectory
from .show import breaker_line, open_state, print_json, table_of
from .view import printable

__all__ = ["list_breakers", "open_breaker", "reset_breaker"]


def list_breakers(*, as_json: bool, state: Path | None) -> int:
    directory, now = open_state(state), time.time()
    store = BreakerStore(directory.path)
    rows = store.rows()
    store.close()
    if as_json:
        print_json([standing_of(key, row, now) for key, row in rows.items()])
        return 0
    if not rows:
        print(f"no breakers in {directory.path}: none has seen a failure", file=sys.stderr)
        return 0
    table = table_of("breaker", "state", "failures", "opened", right=("failures", "opened"))
    for key, row in rows.items():
        found = standing_of(key, row, now)
        table.add_row(
            Text(printable(key)),
            Text(breaker_line(found)),
            str(found["failures"]),
            f"{found['opening']} times" if found["opening"] else "",
        )
    Console(highlight=False, emoji=False).print(table)
    return 0


def reset_breaker(key: str, *, as_json: bool, state: Path | None) -> int:
    return _step(key, Reset(), as_json, state)


def open_breaker(key: str, *, open_for: str, as_json: bool, state: Path | None) -> int:
    try:
        seconds = parse_duration(open_for)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from error
    return _step(key, Forced(seconds), as_json, state)


def _step(key: str, happening: Happening, as_json: bool, state: Path | None) -> int:
    directory, now = open_state(state), time.time()
    if re.search(BREAKER_KEY_PATTERN, key) is None:
        raise UsageError(
            f"{printable(key)!r} is no breaker's key; `casemate breaker list` has them"
        )
    if not directory.path.is_dir():
        raise UsageError(f"state directory {directory.path}: there is none")
    row = _stepped(StateDirectory.open(directory.path), key, now, happening)
    found = standing_of(key, row, now)
    if as_json:
        print_json(found)
    else:
        print(f"breaker {printable(key)} is {breaker_line(found)}")
    return 0


def _stepped(directory: StateDirectory, key: str, now: float, happening: Happening) -> Row:
    store = BreakerStore(directory.path)
    try:
        return store.step(key, now, happening)
    finally:
        store.close()
