"""A task is told to end at the worst moment: when the interpreter has looked for signals and found
none, and goes into a call that blocks for ever. The signal is there, and nobody looks.

A real guest behind its init, which is whom SIGTERM is sent to. What a task here does within one
`map` is done without a look between: init is told, SIGTERM arrives, and the task goes to sleep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol.messages import Fail, Log
from casemate.protocol.pipeline import FileEntry
from sealed import House, SealedGuest

TASKS = """
import asyncio, ctypes, os, signal, time
from functools import partial
from operator import call

pause = ctypes.CDLL(None).pause  # returns when a signal has come

def terminated_before(blocking):
    return list(map(call, [partial(os.kill, 1, signal.SIGTERM), pause, blocking]))[-1]

def asleep(input, ctx):
    try:
        terminated_before(partial(time.sleep, 3600))
    finally:
        ctx.log("tidied")

class Poller:
    def __init__(self, poller):
        self._poller = poller
    def __getattr__(self, name):
        return getattr(self._poller, name)
    def poll(self, *arguments):
        return terminated_before(partial(self._poller.poll, *arguments))

async def coroutine(input, ctx):
    selector = asyncio.get_running_loop()._selector
    poller = selector._selector
    try:
        selector._selector = Poller(poller)
        await asyncio.sleep(3600)
    finally:
        selector._selector = poller
        ctx.log("tidied")
"""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as made:
        yield made


@pytest.mark.parametrize("name", ["asleep", "coroutine"])
def test_a_sigterm_just_before_a_blocking_call_ends_it(
    house: House, tmp_path: Path, name: str
) -> None:
    (tmp_path / "task.py").write_text(TASKS)
    with SealedGuest(house, sources=str(tmp_path)) as guest:
        guest.start(FileEntry("task.py", name))
        log, outcome = guest.next(), guest.next()
    assert isinstance(log, Log) and log.text == "tidied"
    assert isinstance(outcome, Fail)
    assert outcome.type == "casemate.sandbox.context.Cancelled"
