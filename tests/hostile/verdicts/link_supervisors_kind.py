"""Send what only the supervisor may say (RUN)."""

from __future__ import annotations

from typing import Any

from hostile.inside import frame, wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x03\x80"))
    wait_for_death()
