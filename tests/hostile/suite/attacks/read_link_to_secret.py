"""Read the secret through a symlink of the task's own.

Source: CWE-61; CVE-2018-15664, where docker cp followed one.
"""

import tempfile
from pathlib import Path
from typing import Any

EXPECTED = "FileNotFoundError"
WALLS = ("mount",)
RUNS_OUTSIDE = True


def attack(target: dict[str, Any]) -> object:
    link = Path(tempfile.mkdtemp(), "link")
    link.symlink_to(target["secret"])
    return link.read_text()
