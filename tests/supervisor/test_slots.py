"""Reserved uids: no two live sandboxes of a host share one, whoever their supervisors are."""

from __future__ import annotations

from pathlib import Path

import pytest
from casemate.protocol.errors import SetupRefused
from casemate.supervisor.slots import BLOCK, Slots


def test_a_slot_is_taken_once_until_it_is_given_back(tmp_path: Path) -> None:
    slots = Slots(shared=True, folder=tmp_path / "leases")
    taken = [slots.take() for _ in range(3)]
    assert len(set(taken)) == 3
    slots.give_back(taken[1])
    assert slots.take() == taken[1]
    slots.close()


def test_two_supervisors_never_hand_out_the_same_uid(tmp_path: Path) -> None:
    one, two = (Slots(shared=True, folder=tmp_path) for _ in range(2))
    first = {one.take() for _ in range(2 * BLOCK)}
    second = {two.take() for _ in range(BLOCK)}
    assert not first & second
    one.close()
    three = Slots(shared=True, folder=tmp_path)
    assert three.take() in first, "what a dead supervisor held is free again"
    two.close()
    three.close()


def test_an_ordinary_users_slots_cost_nothing_and_never_run_out() -> None:
    slots = Slots(shared=False)
    assert [slots.take() for _ in range(3)] == [0, 1, 2]


def test_where_no_lease_can_be_had_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupRefused, match="cannot be leased"):
        Slots(shared=True, folder=tmp_path / "file").take()
