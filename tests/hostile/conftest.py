"""A state directory and a configuration of their own for all that is hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from casemate.hostile.arena import Arena
from casemate.hostile.target import Target


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("arena")
    target = Target(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("CASEMATE_")]:
            patch.delenv(name)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        for name, value in target.environment.items():
            patch.setenv(name, value)
        with Arena(folder, target) as made:
            yield made
    target.close()
