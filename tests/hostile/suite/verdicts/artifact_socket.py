"""Plant a socket where an artifact is to lie.

Source: what is taken back is a regular file, or nothing.
"""

from __future__ import annotations

import socket
from typing import Any

from ..inside import artifact_file, claim_artifact

KIND = "protocol"
WALLS = ("outbox",)


def attack(input: Any, ctx: Any) -> object:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(artifact_file()))
    claim_artifact("socket", 0)
