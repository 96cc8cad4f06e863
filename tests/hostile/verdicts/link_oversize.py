"""Announce a frame of an exabyte."""

from __future__ import annotations

from typing import Any

from hostile.inside import wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(b"\x02" + (1 << 60).to_bytes(8, "big"))
    wait_for_death()
