"""Fixtures that more than one folder of tests uses; helpers are in `fakes.py` beside this."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes import GuestHost


@pytest.fixture(scope="session")
def guest_host() -> Iterator[GuestHost]:
    host = GuestHost()
    yield host
    host.close()
