"""A `.py` pipeline file is a program, and as untrusted as its tasks: it is run in a sandbox, as a
task like any other, and only the document it leaves is taken.

The run that does this has a state directory of its own, which is gone afterwards: it is nobody's
run but ours.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from ..protocol import codec
from ..protocol.errors import UsageError
from ..protocol.pipeline import PipelineSpec
from .api import Supervisor
from .config import Config
from .cursor import RunResult, collect
from .pipeline import compile_document, describing, load_pipeline
from .reading import Document, read_file

__all__ = ["read_document", "read_pipeline"]


def read_pipeline(file: Path, config: Config, workspace: Path | None = None) -> PipelineSpec:
    """Any pipeline file, by its suffix. Blocks; not for a thread with a running loop."""
    if file.suffix != ".py":
        return load_pipeline(file, config.allow, workspace=workspace)
    root = file.absolute().parent
    document = read_document(file, config)
    return compile_document(document, root=root, allow=config.allow, workspace=workspace)


def read_document(file: Path, config: Config) -> Document:
    """What a pipeline file says, not compiled yet. As `read_pipeline`."""
    if file.suffix != ".py":
        return read_file(file)
    result = asyncio.run(_describe(file, config))
    if not result.ok:
        error = result.errors.get("describe", {"kind": result.state, "message": ""})
        where = f"\n{error['traceback']}" if error.get("traceback") else ""
        raise UsageError(f"{file}: could not be loaded: {error['kind']}: {error['message']}{where}")
    return Document(result.outputs["describe"], str(file))


async def _describe(file: Path, config: Config) -> RunResult:
    spec, value = describing(file)
    with tempfile.TemporaryDirectory(prefix="casemate-describe-") as state:
        async with Supervisor(config=replace(config, state=Path(state))) as supervisor:
            return await collect(supervisor.execute(spec, codec.decode_value(value)))
