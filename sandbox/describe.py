"""A `.py` pipeline file becomes data: run inside a sandbox, as a task like any other.

The file is untrusted, so the command line does not import it: it runs `describe` as a one-task
attempt and takes only the returned document. The builder's `Pipeline` is known by its name and
its `document` method; importing it would turn the arrow between the layers.
"""

from __future__ import annotations

from typing import Any

from ..protocol.errors import UsageError
from .loader import load_file

__all__ = ["describe"]


def describe(input: dict[str, str]) -> Any:  # Any: the document is the builder's, checked outside
    """`{"file": name below the sources root}` → `document()` of the one Pipeline it leaves.
    A `sources` key moves that root, for tests."""
    file = input["file"]
    module = load_file(input.get("sources", "/sources"), file)
    found: dict[int, tuple[str, Any]] = {}
    for name, value in vars(module).items():
        if _is_pipeline(value):
            found.setdefault(id(value), (name, value))  # one pipeline under two names is one
    if not found:
        raise UsageError(
            f"{file}: leaves no Pipeline at module level; expected one, "
            'as in `pipeline = Pipeline("name")`'
        )
    if len(found) > 1:
        names = ", ".join(sorted(name for name, _ in found.values()))
        raise UsageError(f"{file}: leaves {len(found)} Pipelines ({names}); expected one")
    [(_, pipeline)] = found.values()
    return pipeline.document()


def _is_pipeline(value: object) -> bool:
    kind = type(value)
    return callable(getattr(kind, "document", None)) and any(
        base.__name__ == "Pipeline" for base in kind.__mro__
    )
