"""`casemate submit`: have the supervisor of `casemate serve` run a pipeline.

A file is read and checked here first, so that what is wrong with it is said where it was written.
What the supervisor's own configuration does not allow is refused by it. A name is one of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...protocol.errors import UsageError
from ..client import Client
from ..config import load_config
from .loading import interruptible
from .run import input_value
from .show import print_json

__all__ = ["submit_file"]


def submit_file(
    pipeline: str,
    *,
    input: str | None,
    workspace: Path | None,
    as_json: bool,
    allow: list[str] | None,
    at: str | None,
    state: Path | None,
) -> int:
    if at is not None and state is not None:
        raise UsageError("submit: --at or --state, not both")
    value = input_value(input)
    config = load_config(state=state, allow=allow or None)
    with interruptible(), Client(config=config, at=at) as client:
        run = client.submit(pipeline, value, workspace=workspace, on_note=_tell)
    if as_json:
        print_json({"run": run})
    else:
        print(run)
    return 0


def _tell(note: str) -> None:
    print(f"casemate: {note}", file=sys.stderr)
