"""The events as they are documented: JSON Schema for programs, a page for people.

Both are made from the structs of `events.py`, so they cannot say something else: the page's words
are the docstrings and comments there. `python -m casemate.protocol.reference` prints the page,
which is kept as protocol/EVENTS.md.
"""

from __future__ import annotations

import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from .events import DATA, ErrorKind, Layer, TaskError, Usage

__all__ = ["json_schema", "page"]

_HEAD = """\
# Events

Generated from `protocol/events.py`; `casemate schema --events` prints the same as JSON Schema. An
event as `--json` prints it, one a line:

| field | type | |
|---|---|---|
| `seq` | integer | counts the run's events from 1, without holes |
| `run` | string | its id |
| `task` | string or null | null: an event of the run itself |
| `attempt` | integer or null | which try of the task, from 1 |
| `kind` | string | below |
| `at` | string | RFC 3339, UTC: for people; order is by `seq` |
| `data` | object | by kind, below |

*any* is a task's own value; in JSON, bytes are `{"$bytes": base64}`, datetimes `{"$datetime": RFC
3339}`, and numbers that JSON lacks `{"$float": "nan"}`. Fields with a default may be missing in
journals of older versions. More fields and kinds may be added: skip what you do not know.
"""


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one event as `--json` prints it."""
    _, components = msgspec.json.schema_components(DATA.values(), ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:casemate:event",
        "title": "Event",
        "type": "object",
        "required": ["seq", "run", "task", "attempt", "kind", "at", "data"],
        "properties": {
            "seq": {"type": "integer", "minimum": 1},
            "run": {"type": "string"},
            "task": {"type": ["string", "null"]},
            "attempt": {"type": ["integer", "null"]},
            "kind": {"type": "string"},
            "at": {"type": "string", "format": "date-time"},
            "data": {"type": "object"},
        },
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}},
                "then": {"properties": {"data": {"$ref": f"#/$defs/{data.__name__}"}}},
            }
            for kind, data in DATA.items()
        ],
        "$defs": components,
    }


def page() -> str:
    """The Markdown of EVENTS.md."""
    schemas = json_schema()["$defs"]
    parts = [_HEAD]
    for kind, data in DATA.items():
        parts.append(_section(f"`{kind}`", data, schemas))
    parts.append("## What they hold\n")
    for part in (TaskError, Usage, Layer):
        parts.append(_section(part.__name__, part, schemas))
    kinds = ", ".join(f"`{kind}`" for kind in ErrorKind)
    parts.append(f"### ErrorKind\n\n{inspect.cleandoc(ErrorKind.__doc__ or '')}\n\n{kinds}\n")
    return "\n".join(parts)


def _section(title: str, data: type[Struct], schemas: dict[str, Any]) -> str:
    lines = [f"### {title}", ""]
    said = dict(_comments(data))
    # Words of its own, or of the one it is made from; never of msgspec's Struct.
    if words := next((each.__doc__ for each in _ours(data) if "__doc__" in vars(each)), None):
        lines += [" ".join(words.split()), ""]
    schema = schemas[data.__name__]
    if not schema["properties"]:
        return "\n".join([*lines, "No data.", ""])
    lines += ["| field | type | |", "|---|---|---|"]
    for name, each in schema["properties"].items():
        words = said.get(name, "")
        if name not in schema.get("required", ()):
            default = msgspec.json.encode(each.get("default")).decode()
            words += f"{'; ' if words else ''}default {default}"
        lines.append(f"| `{name}` | {_type(each)} | {words} |")
    return "\n".join([*lines, ""])


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any"))


def _ours(data: type[Struct]) -> list[type]:
    """The struct and those that it is made from."""
    return [each for each in data.__mro__ if each not in (Struct, *Struct.__mro__)]


def _comments(data: type[Struct]) -> Iterator[tuple[str, str]]:
    """(field, the comment behind it)"""
    for base in _ours(data):
        source = inspect.getsource(base)
        names: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME and token.start[1] == 4:
                names[token.start[0]] = token.string
            elif token.type == tokenize.COMMENT and token.start[0] in names:
                yield names[token.start[0]], token.string.removeprefix("#").strip()


if __name__ == "__main__":
    print(page(), end="")
