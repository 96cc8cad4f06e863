"""Plant a symbolic link where an artifact is to lie.

Source: result files that are links are the classic trap (SandboxFusion); CWE-59.
"""

from __future__ import annotations

from typing import Any

from ..inside import artifact_file, claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    artifact_file().symlink_to("/etc/passwd")
    claim_artifact("passwd", 100)
