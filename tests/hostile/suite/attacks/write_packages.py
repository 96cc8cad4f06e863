"""Plant code among the packages that the supervisor imports.

Source: a poisoned site-packages is loaded by the next run.
"""

from pathlib import Path
from typing import Any

import msgspec

EXPECTED = "OSError"
WALLS = ("mount", "landlock")


def attack(target: dict[str, Any]) -> object:
    return Path(msgspec.__file__).with_name("planted.py").write_text("")


def outside(target: dict[str, Any]) -> object:
    return Path(target["workspace"], "planted.py").write_text("")
