"""Put a link where the next sandbox will have a folder mounted.

Source: CVE-2026-87766, bubblewrap: what the setup makes followed a link out of the sandbox.
"""

from __future__ import annotations

from ..require import require
from ..stage import Stage

WALLS = ("plan", "mount")


def attack(stage: Stage) -> str:
    box, victim = stage.folder / "box", stage.folder / "victim"
    for folder in (box / "inner", victim):
        folder.mkdir(parents=True)
    (victim / "secret").write_text("theirs")
    stage.succeed("exec", "--rw", box, "--", "sh", "-c", plant(str(box), str(victim)))
    require((box / "inner").is_symlink(), "no link was planted: nothing is proved")
    done = stage.run("exec", "--rw", box, "--ro", box / "inner", "--", "cat", box / "inner/secret")
    require("theirs" not in done.stdout, "it led to what is not the task's")
    require(done.returncode == 125, f"exit code {done.returncode}: {done.stderr}")
    require([path.name for path in victim.iterdir()] == ["secret"], "it made something elsewhere")
    return "setup"


def plant(box: str, victim: str) -> str:
    return f"rmdir {box}/inner && ln -s {victim} {box}/inner"


def outside(stage: Stage) -> None:
    (stage.folder / "link").symlink_to(stage.workspace)
    (stage.folder / "link" / "made").mkdir()
