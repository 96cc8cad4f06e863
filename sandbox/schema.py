"""A value held against a JSON Schema, inside the sandbox: the schema's patterns and references may
be as hostile as the value.

A schema is whole: what it refers to lies in it, or is a draft of JSON Schema itself. Left alone,
the library would go and fetch the rest, from the net or out of any file that it can read.

JSON Schema 2020-12 where the schema does not name another draft. Bytes, datetimes and non-finite
floats are looked at in the JSON shapes that they travel in (`{"$bytes": ...}`).
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from ..protocol import codec
from ..protocol.errors import UsageError
from ..protocol.limits import REASONS

__all__ = ["faults"]

# A message quotes what it is about, which may be large.
_MESSAGE_LENGTH = 300


def faults(schema: Any, value: Any) -> list[str]:  # a schema is any JSON, a value the user's
    """What is wrong with the value, each with where; empty: nothing. UsageError where the schema
    itself is none."""
    draft = validator_for(schema, default=Draft202012Validator)
    try:
        draft.check_schema(schema)
    except SchemaError as error:
        raise UsageError(f"output_schema{_where(error)}: {error.message}") from None
    found = draft(schema, registry=Registry()).iter_errors(codec.to_jsonable(value))
    try:
        return [
            f"output{_where(error)}: {_short(error.message)}" for error in islice(found, REASONS)
        ]
    except Unresolvable as error:
        raise UsageError(f"output_schema: {error.ref} is not in it, and is not fetched") from None


def _where(error: Any) -> str:  # jsonschema has no types of its own
    return str(error.json_path).removeprefix("$")


def _short(message: str) -> str:
    if len(message) <= _MESSAGE_LENGTH:
        return message
    half = _MESSAGE_LENGTH // 2
    return f"{message[:half]} ... {message[-half:]}"
