"""Give a folder as the output."""

from __future__ import annotations

from typing import Any

from hostile.inside import OUTPUT, claim_output

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.mkdir()
    claim_output(4096)
