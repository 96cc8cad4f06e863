"""Put a link to somebody else's folder in the workspace's place before the next run.

Source: CVE-2021-30465, runc; a checkout that a build tool replaces by a link.
"""

from __future__ import annotations

from ..require import require
from ..stage import Stage

WALLS = ("plan", "mount")


def attack(stage: Stage) -> str:
    pipeline = stage.pipeline(read="cat secret")
    (stage.workspace / "secret").write_text("ours")
    stage.succeed("run", pipeline)
    elsewhere = stage.folder.parent / f"{stage.folder.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("theirs")
    stage.workspace.rename(stage.folder / "moved")
    stage.workspace.symlink_to(elsewhere)
    done = stage.run("run", pipeline)
    require(done.returncode == 2, f"exit code {done.returncode}: {done.stdout}{done.stderr}")
    require("theirs" not in done.stdout + done.stderr, "it read what lies elsewhere")
    return "refused"


def outside(stage: Stage) -> None:
    (stage.folder / "link").symlink_to(stage.workspace)
    (stage.folder / "link" / "secret").write_text("theirs")
