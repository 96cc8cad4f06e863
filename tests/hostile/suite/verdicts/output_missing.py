"""Claim an output that is not there.

Source: our own.
"""

from __future__ import annotations

from typing import Any

from ..inside import claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    claim_output(100)
