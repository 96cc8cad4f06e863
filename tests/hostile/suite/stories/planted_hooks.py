"""Plant a git hook, a CI job and what a shell obeys, for the operator to apply.

Source: CVE-2024-32002, git; agents that write .envrc and .git/hooks of the checkout they work on.
"""

from __future__ import annotations

import json

from ..require import require
from ..stage import Stage

WALLS = ("apply", "layer")

PLANTED = (".envrc", ".git/hooks/pre-commit", ".github/workflows/ci.yml")


def attack(stage: Stage) -> str:
    (stage.workspace / ".git").mkdir()
    folders = "mkdir -p .git/hooks .github/workflows"
    files = "; ".join(f"echo planted > {path}" for path in PLANTED)
    stage.succeed("run", stage.pipeline(plant=f"{folders}; {files}; echo good > notes"))
    shown = json.loads(stage.succeed("diff", "last", "--json"))
    marked = {path["path"] for path in shown["paths"] if "risky" in path}
    require(marked >= set(PLANTED), f"diff marks only {sorted(marked)}")
    refused = stage.run("apply", "last")
    require(refused.returncode == 2, f"apply: {refused.returncode}: {refused.stderr}")
    left = [str(path) for path in stage.workspace.rglob("*") if path.is_file()]
    require(left == [], f"applied: {left}")
    stage.succeed("apply", "last", *(word for path in PLANTED for word in ("--allow", path)),
                  "--allow", ".git/", "--allow", ".github/")  # fmt: skip
    require((stage.workspace / "notes").read_text() == "good\n", "what was named is not applied")
    return "refused"


def outside(stage: Stage) -> None:
    hooks = stage.workspace / ".git" / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "pre-commit").write_text("planted")
