"""Emit an item nested half a million deep.

Source: msgspec's documentation of what a decoder accepts; CWE-20.
"""

from __future__ import annotations

from typing import Any

from ..inside import frame, wait_for_death, write_link

KIND = "protocol"
WALLS = ("link", "values")


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x04\x81\xa4item" + b"\x91" * 500_000 + b"\xc0"))
    wait_for_death()
