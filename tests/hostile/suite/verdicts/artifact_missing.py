"""Tell of an artifact that is not there.

Source: our own.
"""

from __future__ import annotations

from typing import Any

from ..inside import claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    claim_artifact("missing", 1)
