"""The workload of `loops.py`, a small one: every loop is killed, nothing else is, nothing stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import loops


def test_loops_are_killed_and_nothing_of_them_stays(tmp_path: Path) -> None:
    it = asyncio.run(loops.measure(tmp_path / "state", tasks=16, loops=4, wall=2.0, parallel=2))
    assert it.verdicts == {"completed": 12, "timeout.wall": 4}
    assert it.after.processes <= it.before.processes
    assert it.after.engine_descriptors <= it.before.engine_descriptors
    assert it.after.own_descriptors <= it.before.own_descriptors
    # What one attempt might leave, times so many, would be far more; an allocator is not exact.
    assert it.after.engine_resident < it.before.engine_resident + (16 << 20)
