"""Reading a pipeline for a command. A `.py` file is a program in a sandbox: it may take its time,
and whoever stops us meanwhile should find nothing left behind."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ...protocol.pipeline import PipelineSpec
from ..config import Config
from ..describe import read_pipeline

__all__ = ["interrupt", "interruptible", "load"]

# Seconds until it is said what we wait for. A file that only builds its pipeline takes half of one.
SLOW = 2.0


def interrupt(number: int, _frame: object) -> NoReturn:
    """A handler: the orderly end that ^C has, once. A second signal must not break it off."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM is a KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def load(file: Path, config: Config, workspace: Path | None = None) -> PipelineSpec:
    said = {"file": sys.stderr, "flush": True}
    slow = threading.Timer(SLOW, print, [f"casemate: loading {file} …"], said)
    slow.daemon = True
    slow.start()
    try:
        return read_pipeline(file, config, workspace)
    finally:
        slow.cancel()
