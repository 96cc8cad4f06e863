"""Fixtures that more than one folder of tests uses; helpers are in `fakes.py` beside this."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes import GuestHost
from hypothesis import HealthCheck, settings

# A loaded machine must not fail a test: examples have no deadline, slow generation is no finding.
settings.register_profile(
    "casemate", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("casemate")


@pytest.fixture(scope="session")
def guest_host() -> Iterator[GuestHost]:
    host = GuestHost()
    yield host
    host.close()
