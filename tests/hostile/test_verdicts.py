"""Every task of `verdicts/` receives its verdict, leaves nothing alive, and disturbs nobody."""

from __future__ import annotations

import pytest
from casemate.hostile.arena import AFTER, Arena
from casemate.hostile.attack import Attack, Kind, attacks_in, find
from casemate.hostile.outside import SUCCEEDS, can_run_outside
from casemate.hostile.runner import Findings, run_suite

ATTACKS = attacks_in(Kind.MISBEHAVE)

# The whole of it runs before the first test: half a minute on an idle machine of two cores.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def findings() -> Findings:
    return run_suite(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_it_receives_its_verdict(findings: Findings, attack: Attack) -> None:
    outcome = findings.of(attack)
    assert outcome.contained or outcome.unheld, outcome.why


@pytest.mark.parametrize(
    "attack", [each for each in ATTACKS if can_run_outside(each)], ids=lambda attack: attack.name
)
def test_its_milder_twin_succeeds_outside(findings: Findings, attack: Attack) -> None:
    assert findings.of(attack).outside == SUCCEEDS


def test_all_is_held_where_a_cgroup_holds_the_limits(findings: Findings) -> None:
    sampled = "sampled" in findings.walls["limits"].values()
    unheld = [outcome.name for outcome in findings.outcomes if outcome.unheld]
    assert unheld == (["cpu_share", "dirty_pages", "full_sockets"] if sampled else [])


def test_nothing_is_left_and_the_engine_stayed_small(findings: Findings) -> None:
    assert findings.host == ()
    assert findings.ok


def test_an_output_that_is_no_value_hides_no_other(arena: Arena) -> None:
    attack = find(Kind.MISBEHAVE, "output_of_no_type")
    pipeline = arena.pipeline("no-value", attack.root)
    arena.add(pipeline, attack)
    result = arena.result(pipeline)
    assert result.ok
    assert result.outputs["output_of_no_type" + AFTER] == {"sum": 190}
