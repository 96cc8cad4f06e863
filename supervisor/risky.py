"""Changes that do more than they show once they are in a person's workspace.

A file that a tool runs without being asked (a git hook, a CI job, an editor's task), one that
changes what a person is shown (.gitattributes hides files from review), a new program, a symbolic
link out of the workspace. The list cannot be complete (a Makefile runs too, when it is asked to);
it names what acts, or is acted upon, outside of the code that is being worked on.

Names count as whole components, at any depth (a repository may lie below the workspace), without
regard to case, and as the file systems of other systems would read them: `.GIT`, `git~1` and
`.git.` are .git there.
"""

from __future__ import annotations

import re
from itertools import pairwise

from .beneath import Found

__all__ = ["is_git_folder", "is_refused_by_git", "leads_outside", "risk"]

# What runs or is obeyed by name alone; folders stand for everything in them.
_NAMES = {
    ".envrc": "direnv runs it",
    ".gitattributes": "decides what git shows and which filters it runs",
    ".gitconfig": "can make git run programs",
    ".gitmodules": "decides where git fetches from",
    ".pre-commit-config.yaml": "runs at every commit",
    ".pre-commit-hooks.yaml": "runs at every commit",
    "lefthook.yml": "runs at every commit",
    "lefthook.yaml": "runs at every commit",
    ".lefthook.yml": "runs at every commit",
    ".lefthook.yaml": "runs at every commit",
    ".husky": "runs at every commit",
    ".appveyor.yml": "a CI job",
    "appveyor.yml": "a CI job",
    ".buildkite": "a CI job",
    ".circleci": "a CI job",
    ".cirrus.yml": "a CI job",
    ".drone.yml": "a CI job",
    ".gitlab-ci.yml": "a CI job",
    ".gitlab-ci.yaml": "a CI job",
    ".gitlab": "a CI job",
    ".semaphore": "a CI job",
    ".teamcity": "a CI job",
    ".travis.yml": "a CI job",
    ".woodpecker": "a CI job",
    ".woodpecker.yml": "a CI job",
    ".woodpecker.yaml": "a CI job",
    "azure-pipelines.yml": "a CI job",
    "azure-pipelines.yaml": "a CI job",
    "bitbucket-pipelines.yml": "a CI job",
    "buildspec.yml": "a CI job",
    "cloudbuild.yaml": "a CI job",
    "jenkinsfile": "a CI job",
    "codeowners": "decides who must review",
    ".claude": "an agent obeys it",
    ".cursor": "an agent obeys it",
    ".mcp.json": "an agent runs it",
    ".devcontainer": "an editor runs it",
    ".idea": "an editor runs it",
    ".vscode": "an editor runs it",
    ".bash_profile": "a shell runs it",
    ".bashrc": "a shell runs it",
    ".profile": "a shell runs it",
    ".zprofile": "a shell runs it",
    ".zshenv": "a shell runs it",
    ".zshrc": "a shell runs it",
    ".ssh": "decides who may log in",
}
_PAIRS = {
    (".github", "workflows"): "a CI job",
    (".github", "actions"): "a CI job",
    (".github", "dependabot.yml"): "a CI job",
}

# Code points that HFS+ leaves out when it compares names.
_IGNORED = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]
)
# The short names NTFS would give .gitmodules; wider than git's own rule, which is one for links.
_SHORT_GITMODULES = re.compile(r"(gitmod|g?i?7?e?b?a?)~[0-9]+")


def _plain(component: str) -> str:
    """A name as the least particular file system reads it."""
    return component.translate(_IGNORED).partition(":")[0].rstrip(". ").lower()


def _components(path: str) -> list[str]:
    return [_plain(part) for part in path.replace("\\", "/").split("/")]


def is_git_folder(path: str) -> bool:
    """At or below a .git, by any of its names."""
    return any(part in (".git", "git~1") for part in _components(path))


def is_refused_by_git(path: str, kind: str) -> bool:
    """`git apply` gives up a whole patch over one such name."""
    if is_git_folder(path):
        return True
    return kind == "link" and any(
        part == ".gitmodules" or _SHORT_GITMODULES.fullmatch(part) for part in _components(path)
    )


def leads_outside(path: str, target: str) -> bool:
    """Whether a link at `path` may lead out of the tree. `a/../b` counts too: where `a` is a link
    itself, `..` is not what it seems."""
    if target.startswith("/"):
        return True
    depth = path.count("/")
    climbing = True
    for part in target.split("/"):
        if part == "..":
            depth -= 1
            if not climbing or depth < 0:
                return True
        elif part not in ("", "."):
            climbing = False
    return False


def risk(path: str, old: Found, new: Found) -> str | None:
    """Why this change wants a second look; None for most."""
    parts = _components(path)
    if is_git_folder(path):
        return "git obeys what is in there"
    for part in parts:
        if part in _NAMES:
            return _NAMES[part]
    for pair in pairwise(parts):
        if pair in _PAIRS:
            return _PAIRS[pair]
    if new.kind == "link":
        assert new.target is not None
        if leads_outside(path, new.target):
            return "a symbolic link that leads outside of the workspace"
        if is_git_folder(new.target):
            return "a symbolic link into .git"
    if new.kind == "file":
        if parts[-1] == "head" and old.kind != "file":
            return "can make its folder a git repository"
        if new.mode & 0o111 and not (old.kind == "file" and old.mode & 0o111):
            return "becomes executable" if old.kind == "file" else "a new executable"
    return None
