"""Give a symlink to a file of the host as the output.

Source: results that are links are the classic trap; CWE-59.
"""

from __future__ import annotations

from typing import Any

from ..inside import OUTPUT, claim_output

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    OUTPUT.symlink_to("/etc/passwd")
    claim_output(100)
