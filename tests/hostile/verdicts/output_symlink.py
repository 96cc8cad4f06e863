"""Give a symlink to a file of the host as the output."""

from __future__ import annotations

from typing import Any

from hostile.inside import OUTPUT, claim_output

KIND = "protocol"


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.symlink_to("/etc/passwd")
    claim_output(100)
