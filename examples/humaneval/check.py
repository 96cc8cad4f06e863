"""The one task of this example: run an untrusted program against its tests."""

from __future__ import annotations

from typing import Any


def check(input: Any, ctx: Any) -> str:
    namespace: dict[str, Any] = {"__name__": "candidate"}
    exec(ctx.spec["program"], namespace)
    namespace["check"](namespace[ctx.spec["entry_point"]])
    return "pass"
