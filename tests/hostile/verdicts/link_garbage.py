"""Write noise into the link."""

from __future__ import annotations

import os
from typing import Any

from hostile.inside import wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(os.urandom(1000).replace(b"\x00", b"\xff").replace(b"\x02", b"\xff"))
    wait_for_death()
