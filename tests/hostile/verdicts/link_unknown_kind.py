"""Send a message of a kind that does not exist."""

from __future__ import annotations

from typing import Any

from hostile.inside import frame, wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\xff\x80"))
    wait_for_death()
