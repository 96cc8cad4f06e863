"""The long tests: `make chaos ARGS="kills --runs 50"`.

    kills       seeded runs, everything in them killed again and again; beside an undisturbed run
    rollbacks   of each seed a run that is forked from and rolled back to each of its checkpoints

Of `kills` a line for each seed, with what was struck in which order (e: engine, z: zygote,
f: front, g: guest). What went wrong is told, and kept below the folder that is named.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from .kills import compare_run
from .rollbacks import return_everywhere

# The share of edges that are streams, with --streams: most tasks then have one above or below.
STREAMING = 0.4


def streaming(chosen: argparse.Namespace) -> float:
    return STREAMING if chosen.streams else 0.0


def kills(folder: Path, chosen: argparse.Namespace) -> bool:
    equal = 0
    for seed in range(chosen.seed, chosen.seed + chosen.runs):
        place = folder / f"kills-{seed}"
        outcome = compare_run(
            place, seed, tasks=chosen.tasks, kills=chosen.kills, streaming=streaming(chosen)
        )
        print(
            f"seed {seed}: {''.join(name[0] for name in outcome.struck)}, "
            f"{outcome.lives} engines, {outcome.attempts} attempts, {outcome.seconds:.1f} s",
            "equal" if not outcome.problems else f"NOT EQUAL, see {place}",
            *outcome.problems,
            sep="\n  " if outcome.problems else "  ",
            flush=True,
        )
        if not outcome.problems:
            equal += 1
            shutil.rmtree(place)
    print(f"{equal} of {chosen.runs} equal")
    return equal == int(chosen.runs)


def rollbacks(folder: Path, chosen: argparse.Namespace) -> bool:
    is_well = True
    for seed in range(chosen.seed, chosen.seed + chosen.runs):
        returned = return_everywhere(
            folder / f"rollbacks-{seed}", seed, tasks=chosen.tasks, streaming=streaming(chosen)
        )
        print(
            f"seed {seed}: {returned.checkpoints} rollbacks, {returned.forks} forks",
            *(returned.problems or ("all equal",)),
            sep="\n  " if returned.problems else "  ",
            flush=True,
        )
        is_well = is_well and not returned.problems
    return is_well


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="below which everything happens (default: /tmp)"
    )
    which = parser.add_subparsers(required=True)
    killing = which.add_parser("kills")
    killing.add_argument("--runs", type=int, default=50)
    killing.add_argument("--seed", type=int, default=1, help="of the first run")
    killing.add_argument("--tasks", type=int, default=60)
    killing.add_argument("--kills", type=int, default=10)
    killing.set_defaults(act=kills)
    returning = which.add_parser("rollbacks")
    returning.add_argument("--runs", type=int, default=1)
    returning.add_argument("--seed", type=int, default=1, help="of the first run")
    returning.add_argument("--tasks", type=int, default=30)
    returning.set_defaults(act=rollbacks)
    for each in (killing, returning):
        each.add_argument("--streams", action="store_true", help="with streaming edges")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="casemate-chaos-", dir=chosen.folder))
    is_well: bool = chosen.act(folder, chosen)
    if is_well:
        shutil.rmtree(folder)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
