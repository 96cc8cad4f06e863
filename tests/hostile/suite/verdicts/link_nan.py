"""Tell of a progress that is not a number.

Source: msgspec's documentation of what a decoder accepts; CWE-20.
"""

from __future__ import annotations

from typing import Any

from ..inside import frame, wait_for_death, write_link

KIND = "protocol"
WALLS = ("link", "values")


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x06\x82\xa4done\xcb\x7f\xf8" + bytes(6) + b"\xa5total\xc0"))
    wait_for_death()
