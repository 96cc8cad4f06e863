"""Every attack of `attacks/` succeeds outside, fails inside as expected, and disturbs nobody.

One that expects nothing may do as it likes, for what it changes is a layer of its own.
"""

from __future__ import annotations

import shutil

import pytest

from hostile.arena import AFTER, Arena, Seen, attacks_in, files_in, run_outside

ATTACKS = attacks_in("attacks")


@pytest.fixture(scope="module")
def seen(arena: Arena) -> dict[str, Seen]:
    pipeline = arena.pipeline("attacks")
    for name, attack in ATTACKS.items():
        arena.add(pipeline, "attacks", name, attack)
    return arena.run(pipeline)


@pytest.mark.parametrize("name", [name for name, a in ATTACKS.items() if a.RUNS_OUTSIDE])
def test_it_succeeds_outside(arena: Arena, name: str) -> None:
    original = arena.target.workspace
    workspace = shutil.copytree(original, original.with_name(f"workspace-{name}"))
    done = run_outside("attacks", name, arena.target.input | {"workspace": str(workspace)})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ATTACKS)
def test_it_fails_inside(seen: dict[str, Seen], name: str) -> None:
    attack, expected = seen[name], ATTACKS[name].EXPECTED
    if expected is None:
        assert attack.events[-1].data["layer"]["files"] == 1, attack.events[-1]
    else:
        assert attack.kind == "error", attack.events[-1]
        assert attack.error["type"] == expected, attack.error
    attack.check_ended()
    assert seen[name + AFTER].output == {"sum": 190}


def test_the_host_is_as_it_was(arena: Arena, seen: dict[str, Seen]) -> None:
    assert files_in(arena.target.workspace) == arena.target.files
    assert arena.sandboxes() == []
