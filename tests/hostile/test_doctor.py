"""`casemate doctor --attack`: what it says in each form, and that it says so when one gets through.

The attacks that get through lie in a suite of their own: one expects that what every sandbox allows
is refused, the other fails for a reason that proves nothing.
"""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest
from casemate.hostile import good, runner
from casemate.hostile.attack import Attack, Kind, every_attack, find
from casemate.hostile.outside import SUCCEEDS
from casemate.hostile.runner import Findings, Outcome, run_suite
from casemate.hostile.walls import WALLS
from casemate.supervisor.cli import attack as command
from casemate.supervisor.cli.attack import NOT_CONTAINED, run_attacks
from rich.console import Console

WEAK = '''"""{tries}.

Source: this test.
"""

from pathlib import Path
from typing import Any

EXPECTED = "PermissionError"
WALLS = ("mount",)


def attack(target: dict[str, Any]) -> object:
    return Path({path}).write_text("")
'''


@pytest.fixture(scope="module")
def contained() -> Findings:
    return run_suite([find(Kind.REACH, "chroot"), find(Kind.MISBEHAVE, "segfault")])


@pytest.fixture(scope="module")
def pierced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Findings]:
    place = tmp_path_factory.mktemp("weak")
    folder = place / "weaksuite" / "attacks"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").write_text("")
    shutil.copy(str(good.__file__), folder.parent / "good.py")
    (folder / "write_tmp.py").write_text(WEAK.format(tries="Write to /tmp", path="'/tmp/weak'"))
    (folder / "fail.py").write_text(WEAK.format(tries="Fail for no reason", path="undefined"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        modules = {
            name: importlib.import_module(f"weaksuite.attacks.{name}")
            for name in ("write_tmp", "fail")
        }
        yield run_suite([Attack(Kind.REACH, name, module) for name, module in modules.items()])
    for name in [name for name in sys.modules if name.startswith("weaksuite")]:
        del sys.modules[name]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[Findings, bool], int]:
    """The command over findings that were made before: its exit code."""

    def say(found: Findings, as_json: bool) -> int:
        def replay(
            attacks: Sequence[Attack], report: Callable[[Outcome], object] = lambda _: None
        ) -> Findings:
            for outcome in found.outcomes:
                report(outcome)
            return found

        monkeypatch.setattr(runner, "run_suite", replay)
        return run_attacks(as_json=as_json)

    return say


def test_json_tells_of_each_attack_what_became_of_it(
    contained: Findings,
    say: Callable[[Findings, bool], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert say(contained, True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["contained"] == 2 and found["host"] == []
    chroot, segfault = found["outcomes"]
    assert chroot["contained"] and chroot["seen"] == "PermissionError"
    assert chroot["errno"] == "EPERM" and "seccomp" in chroot["walls"]
    assert chroot["outside"] == SUCCEEDS and chroot["source"] and chroot["tries"]
    assert segfault["contained"] and segfault["seen"] == "crash"
    assert found["walls"]["seccomp"].startswith("allow-list")


def test_lines_tell_of_each_attack_what_stopped_it(
    contained: Findings,
    say: Callable[[Findings, bool], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert say(contained, False) == 0
    chroot, segfault, *noted, last = capsys.readouterr().out.splitlines()
    sampled = [n for n, kind in sorted(contained.walls["limits"].items()) if kind != "cgroup"]
    assert [line.split(" here")[0] for line in noted] == (
        [f"! no cgroup holds {', '.join(sampled)}"] if sampled else []
    )
    expected = "contained  chroot: chroot, to walk out of it again: EPERM [seccomp, capabilities]"
    assert chroot == expected
    assert segfault.startswith("contained  segfault: ")
    assert last.startswith("All 2 attacks contained, in ")


def test_an_attack_that_gets_through_is_said_to(
    pierced: Findings,
    say: Callable[[Findings, bool], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not pierced.ok and pierced.contained == 0
    assert say(pierced, False) == NOT_CONTAINED
    _, weak, *_, last = capsys.readouterr().out.splitlines()
    assert weak == "NOT CONTAINED write_tmp: Write to /tmp: GOT THROUGH: 0 [mount]"
    assert last.startswith("NOT CONTAINED: 0 of 2 attacks were")
    assert say(pierced, True) == NOT_CONTAINED
    assert not json.loads(capsys.readouterr().out)["ok"]


def test_what_nothing_holds_here_is_not_said_to_be_contained(
    contained: Findings,
    say: Callable[[Findings, bool], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    chroot, segfault = contained.outcomes
    unheld = msgspec.structs.replace(segfault, contained=False, unheld=True)
    found = msgspec.structs.replace(contained, outcomes=(chroot, unheld), contained=1, unheld=1)
    assert say(found, False) == 0
    _, line, *_, named, last = capsys.readouterr().out.splitlines()
    assert line.startswith("not held   segfault: ")
    assert named == "! nothing holds 1 of them here: segfault"
    assert last.startswith("1 of 2 attacks contained, in ")
    text = io.StringIO()
    command.print_table(found, Console(file=text, width=200))
    assert "nothing holds it here" in text.getvalue() and "✘" not in text.getvalue()


def test_an_attack_that_fails_for_another_reason_proves_nothing(pierced: Findings) -> None:
    [outcome] = [each for each in pierced.outcomes if each.name == "fail"]
    assert not outcome.contained
    assert outcome.why == (
        "expected PermissionError, was NameError: name 'undefined' is not defined"
    )


def test_a_terminal_gets_a_bar_and_a_table(contained: Findings, pierced: Findings) -> None:
    for found, words in ((contained, "All 2 attacks contained"), (pierced, "GOT THROUGH")):
        text = io.StringIO()
        console = Console(file=text, force_terminal=True, width=200)

        def replay(report: Callable[[Outcome], object], found: Findings = found) -> Findings:
            for outcome in found.outcomes:
                report(outcome)
            return found

        command.print_table(command.run_with_bar(console, 2, replay), console)
        shown = text.getvalue()
        assert "attacking this host" in shown and words in shown
        assert all(each.tries in shown for each in found.outcomes)


def test_every_attack_names_its_source_and_its_walls() -> None:
    attacks = every_attack()
    assert len({attack.name for attack in attacks}) == len(attacks)
    for attack in attacks:
        assert attack.tries and attack.source, attack.name
        assert attack.walls and set(attack.walls) <= set(WALLS), attack.name
