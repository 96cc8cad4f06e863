"""`casemate validate` and `casemate schema`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ...protocol import reference
from ...protocol.errors import UsageError
from ..config import load_config
from ..core import graph
from ..pipeline import json_schema
from ..reading import PipelineError, Problem, key_path
from .loading import interruptible, load
from .view import printable

__all__ = ["print_schema", "validate_file"]


def validate_file(file: Path, *, as_json: bool, allow: list[str] | None, state: Path | None) -> int:
    """Exit code 2 with every problem: as JSON on stdout, else by a UsageError through `main`."""
    config = load_config(state=state, allow=allow or None)
    try:
        with interruptible():
            spec = load(file, config)
    except UsageError as error:
        if not as_json:
            raise
        print(json.dumps({"problems": list(_problems(file, error))}))
        return 2
    order = graph.build(spec).order
    if as_json:
        print(json.dumps({"name": spec.name, "tasks": list(order), "edges": len(spec.edges)}))
    else:
        print(f"{file}: {printable(spec.name)}, {len(order)} tasks, {len(spec.edges)} edges: sound")
    return 0


def _problems(file: Path, error: UsageError) -> Iterator[dict[str, object]]:
    """One of a file that could not even be read has neither line nor key."""
    found = error.problems if isinstance(error, PipelineError) else [Problem(str(error))]
    for each in found:
        key = key_path(each.path) or None
        yield {"file": str(file), "line": each.line, "key": key, "message": each.message}


def print_schema(*, of_events: bool) -> None:
    json.dump(reference.json_schema() if of_events else json_schema(), sys.stdout, indent=2)
    print()
