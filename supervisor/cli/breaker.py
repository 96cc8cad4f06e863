"""`casemate breaker`: how the breakers of a state directory stand, and a person's hand on them.

No supervisor is asked: the rows are shared, and every supervisor sees within a quarter of a second
what was written here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from ...protocol.control import BreakerSummary
from ...protocol.errors import UsageError
from ...protocol.units import parse_duration
from ..breakers import read_breakers, step_breaker
from ..core.breaker import Forced, Reset
from ..state import StateDirectory
from .show import breaker_line, open_state, print_json, table_of
from .view import printable

__all__ = ["list_breakers", "open_breaker", "print_breaker", "print_breakers", "reset_breaker"]


def list_breakers(*, as_json: bool, state: Path | None) -> int:
    directory = open_state(state)
    print_breakers(read_breakers(directory.path), str(directory.path), as_json=as_json)
    return 0


def print_breakers(found: Sequence[BreakerSummary], where: str, *, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    if not found:
        print(f"no breaker in {where} has seen a failure", file=sys.stderr)
        return
    table = table_of("breaker", "state", "failures", "openings", right=("failures", "openings"))
    for each in found:
        table.add_row(
            Text(printable(each.key)),
            Text(breaker_line(each)),
            str(each.failures),
            str(each.opening),
        )
    Console(highlight=False, emoji=False).print(table)


def reset_breaker(key: str, *, as_json: bool, state: Path | None) -> int:
    return _step(key, Reset(), as_json, state)


def open_breaker(key: str, *, open_for: str, as_json: bool, state: Path | None) -> int:
    try:
        seconds = parse_duration(open_for)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from error
    return _step(key, Forced(seconds), as_json, state)


def _step(key: str, happening: Forced | Reset, as_json: bool, state: Path | None) -> int:
    directory = StateDirectory.open(open_state(state).path)
    print_breaker(step_breaker(directory.path, key, happening), as_json=as_json)
    return 0


def print_breaker(found: BreakerSummary, *, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        print(f"breaker {printable(found.key)} is {breaker_line(found)}")
