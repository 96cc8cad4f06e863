"""The conversation's table, from both ends."""

from __future__ import annotations

import re
from collections import deque
from typing import Literal

import pytest
from casemate.protocol.errors import LocalViolation, RemoteViolation
from casemate.protocol.link import CROSSED, EDGES, SAVING, Conversation, Role, State
from casemate.protocol.messages import FROM_GUEST, FROM_SUPERVISOR, Kind

Way = Literal["sent", "received"]
Edge = tuple[State, Kind, State]
Where = tuple[State, bool]
# Where the supervisor is, where the guest, what is on its way to the guest and to the supervisor.
Situation = tuple[Where, Where, tuple[Kind, ...], tuple[Kind, ...]]

# One letter a kind, to write languages as regular expressions.
LETTERS = {
    Kind.HELLO: "h",
    Kind.ACCEPT: "a",
    Kind.RUN: "r",
    Kind.EMIT: "e",
    Kind.LOG: "l",
    Kind.PROGRESS: "p",
    Kind.CANCEL: "c",
    Kind.RESULT: "R",
    Kind.FAIL: "F",
    Kind.SAVE: "s",
    Kind.SAVED: "S",
    Kind.ITEM: "i",
    Kind.END: "n",
    Kind.CREDIT: "k",
    Kind.DEADLINE: "d",
    Kind.ARTIFACT: "f",
}
KINDS = {letter: kind for kind, letter in LETTERS.items()}

# What each end may see, in whole: the supervisor never says CANCEL after the outcome, the guest
# may hear it then.
COMPLETE = {
    Role.SUPERVISOR: re.compile("har[elpksSfind]*c?[elpksSfind]*[RF]"),
    Role.GUEST: re.compile("har[elpksSfind]*(c[elpksSfind]*[RF][Sind]*|[RF][Sind]*(c[Sind]*)?)"),
}
# And, of these two letters alone, at either end.
SAVES = re.compile("(sS)*s?")


def is_complete(role: Role, said: str) -> bool:
    saves = re.sub("[^sS]", "", said)
    return bool(COMPLETE[role].fullmatch(said) and SAVES.fullmatch(saves))


STORIES = {
    "a result": "harelpR",
    "a failure": "harF",
    "a result after a cancel": "harecelpR",
    "a failure after a cancel": "harcF",
    "two saves": "harsSelsSR",
    "a stream": "harikinkdelR",
    "all that a cancel leaves": "harfscSsinkdelpfSF",
}
# What the guest alone may see.
CROSSINGS = ["harRc", "harsRSindc", "harsRcSind", "harsFcS"]


def way(role: Role, kind: Kind) -> Way:
    return "sent" if (kind in FROM_GUEST) is (role is Role.GUEST) else "received"


def move(conversation: Conversation, kind: Kind) -> Edge:
    before = conversation.state
    getattr(conversation, way(conversation.role, kind))(kind)
    return before, kind, conversation.state


def after(role: Role, said: str) -> Conversation:
    conversation = Conversation(role)
    for letter in said:
        move(conversation, KINDS[letter])
    return conversation


def refuses(conversation: Conversation, how: Way, kind: Kind) -> bool:
    before = conversation.state
    fault = LocalViolation if how == "sent" else RemoteViolation
    try:
        getattr(conversation, how)(kind)
    except fault:
        assert conversation.state is before
        return True
    return False


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_both_ends_follow_a_good_story(role: Role, story: str) -> None:
    for said in range(len(story)):
        assert not after(role, story[:said]).is_over
    assert after(role, story).is_over


def test_the_stories_take_every_edge() -> None:
    taken: set[Edge] = set()
    for role in Role:
        for story in [*STORIES.values(), *(CROSSINGS if role is Role.GUEST else [])]:
            conversation = Conversation(role)
            taken |= {move(conversation, KINDS[letter]) for letter in story}
    table = {
        (state, kind, after)
        for edges in (EDGES, CROSSED)
        for state, moves in edges.items()
        for kind, after in moves.items()
    }
    assert taken == table
    assert set(EDGES) == set(State)


