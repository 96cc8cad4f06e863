"""Send a message of several frames, without end."""

from __future__ import annotations

from typing import Any

from hostile.inside import frame, wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x05", flags=1) * 1000)
    wait_for_death()
