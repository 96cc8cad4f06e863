"""Send a command (PING) after the handshake."""

from __future__ import annotations

from typing import Any

from hostile.inside import frame, wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x04PING\x00\x00", flags=4))
    wait_for_death()
