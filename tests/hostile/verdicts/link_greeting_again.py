"""Greet a second time."""

from __future__ import annotations

from typing import Any

from casemate.protocol.zmtp import HANDSHAKE

from hostile.inside import wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(HANDSHAKE)
    wait_for_death()
