"""Claim an error that is never the task's fault.

Source: a peer that speaks out of turn (h11's tables).
"""

from __future__ import annotations

from typing import Any

from ..inside import frame, wait_for_death, write_link

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x09\x82\xa4kind\xa5setup\xa7message\xa1x"))
    wait_for_death()
