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

__all__ = ["read_pipeline"]


def read_pipeline(file: Path, config: Config, workspace: Path | None = None) -> PipelineSpec:
    """Any pipeline file, by its suffix. Blocks; not for a thread with a running loop."""
    if file.suffix != ".py":
        return load_pipeline(file, config.allow, workspace=workspace)
    result = asyncio.run(_describe(file, config))
    if not result.ok:
        error = result.errors.get("describe", {"kind": result.state, "message": ""})
        where = f"\n{error['traceback']}" if error.get("traceback") else ""
        raise UsageError(f"{file}: could not be loaded: {error['kind']}: {error['message']}{where}")
    return compile_document(
        result.outputs["describe"],
        root=file.absolute().parent,
        allow=config.allow,
        workspace=workspace,
        source=str(file),
    )


async def _describe(file: Path, config: Config) -> RunResult:
    spec, value = describing(file)
    with tempfile.TemporaryDirectory(prefix="casemate-describe-") as state:
        async with Supervisor(config=replace(config, state=Path(state))) as supervisor:
            return await collect(supervisor.execute(spec, codec.decode_value(value)))
