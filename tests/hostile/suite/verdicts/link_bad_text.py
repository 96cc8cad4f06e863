"""Log bytes that are no text.

Source: msgspec's documentation of what a decoder accepts; CWE-20.
"""

from __future__ import annotations

from typing import Any

from ..inside import frame, wait_for_death, write_link

KIND = "protocol"
WALLS = ("link", "values")


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x05\x82\xa4text\xa2\xff\xfe\xa6fields\x80"))
    wait_for_death()
