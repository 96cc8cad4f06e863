"""Claim an output that is not there."""

from __future__ import annotations

from typing import Any

from hostile.inside import claim_output

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    claim_output(100)
