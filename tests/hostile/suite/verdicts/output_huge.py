"""Claim an output of 64 MiB, in a file with a hole.

Source: CWE-770.
"""

from __future__ import annotations

from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    with OUTPUT.open("wb") as file:
        file.truncate(1 << 29)
    claim_output(1 << 26)
