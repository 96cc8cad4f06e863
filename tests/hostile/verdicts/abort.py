"""Abort."""

from __future__ import annotations

import os
from typing import Any

KIND = "crash"


def attack(input: Any, ctx: Any) -> object:
    os.abort()
