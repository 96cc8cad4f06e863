"""Send what only the supervisor may say (RUN).

Source: a peer that speaks out of turn (h11's tables).
"""

from __future__ import annotations

from typing import Any

from ..inside import frame, wait_for_death, write_link

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x03\x80"))
    wait_for_death()
