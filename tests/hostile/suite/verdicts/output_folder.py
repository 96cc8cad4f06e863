"""Give a folder as the output.

Source: what is taken back is a regular file, or nothing.
"""

from __future__ import annotations

from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.mkdir()
    claim_output(4096)
