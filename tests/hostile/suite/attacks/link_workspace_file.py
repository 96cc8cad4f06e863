"""Give a file of the workspace a second name, to write to it there.

Source: hard links that carry a file's content elsewhere (fs.protected_hardlinks).
"""

import tempfile
from pathlib import Path
from typing import Any

EXPECTED = "OSError"
WALLS = ("layer", "mount")


def attack(target: dict[str, Any]) -> object:
    link = Path(tempfile.mkdtemp(), "link")
    link.hardlink_to("/workspace/kept")
    return link.write_text("changed")


def outside(target: dict[str, Any]) -> object:
    link = Path(target["workspace"], "link")
    link.hardlink_to(Path(target["workspace"], "kept"))
    return link.write_text("changed")
