"""Write a short frame with a long header.

Source: fuzzing of libzmq: whatever a peer may send before, within and after a frame.
"""

from __future__ import annotations

from typing import Any

from ..inside import wait_for_death, write_link

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    write_link(b"\x02" + (5).to_bytes(8, "big") + b"hello")
    wait_for_death()
