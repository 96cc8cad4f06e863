"""`casemate validate` and `casemate schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..config import load_config
from ..core import graph
from ..pipeline import json_schema
from .loading import interruptible, load
from .view import printable

__all__ = ["print_schema", "validate_file"]


def validate_file(file: Path, *, as_json: bool, state: Path | None) -> int:
    """A UsageError with every problem leaves through `main`, as exit code 2."""
    with interruptible():
        spec = load(file, load_config(state=state))
    order = graph.build(spec).order
    if as_json:
        print(json.dumps({"name": spec.name, "tasks": list(order), "edges": len(spec.edges)}))
    else:
        print(f"{file}: {printable(spec.name)}, {len(order)} tasks, {len(spec.edges)} edges: sound")
    return 0


def print_schema() -> None:
    json.dump(json_schema(), sys.stdout, indent=2)
    print()
