"""Plant a folder where an artifact is to lie.

Source: what is taken back is a regular file, or nothing.
"""

from __future__ import annotations

from typing import Any

from ..inside import artifact_file, claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    artifact_file().mkdir()
    claim_artifact("folder", 0)
