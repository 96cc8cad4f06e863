"""^C during `Pipeline.run` ends the run, also where the program lives on, as a notebook does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate import Pipeline
from fakes import wait_until
from runs import descendants


def hang(input: object) -> None:
    time.sleep(3600)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Whoever started the tests with `&` had SIGINT ignored in them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_run_and_its_engine(tmp_path: Path) -> None:
    pipeline = Pipeline("x")
    pipeline.task(id="hang")(hang)
    before = set(descendants(os.getpid()))

    def interrupt() -> None:
        wait_until(lambda: list(tmp_path.glob("runs/*/journal.db")))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(state=tmp_path)
    wait_until(lambda: all(each.name != "casemate-run" for each in threading.enumerate()))
    assert set(descendants(os.getpid())) <= before
