"""Plant code among the packages that the supervisor imports.

Source: a poisoned site-packages is loaded by the next run.
"""

from pathlib import Path
from typing import Any

import msgspec

EXPECTED = "OSError"
WALLS = ("mount", "landlock")
RUNS_OUTSIDE = False


def attack(target: dict[str, Any]) -> object:
    return Path(msgspec.__file__).with_name("planted.py").write_text("")
