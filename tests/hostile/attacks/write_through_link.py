"""Write to the host through a symlink of the task's own."""

import tempfile
from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    link = Path(tempfile.mkdtemp(), "link")
    link.symlink_to(Path(target["secret"]).with_name("planted"))
    return link.write_text("planted")
