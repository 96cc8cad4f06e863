"""Begin a frame and send it a byte at a time.

Source: Slowloris.
"""

from __future__ import annotations

import time
from typing import Any

from ..inside import write_link

KIND = "timeout.idle"
WALLS = ("clocks", "link")
TIMEOUTS = {"idle": "500ms", "wall": "60s"}


def attack(input: Any, ctx: Any) -> object:
    write_link(b"\x02" + (1 << 20).to_bytes(8, "big"))
    while True:
        write_link(b"x")
        time.sleep(0.02)
