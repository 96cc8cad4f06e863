"""`casemate submit`: have the supervisor of `casemate serve` run a pipeline.

The file is read and checked here first, so that what is wrong with it is said where it was written.
What the supervisor's own configuration does not allow is refused by it.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Raw

from ...protocol import codec
from ..bundle import pack
from ..config import load_config
from ..control import Client
from ..describe import read_document
from ..pipeline import compile_document
from ..state import StateDirectory
from .loading import interruptible
from .run import input_value
from .show import print_json

__all__ = ["submit_file"]


def submit_file(
    file: Path,
    *,
    input: str | None,
    workspace: Path | None,
    as_json: bool,
    allow: list[str] | None,
    state: Path | None,
) -> int:
    config = load_config(state=state, allow=allow or None)
    value = Raw(codec.encode_value(input_value(input), name="input"))
    with interruptible():
        document = read_document(file, config)
        root = file.absolute().parent
        spec = compile_document(document, root=root, allow=config.allow, workspace=workspace)
        bundle = pack(document, spec, value)
        with Client(StateDirectory.open_existing(config.state)) as client:
            run = client.submit(bundle)
    if as_json:
        print_json({"run": run})
    else:
        print(run)
    return 0
