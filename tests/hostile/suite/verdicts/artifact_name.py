"""Name an artifact so that whoever writes it to a folder would leave that.

Source: Zip Slip; CWE-22.
"""

from __future__ import annotations

from typing import Any

import msgspec
from casemate.protocol.messages import Artifact, Kind

from ..inside import artifact_file, frame, wait_for_death, write_link

KIND = "protocol"
WALLS = ("link",)


def attack(input: Any, ctx: Any) -> object:
    artifact_file().touch()
    told = Artifact(name="../../etc/cron.d/mine", size=0, digest=bytes(32))
    write_link(frame(bytes((Kind.ARTIFACT,)) + msgspec.msgpack.encode(told)))
    wait_for_death()
