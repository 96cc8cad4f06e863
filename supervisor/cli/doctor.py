"""`casemate doctor`: what this host can enforce, said and then shown.

Facts come from the probe (sandbox/probe.py), which tries every wall; what it cannot know is whether
the walls stand together, so one real sandbox is built, and what the kernel says of the program in
it is compared with what was planned. The last line says what all of it means.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...protocol.errors import CasemateError, UsageError
from ...sandbox.cgroup import LIMITING, CgroupManager
from ...sandbox.probe import Fact, probe
from ...sandbox.process import Stdio
from ...sandbox.spec import DEGRADABLE
from ..config import Config, load_config
from ..exec import COMPLETED, Execution, Report, refusal
from ..granted import command_spec, granted_limits
from ..sandboxes import Sandboxes
from .scope import settle

__all__ = ["Examination", "examine"]

# Facts that are no wall: better to have, and no reason to refuse.
OPTIONAL = {"reserved ids", "overlay", *(f"{name} limit" for name in LIMITING)}


class Examination(Struct, frozen=True, kw_only=True):
    """Everything found out, as `--json` prints it."""

    ok: bool  # sandboxes can be built here
    meaning: str
    missing: tuple[str, ...]
    facts: tuple[Fact, ...]
    problems: tuple[str, ...]  # of using the cgroups; why there are none is in the facts
    notes: tuple[str, ...]  # of the configuration
    trial: Report


def examine(*, as_json: bool, state: Path | None = None) -> int:
    """Exit code 0: sandboxes can be built here; 3: not."""
    config = load_config(state=state)
    settle()
    found = look(config)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
        return 0 if found.ok else 3
    console = Console()
    if console.is_terminal:
        print_table(found, console)
    else:
        print_lines(found)
    return 0 if found.ok else 3


def look(config: Config) -> Examination:
    facts: tuple[Fact, ...] = ()
    problems: list[str] = []
    try:
        host = probe(alone=True)
        facts = tuple(host.facts.values())
        cgroups = CgroupManager(host.cgroup)
        problems = cgroups.problems
        cgroups.close()
        trial = build_one(config)
    except (CasemateError, OSError) as error:
        trial = refusal(str(error))
    missing = tuple(fact.name for fact in facts if not fact.present)
    return Examination(
        ok=trial.verdict == COMPLETED,
        meaning=meaning(trial, missing),
        missing=missing,
        facts=facts,
        problems=tuple(problems),
        notes=config.notes,
        trial=trial,
    )


def build_one(config: Config) -> Report:
    """A sandbox as a task would get it, with what the operator's configuration says."""
    spec = command_spec(
        ["true"],
        limits=granted_limits({"cpu": 1.0}),
        state=config.state,
        degrade=config.degrade,
        strict=config.strict,
    )
    sandboxes = Sandboxes(alone=True)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        sandboxes.wait_ready()
        stdio = Stdio(null, null, null)
        Execution(sandboxes, spec, stdio=stdio, wall=TRIAL_WALL).run()  # the first is always slow
        return Execution(sandboxes, spec, stdio=stdio, wall=TRIAL_WALL).run()
    except UsageError as error:  # of the configuration: `degrade` names what is no wall
        return refusal(str(error))
    finally:
        os.close(null)
        sandboxes.close()


# `true` takes milliseconds; on a host that hangs this is the end of waiting.
TRIAL_WALL = 20.0


def meaning(trial: Report, missing: tuple[str, ...]) -> str:
    if trial.verdict != COMPLETED:
        walls = [name for name in missing if name not in OPTIONAL]
        what = f" ({', '.join(walls)} missing)" if walls else ""
        return f"No sandbox can be built on this host{what}: casemate will refuse to run."
    degraded = trial.walls["degraded"]
    if degraded:
        said = f"Sandboxes are built here WITHOUT {', '.join(degraded)}, as the operator allowed"
    else:
        said = "Every wall stands: untrusted code can be run here"
    backing = trial.walls["limits"]
    sampled = sorted(name for name, kind in backing.items() if kind == "sampled")
    unheld = sorted(name for name, kind in backing.items() if kind == "none")
    if not sampled and not unheld:
        return f"{said}, and the kernel holds every limit."
    if sampled:
        said += (
            f"; limits on {' and '.join(sampled)} are sampled (rlimits, and a look every 0.1 s), "
            "which a task may overshoot for a moment"
        )
    if unheld:
        said += f"; a limit on {' and '.join(unheld)}, where one is set, is not held at all"
    return f"{said}."


def trial_line(trial: Report) -> str:
    if trial.verdict != COMPLETED:
        return f"{trial.verdict}: {trial.error}"
    posture = trial.walls["posture"]
    uid, seccomp = posture["uid"][1], posture["seccomp"]
    return (
        f"built in {trial.startup * 1000:.1f} ms, `true` ran {trial.seconds * 1000:.1f} ms; "
        f"read back from inside: uid {uid}, "
        f"{'no capabilities' if posture['is_bare'] else 'CAPABILITIES'}, "
        f"no_new_privs {int(posture['no_new_privs'])}, seccomp {seccomp}"
    )


def state_of(fact: Fact) -> tuple[str, str]:
    """(word, style)"""
    if fact.present:
        return "there", "green"
    if fact.name in OPTIONAL:
        return "missing", "yellow"
    return "MISSING", "bold red"


def advised(facts: tuple[Fact, ...]) -> Iterator[tuple[Fact, list[str]]]:
    """What to do about each that is missing; what mends several is said once."""
    told = ""
    for fact in facts:
        advice = []
        if not fact.present:
            if fact.remedy and fact.remedy != told:
                told = fact.remedy
                advice.append(fact.remedy)
            if fact.name in DEGRADABLE:
                advice.append(f'or go without this wall: degrade = ["{fact.name}"]')
        yield fact, advice


def print_table(found: Examination, console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("wall or limit", no_wrap=True)
    table.add_column("")
    table.add_column("what is there, or why not", overflow="fold")
    for fact, advice in advised(found.facts):
        word, style = state_of(fact)
        said = Text(fact.detail)
        for line in advice:
            said.append(f"\n→ {line}", style="yellow")
        table.add_row(fact.name, Text(word, style=style), said)
    console.print(table)
    console.print()
    for note in (*found.problems, *found.notes):
        console.print(f"! {note}", markup=False, highlight=False, style="yellow")
    mark, style = ("✔", "green") if found.ok else ("✘", "red")
    trial = trial_line(found.trial)
    console.print(f"{mark} one sandbox: {trial}", markup=False, highlight=False, style=style)
    console.print(found.meaning, markup=False, highlight=False, style="bold")


def print_lines(found: Examination) -> None:
    """The same, one fact a line, for pipes and bug reports."""
    for fact, advice in advised(found.facts):
        print(f"{state_of(fact)[0]:8} {fact.name}: {fact.detail}")
        for line in advice:
            print(f"{'':8} remedy: {line}")
    for note in (*found.problems, *found.notes):
        print(f"note     {note}")
    print(f"{'built' if found.ok else 'REFUSED':8} one sandbox: {trial_line(found.trial)}")
    print(found.meaning)
