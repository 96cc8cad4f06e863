"""`casemate doctor --attack`: the attack suite, on the user's own host.

The suite (`casemate.hostile`, `tests/hostile/suite` in the tree) says what became of each attack;
here it is shown: behind a progress bar on a terminal, as lines elsewhere, as JSON where asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .scope import settle
from .view import printable

if TYPE_CHECKING:
    from ...hostile.attack import Attack
    from ...hostile.runner import Findings, Outcome

__all__ = ["NOT_CONTAINED", "run_attacks"]

# Nor 2 (bad usage) nor 3 (no sandbox can be built here).
NOT_CONTAINED = 1


def run_attacks(*, as_json: bool, attacks: Sequence[Attack] | None = None) -> int:
    """Exit code 0: every attack was contained; NOT_CONTAINED: one was not. `attacks`: those to
    run, all by default. Raises SetupRefused where no sandbox can be built."""
    # Here alone: the suite imports the whole of casemate, this file included.
    from ...hostile.attack import every_attack
    from ...hostile.runner import run_suite

    settle()
    chosen = every_attack() if attacks is None else attacks
    console = Console()
    if as_json:
        found = run_suite(chosen)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    elif console.is_terminal:
        found = run_with_bar(console, len(chosen), lambda report: run_suite(chosen, report))
        print_table(found, console)
    else:
        found = run_suite(chosen, print_line)
        for line in conclusion(found):
            print(line)
    return 0 if found.ok else NOT_CONTAINED


def run_with_bar(
    console: Console, count: int, run: Callable[[Callable[[Outcome], object]], Findings]
) -> Findings:
    columns = (
        TextColumn("attacking this host"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=count)

        def advance(outcome: Outcome) -> None:
            progress.update(bar, advance=1, description=outcome.name)
            if outcome.why is not None:
                progress.console.print(f"✘ {outcome.name}: {why(outcome)}", style="bold red")

        return run(advance)


def what_stopped_it(outcome: Outcome) -> str:
    """The error's own number, where there is one, tells most."""
    return outcome.errno or outcome.seen


def why(outcome: Outcome) -> str:
    return printable(outcome.why or "")


def print_line(outcome: Outcome) -> None:
    """One attack, for pipes and bug reports."""
    word = "contained" if outcome.contained else "not held" if outcome.unheld else "NOT CONTAINED"
    said = what_stopped_it(outcome) if outcome.why is None else why(outcome)
    print(f"{word:10} {outcome.name}: {outcome.tries}: {said} [{', '.join(outcome.walls)}]")
    sys.stdout.flush()


def print_table(found: Findings, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("attack", overflow="fold")
    table.add_column("ended as", no_wrap=True)
    table.add_column("walls in its way", overflow="fold")
    for outcome in found.outcomes:
        mark, style = ("✔", "green") if outcome.contained else ("✘", "bold red")
        tries = Text(outcome.tries)
        if outcome.unheld:
            mark, style = "!", "yellow"
            tries.append("\n→ nothing holds it here", style=style)
        elif not outcome.contained:
            tries.append(f"\n→ {why(outcome)}", style="bold red")
        walls = ", ".join(outcome.walls)
        table.add_row(Text(mark, style=style), tries, what_stopped_it(outcome), walls)
    console.print(table)
    console.print()
    for line in conclusion(found):
        style = "bold red" if not found.ok else "bold yellow" if found.unheld else "bold green"
        console.print(line, markup=False, highlight=False, style=style)


def conclusion(found: Findings) -> Iterator[str]:
    for complaint in found.host:
        yield f"! {printable(complaint)}"
    degraded = found.walls.get("degraded") if found.walls else None
    if degraded:
        yield f"! without {', '.join(degraded)}, as the operator allowed"
    backing = found.walls.get("limits", {}) if found.walls else {}
    if unheld := sorted(name for name, kind in backing.items() if kind != "cgroup"):
        yield f"! no cgroup holds {', '.join(unheld)} here: what looking does not see is not held"
    unproved = sum(o.outside != "succeeds" for o in found.outcomes if o.kind == "attacks")
    if unproved:
        yield f"{unproved} of them come to nothing on this host without a sandbox, too (--json)"
    total = len(found.outcomes)
    if unheld := [outcome.name for outcome in found.outcomes if outcome.unheld]:
        yield f"! nothing holds {len(unheld)} of them here: {', '.join(unheld)}"
    if found.ok and unheld:
        yield f"{found.contained} of {total} attacks contained, in {found.seconds:.0f} s."
    elif found.ok:
        yield f"All {total} attacks contained, in {found.seconds:.0f} s."
    else:
        yield f"NOT CONTAINED: {found.contained} of {total} attacks were, in {found.seconds:.0f} s."
