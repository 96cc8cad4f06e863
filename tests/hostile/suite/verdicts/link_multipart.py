"""Send a message of several frames, without end.

Source: fuzzing of libzmq: whatever a peer may send before, within and after a frame.
"""

from __future__ import annotations

from typing import Any

from ..inside import frame, wait_for_death, write_link

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x05", flags=1) * 1000)
    wait_for_death()
