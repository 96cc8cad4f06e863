"""The guest, without a sandbox around it: what it says for what a task does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol import codec
from casemate.protocol.limits import MESSAGE_SIZE, VALUE_SIZE
from casemate.protocol.messages import Emit, Fail, Log, Progress, Result
from casemate.protocol.pipeline import FileEntry, ModuleEntry
from fakes import FakeSupervisor, GuestHost


@pytest.fixture
def guest(guest_host: GuestHost, tmp_path: Path) -> Iterator[FakeSupervisor]:
    with FakeSupervisor(guest_host, tmp_path) as supervisor:
        yield supervisor


def test_a_function_of_a_file_gets_its_input_and_gives_its_output(guest: FakeSupervisor) -> None:
    guest.source("agents.py", "def double(input, ctx):\n    return {'twice': input['n'] * 2}\n")
    assert guest.output(FileEntry("agents.py", "double"), {"n": 21}) == {"twice": 42}
