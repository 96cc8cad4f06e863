"""Emit what only looks like a value: the readers must bear it.

Source: msgspec's documentation of what a decoder accepts; CWE-20.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..inside import frame, wait_for_death, write_link
from ..require import require

if TYPE_CHECKING:
    from ..seen import Seen

KIND = "completed"
WALLS = ("link", "values")


def attack(input: Any, ctx: Any) -> object:
    # A map whose key is an array, an extension type, and text that is not UTF-8.
    for item in (b"\x81\x91\x01\x02", b"\xd4\x63\x00", b"\xa2\xff\xfe"):
        write_link(frame(b"\x04\x81\xa4item" + item))
    write_link(frame(b"\x08\x81\xa6output\xa4done"))
    wait_for_death()


def check(seen: Seen) -> None:
    require(len(seen.data("task.emitted")) == 3, "items are missing")
    require(seen.output == "done", seen.output)
