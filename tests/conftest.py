"""Fixtures that more than one folder of tests uses; helpers are in `fakes.py` (one guest) and
`runs.py` (whole runs) beside this."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import GuestHost
from hypothesis import HealthCheck, settings
from runs import Embedded, Place

# A loaded machine must not fail a test: examples have no deadline, slow generation is no finding.
# In CI the same commit gets the same examples; at a developer's desk each run looks further.
settings.register_profile(
    "casemate",
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("casemate")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write what tests compare with anew")
    parser.addoption("--every-call", action="store_true", help="let each call of a spawn fail")


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of the developer's own casemate reaches a test, and no test writes into it. The
    default state directory, which this answers, is one of ours."""
    own = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("CASEMATE_"):
                patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(own / "config"))
        patch.setenv("XDG_STATE_HOME", str(own / "state"))
        patch.delenv("XDG_RUNTIME_DIR", raising=False)
        yield own / "state" / "casemate"


@pytest.fixture(scope="session")
def guest_host() -> Iterator[GuestHost]:
    host = GuestHost()
    yield host
    host.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "pipeline")


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One supervisor for all tests that do nothing to it: whatever a test's tasks did, the next
    test is the good task that must still be served."""
    with Embedded(tmp_path_factory.mktemp("house") / "state", max_parallel=8) as house:
        yield house


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """$XDG_RUNTIME_DIR, by a path short enough for sockets: a longer one is passed over."""
    with tempfile.TemporaryDirectory(prefix="casemate-test-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)
