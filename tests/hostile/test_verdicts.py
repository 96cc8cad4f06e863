"""Every task of `verdicts/` receives its verdict, leaves nothing alive, and disturbs nobody."""

from __future__ import annotations

import pytest
from casemate.protocol.limits import MIB
from fakes import wait_until

from hostile.arena import AFTER, Arena, Seen, attacks_in

ATTACKS = attacks_in("verdicts")

# The engine at rest has 30 MiB; what waits for the journal (32 MiB, in two forms) and what the
# allocator keeps come on top: 65 MiB were seen. One flood alone says 192 MiB.
ENGINE_MEMORY = 160 * MIB


@pytest.fixture(scope="module")
def seen(arena: Arena) -> dict[str, Seen]:
    pipeline = arena.pipeline("verdicts")
    for name, attack in ATTACKS.items():
        arena.add(pipeline, "verdicts", name, attack)
    return arena.run(pipeline)


@pytest.mark.parametrize("name", ATTACKS)
def test_it_receives_its_verdict(seen: dict[str, Seen], name: str) -> None:
    attack, module = seen[name], ATTACKS[name]
    expected = module.KIND
    if attack.is_sampled:
        expected = getattr(module, "SAMPLED", expected)
    assert attack.kind == expected, attack.events[-1]
    attack.check_ended()
    if hasattr(module, "check"):
        module.check(attack)
    after = seen[name + AFTER]
    assert after.output == {"sum": 190}
    assert after.items == list(range(20))
    assert after.logged("stdout") == "working\n"


def test_an_output_that_is_no_value_hides_no_other(arena: Arena) -> None:
    pipeline = arena.pipeline("no-value")
    arena.add(pipeline, "verdicts", "output_of_no_type", ATTACKS["output_of_no_type"])
    result = arena.result(pipeline)
    assert result.ok
    assert result.outputs["output_of_no_type" + AFTER] == {"sum": 190}


def test_nothing_is_left_and_the_engine_stayed_small(arena: Arena, seen: dict[str, Seen]) -> None:
    assert arena.sandboxes() == []
    # The journal's writer closes a run's file after its last event has been seen.
    wait_until(lambda: arena.engine.num_fds() <= arena.descriptors)
    assert arena.peak_memory() < ENGINE_MEMORY
