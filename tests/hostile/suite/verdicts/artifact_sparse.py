"""Hand over a hole of half a gigabyte as a small artifact.

Source: CWE-400.
"""

from __future__ import annotations

from typing import Any

from ..inside import artifact_file, claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    with artifact_file().open("wb") as file:
        file.truncate(512 << 20)
    claim_artifact("sparse", 1)