@pytest.mark.parametrize("role", Role)
def test_exactly_the_prefixes_of_the_language_are_spoken(role: Role) -> None:
    """Every sequence of up to seven kinds, against regular expressions."""
    endings = ["", "R", "rR", "arR", "harR"]  # one of them completes any prefix

    def is_prefix(said: str) -> bool:
        return any(is_complete(role, said + ending) for ending in endings)

    reached = [""]
    for said in reached:
        assert after(role, said).is_over == is_complete(role, said)
        if len(said) == 7:
            continue
        for letter, kind in KINDS.items():
            spoken = not refuses(after(role, said), way(role, kind), kind)
            assert spoken == is_prefix(said + letter), said + letter
            if spoken:
                reached.append(said + letter)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("kind", Kind)
def test_nobody_speaks_for_the_other_end(role: Role, kind: Kind) -> None:
    wrong: Way = "received" if way(role, kind) == "sent" else "sent"
    for story in ["", *STORIES.values()]:
        for said in range(len(story) + 1):
            assert refuses(after(role, story[:said]), wrong, kind)


def test_may_send_tells_what_sent_would_do() -> None:
    for role in Role:
        for story in STORIES.values():
            for said in range(len(story) + 1):
                for kind in Kind:
                    conversation = after(role, story[:said])
                    allowed = conversation.may_send(kind)
                    assert allowed != refuses(conversation, "sent", kind)


# Of kinds that the tables treat alike one is tried below.
ALIKE = [
    {Kind.EMIT, Kind.LOG, Kind.PROGRESS, Kind.CREDIT},
    {Kind.ITEM, Kind.END, Kind.DEADLINE},
    {Kind.RESULT, Kind.FAIL},
]


def test_some_kinds_are_alike() -> None:
    for kinds in ALIKE:
        for table in (EDGES, CROSSED):
            for moves in table.values():
                assert len({moves.get(kind) for kind in kinds}) == 1
        assert not any(kinds & set(moves) for moves in SAVING.values())


def at(end: Conversation) -> Where:
    return end.state, end.is_saving


def test_two_honest_ends_never_offend_each_other() -> None:
    """Every interleaving of what either may say and what is still on its way (three deep)."""
    spoken = set(Kind) - {kind for kinds in ALIKE for kind in sorted(kinds)[1:]}
    start: Situation = ((State.CONNECTED, False), (State.CONNECTED, False), (), ())
    seen = {start}
    todo = deque([start])
    crossed = 0
    while todo:
        supervisor_at, guest_at, to_guest, to_supervisor = todo.popleft()

        def ends(
            states: tuple[Where, Where] = (supervisor_at, guest_at),
        ) -> tuple[Conversation, Conversation]:
            supervisor, guest = Conversation(Role.SUPERVISOR), Conversation(Role.GUEST)
            (supervisor.state, supervisor.is_saving), (guest.state, guest.is_saving) = states
            return supervisor, guest

        found: list[Situation] = []
        for kind in spoken & set(FROM_SUPERVISOR):
            supervisor, guest = ends()
            if len(to_guest) < 3 and supervisor.may_send(kind):
                supervisor.sent(kind)
                found.append((at(supervisor), guest_at, (*to_guest, kind), to_supervisor))
        for kind in spoken & set(FROM_GUEST):
            supervisor, guest = ends()
            if len(to_supervisor) < 3 and guest.may_send(kind):
                guest.sent(kind)
                found.append((supervisor_at, at(guest), to_guest, (*to_supervisor, kind)))
        if to_guest:
            supervisor, guest = ends()
            crossed += guest.state is State.TOLD
            guest.received(to_guest[0])
            found.append((supervisor_at, at(guest), to_guest[1:], to_supervisor))
        if to_supervisor:
            supervisor, guest = ends()
            supervisor.received(to_supervisor[0])
            found.append((at(supervisor), guest_at, to_guest, to_supervisor[1:]))
        if not found:
            # Nothing on its way and nothing to say: both know the outcome, and agree.
            assert supervisor_at == guest_at
            assert supervisor_at[0] in (State.TOLD, State.OVER)
        todo += set(found) - seen
        seen |= set(found)
    assert crossed


def test_a_refusal_says_who_did_what_when() -> None:
    with pytest.raises(LocalViolation, match="supervisor sent RUN while connected"):
        Conversation(Role.SUPERVISOR).sent(Kind.RUN)
    with pytest.raises(RemoteViolation, match="supervisor was sent RESULT while connected"):
        Conversation(Role.SUPERVISOR).received(Kind.RESULT)
    with pytest.raises(RemoteViolation, match="was sent SAVE while running, saving"):
        after(Role.SUPERVISOR, "harss")
    with pytest.raises(LocalViolation, match="supervisor sent SAVED while running"):
        after(Role.SUPERVISOR, "harsSS")
