"""Exit as if all were well."""

from __future__ import annotations

import os
from typing import Any

KIND = "crash"


def attack(input: Any, ctx: Any) -> object:
    os._exit(0)
