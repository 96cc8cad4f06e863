"""The conversation over a link: who may say what, when. One table for both ends.

    HELLO → ACCEPT → RUN → (EMIT | LOG | PROGRESS | CANCEL)* → exactly one of RESULT, FAIL

A message changes the state of its sender when it is sent and that of its receiver when it is
received; between the two the ends disagree, and the table must bear that. Nearly everything is
said in turn or by one side alone. The exception is CANCEL: the supervisor says it while the guest
runs, and it may pass the guest's RESULT or FAIL on the way. The two ends see it so:

    supervisor   RUNNING  -CANCEL sent→      CANCELLING  -RESULT received→  OVER
    guest        RUNNING  -RESULT sent→      TOLD        -CANCEL received→  OVER

so a guest that has told its outcome still has to bear one CANCEL that it did not wait for
(`CROSSED`), and ignores it. A supervisor that has *received* the outcome knows better and may not
say CANCEL any more. CANCEL is said at most once; after it the guest may still emit, log and tell.

A move that is not in the table changes nothing and is refused: as `LocalViolation` when it is our
own (a bug), as `RemoteViolation` when it is the peer's (a verdict).
"""

from __future__ import annotations

from enum import StrEnum

from .errors import LocalViolation, RemoteViolation
from .messages import FROM_GUEST, FROM_SUPERVISOR, Kind

__all__ = ["CROSSED", "EDGES", "Conversation", "Role", "State"]


class Role(StrEnum):
    SUPERVISOR = "supervisor"
    GUEST = "guest"


class State(StrEnum):
    CONNECTED = "connected"
    GREETED = "greeted"
    ACCEPTED = "accepted"
    RUNNING = "running"
    CANCELLING = "cancelling"
    TOLD = "told"  # the outcome has been said; no CANCEL has been seen
    OVER = "over"


EDGES: dict[State, dict[Kind, State]] = {
    State.CONNECTED: {Kind.HELLO: State.GREETED},
    State.GREETED: {Kind.ACCEPT: State.ACCEPTED},
    State.ACCEPTED: {Kind.RUN: State.RUNNING},
    State.RUNNING: {
        Kind.EMIT: State.RUNNING,
        Kind.LOG: State.RUNNING,
        Kind.PROGRESS: State.RUNNING,
        Kind.CANCEL: State.CANCELLING,
        Kind.RESULT: State.TOLD,
        Kind.FAIL: State.TOLD,
    },
    State.CANCELLING: {
        Kind.EMIT: State.CANCELLING,
        Kind.LOG: State.CANCELLING,
        Kind.PROGRESS: State.CANCELLING,
        Kind.RESULT: State.OVER,
        Kind.FAIL: State.OVER,
    },
    State.TOLD: {},
    State.OVER: {},
}

# What may be received, though never sent, in a state: it was under way when the state was entered.
CROSSED: dict[State, dict[Kind, State]] = {State.TOLD: {Kind.CANCEL: State.OVER}}

_Table = dict[State, dict[Kind, State]]


def _only(kinds: set[Kind], *tables: _Table) -> _Table:
    return {
        state: {
            kind: after
            for table in tables
            for kind, after in table.get(state, {}).items()
            if kind in kinds
        }
        for state in State
    }


_GUEST_SAYS = set(FROM_GUEST)
_SUPERVISOR_SAYS = set(FROM_SUPERVISOR)
_SENDS: dict[Role, _Table] = {
    Role.SUPERVISOR: _only(_SUPERVISOR_SAYS, EDGES),
    Role.GUEST: _only(_GUEST_SAYS, EDGES),
}
_RECEIVES: dict[Role, _Table] = {
    Role.SUPERVISOR: _only(_GUEST_SAYS, EDGES, CROSSED),
    Role.GUEST: _only(_SUPERVISOR_SAYS, EDGES, CROSSED),
}


class Conversation:
    """Where one end of one link stands."""

    __slots__ = ("_receives", "_sends", "role", "state")

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.CONNECTED
        self._sends = _SENDS[role]
        self._receives = _RECEIVES[role]

    @property
    def is_over(self) -> bool:
        """The outcome has been said: this end says nothing more."""
        return self.state is State.TOLD or self.state is State.OVER

    def may_send(self, kind: Kind) -> bool:
        return kind in self._sends[self.state]

    def sent(self, kind: Kind) -> None:
        """This end is about to send a message of this kind."""
        after = self._sends[self.state].get(kind)
        if after is None:
            raise LocalViolation(f"{self.role.value} sent {kind.name} while {self.state.value}")
        self.state = after

    def received(self, kind: Kind) -> None:
        """The other end has sent a message of this kind."""
        after = self._receives[self.state].get(kind)
        if after is None:
            raise RemoteViolation(
                f"{self.role.value} was sent {kind.name} while {self.state.value}"
            )
        self.state = after
