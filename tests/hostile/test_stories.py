"""Every attack of `stories/` is stopped, and said to be stopped by what."""

from __future__ import annotations

import pytest
from casemate.hostile.attack import Attack, Kind, attacks_in
from casemate.hostile.outside import SUCCEEDS
from casemate.hostile.runner import run_suite


@pytest.mark.parametrize("attack", attacks_in(Kind.STORY), ids=lambda attack: attack.name)
def test_it_is_stopped(attack: Attack) -> None:
    [outcome] = run_suite([attack]).outcomes
    assert outcome.contained, outcome.why
    assert outcome.outside == SUCCEEDS or not hasattr(attack.module, "outside")
