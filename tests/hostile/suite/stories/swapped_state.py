"""Put a link in the place of the supervisor's own folder before the next run.

Source: CWE-59 under a privileged writer.
"""

from __future__ import annotations

from ..require import require
from ..stage import Stage

WALLS = ("state",)


def attack(stage: Stage) -> str:
    pipeline = stage.pipeline(good="true")
    stage.succeed("run", pipeline)
    elsewhere = stage.folder / "elsewhere"
    elsewhere.mkdir()
    runs = stage.state / "runs"
    runs.rename(stage.state / "moved")
    runs.symlink_to(elsewhere)
    done = stage.run("run", pipeline)
    written = sorted(path.name for path in elsewhere.rglob("*"))
    require(not written, f"exit code {done.returncode}, written elsewhere: {written}")
    require(done.returncode != 0, "it ran, and nobody knows where")
    return "refused"
