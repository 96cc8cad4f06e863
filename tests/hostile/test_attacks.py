"""Every attack of `attacks/` succeeds outside, fails inside as expected, and disturbs nobody.

One that expects nothing may do as it likes, for what it changes is a layer of its own.
"""

from __future__ import annotations

import pytest
from casemate.hostile.attack import Attack, Kind, attacks_in
from casemate.hostile.outside import LACKING, SUCCEEDS
from casemate.hostile.runner import Findings, run_suite

ATTACKS = attacks_in(Kind.REACH)

# The whole of it runs before the first test: half a minute on an idle machine of two cores.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def findings() -> Findings:
    return run_suite(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_it_succeeds_outside(findings: Findings, attack: Attack) -> None:
    came_to = findings.of(attack).outside
    assert came_to in (SUCCEEDS, LACKING, f"takes {getattr(attack.module, 'NEEDS', None)}")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_it_fails_inside(findings: Findings, attack: Attack) -> None:
    outcome = findings.of(attack)
    assert outcome.contained, outcome.why


def test_the_host_is_as_it_was(findings: Findings) -> None:
    assert findings.host == ()
    assert findings.ok
