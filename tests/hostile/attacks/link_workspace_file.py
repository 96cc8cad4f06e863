"""Give a file of the workspace a second name, to write to it there."""

import tempfile
from pathlib import Path
from typing import Any

EXPECTED = "OSError"
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    link = Path(tempfile.mkdtemp(), "link")
    link.hardlink_to("/workspace/kept")
    return link.write_text("changed")
