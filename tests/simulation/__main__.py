"""The long run: `make simulate SEEDS=1000000`.

Plays the seeds from `--first` on, in as many processes as there are cores, and tells every so
often how far it is and how fast. At the end it prints how many histories and steps there were, and
of each table which edges were taken how often; one that none took is a failure, where there were
enough. A seed that breaks a promise is played again with ever less in it, and what is left is
printed as a script that replays it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from random import Random

from .coverage import Edges, missing, watch_edges
from .host import play
from .shrink import explain

BATCH = 500
COLLECTED = 50  # histories at a time: 20 MB
# The rarest edge (a fork of a run that has completed tasks) is taken once in some 36 000.
ENOUGH = 300_000


@dataclass
class Tally:
    histories: int = 0
    steps: int = 0
    records: int = 0
    seconds: float = 0.0  # of cpu
    slowest: float = 0.0
    taken: Counter[Edges] = field(default_factory=Counter)
    broken: list[int] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.histories += other.histories
        self.steps += other.steps
        self.records += other.records
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.taken.update(other.taken)
        self.broken += other.broken


def collect_by_hand() -> None:
    """Nothing of a history is garbage before it ends, and what was imported never is: to look for
    some meanwhile costs an eighth of the time."""
    gc.disable()
    gc.freeze()


def play_all(seeds: range) -> Tally:
    tally = Tally()
    with watch_edges(tally.taken):
        for seed in seeds:
            if seed % COLLECTED == 0:
                gc.collect()
            began = time.process_time()
            try:
                world = play(Random(seed)).world
            except Exception:  # whatever it is, it is a finding; told with its script at the end
                tally.broken.append(seed)
            else:
                tally.steps += len(world.did)
                tally.records += sum(len(each.lines) for each in world.journals.values())
            taken = time.process_time() - began
            tally.histories += 1
            tally.seconds += taken
            tally.slowest = max(tally.slowest, taken)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    total, began = Tally(), time.monotonic()
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    with ProcessPoolExecutor(chosen.jobs, initializer=collect_by_hand) as pool:
        batches = [seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)]
        told = began
        for done in as_completed([pool.submit(play_all, batch) for batch in batches]):
            found = done.result()
            total.add(found)
            for seed in found.broken:
                print(f"seed {seed} breaks a promise", file=sys.stderr, flush=True)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                rate = total.histories / (told - began)
                print(
                    f"{total.histories} histories, {rate:.0f}/s, {len(total.broken)} broken",
                    file=sys.stderr,
                    flush=True,
                )
    print(
        f"{total.histories} histories of {total.steps} steps and {total.records} records in "
        f"{time.monotonic() - began:.0f} s ({total.seconds:.0f} s of cpu: "
        f"{1000 * total.seconds / max(1, total.histories):.1f} ms each, "
        f"{1000 * total.slowest:.0f} ms the slowest)"
    )
    for (table, at, happening), count in sorted(total.taken.items()):
        print(f"  {table:8} {at:10} {happening:16} {count}")
    never = missing(total.taken)
    print(f"{len(total.taken)} transitions taken, {len(never)} never")
    for table, at, happening in sorted(never):
        print(f"  never: {table} {at} {happening}")
    for seed in sorted(total.broken)[:5]:
        print(f"\nseed {seed} breaks a promise:\n{explain(seed)}")
    return 1 if total.broken or (never and total.histories >= ENOUGH) else 0


if __name__ == "__main__":
    sys.exit(main())
