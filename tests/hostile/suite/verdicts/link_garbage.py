"""Write noise into the link.

Source: fuzzing of libzmq: whatever a peer may send before, within and after a frame.
"""

from __future__ import annotations

import os
from typing import Any

from ..inside import wait_for_death, write_link

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    write_link(os.urandom(1000).replace(b"\x00", b"\xff").replace(b"\x02", b"\xff"))
    wait_for_death()
