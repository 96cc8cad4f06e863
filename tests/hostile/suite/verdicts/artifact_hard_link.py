"""Hand over a file with two names.

Source: what a file holds changes by its other name; CWE-62.
"""

from __future__ import annotations

from typing import Any

from ..inside import artifact_file, claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    artifact_file().write_bytes(b"x")
    artifact_file().with_name("other").hardlink_to(artifact_file())
    claim_artifact("twice", 1)
