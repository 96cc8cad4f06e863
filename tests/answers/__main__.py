"""`python -m answers [--only KIND]` with `PYTHONPATH=tests`: the table, expected and received."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from runs import Embedded

from .table import KINDS, UNASKED, cells, is_refused, run_cells, unasked


def main() -> int:
    parser = argparse.ArgumentParser(prog="answers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="KIND", help="of one kind of error")
    parser.add_argument("--parallel", type=int, default=8, help="attempts at once")
    chosen = parser.parse_args()
    wanted = [cell for cell in cells() if chosen.only in (None, cell.name, cell.kind.kind)]
    wrong, began = 0, time.monotonic()

    def say(name: str, action: str, expected: str, got: str) -> None:
        nonlocal wrong
        wrong += got != expected
        print(
            f"{name:<26}{action:<20}{got}" + ("" if got == expected else f"   NOT {expected}"),
            flush=True,
        )

    with tempfile.TemporaryDirectory(prefix="casemate-answers-") as folder:
        place = Path(folder)
        with Embedded(place / "state", max_parallel=chosen.parallel) as house:
            for number, kind in enumerate(KINDS):
                row = [cell for cell in wanted if cell.kind is kind]
                for cell, got in zip(row, run_cells(house, place / f"{number}", row), strict=True):
                    action = f"{cell.action}{' (function)' if cell.is_function else ''}"
                    say(cell.name, action, cell.expected(), got)
            for name in UNASKED if chosen.only is None else ():
                say(name, "(nobody is asked)", UNASKED[name][0], unasked(house, name))
                say(name, "(a rule)", "refused", "refused" if is_refused(name) else "accepted")
    print(f"{len(wanted)} cells, {wrong} not as expected, {time.monotonic() - began:.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
