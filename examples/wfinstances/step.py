"""One step of a recorded workflow: it sleeps as long as the step once took, scaled down."""

from __future__ import annotations

import time
from typing import Any


def step(input: Any, ctx: Any) -> float:
    time.sleep(ctx.spec["seconds"])
    return float(ctx.spec["seconds"])
