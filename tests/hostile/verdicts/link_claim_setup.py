"""Claim an error that is never the task's fault."""

from __future__ import annotations

from typing import Any

from hostile.inside import frame, wait_for_death, write_link

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    write_link(frame(b"\x09\x82\xa4kind\xa5setup\xa7message\xa1x"))
    wait_for_death()
