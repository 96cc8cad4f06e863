"""Send a message whose map is cut off."""

from __future__ import annotations

from typing import Any

from hostile.inside import frame, wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x04\x81\xa4item"))
    wait_for_death()
