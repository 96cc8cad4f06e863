"""The conversation over a link: who may say what, when. One table for both ends.

    HELLO → ACCEPT → RUN → (EMIT | LOG | PROGRESS | SAVE | ARTIFACT | CREDIT
                            | SAVED | ITEM | END | DEADLINE | CANCEL)* → exactly one of RESULT, FAIL

A message changes the state of its sender when it is sent and that of its receiver when it is
received; between the two the ends disagree, and the table must bear that. What matters is what the
supervisor says while the guest runs: it may pass the guest's RESULT or FAIL on the way. With
CANCEL, which is said at most once, the two ends see it so:

    supervisor   RUNNING  -CANCEL sent→      CANCELLING  -RESULT received→  OVER
    guest        RUNNING  -RESULT sent→      TOLD        -CANCEL received→  OVER

so a guest that has told its outcome still has to bear what it did not wait for (`CROSSED`): one
CANCEL, and any SAVED, ITEM, END or DEADLINE before and after it. It ignores them. A supervisor that
has *received* the outcome knows better and says nothing any more, not even SAVED for a SAVE that
came before. After CANCEL everything goes on as before: the task may use its grace to save.

Beside this runs a second, smaller table (`SAVING`): one SAVE at a time, and for each at most one
SAVED. So an engine holds one state a guest that is not durable yet, whatever the guest does. Which
streams there are, how many of their items were sent and that none follows END is not said here:
the ends count for themselves.

A move that is not in the table changes nothing and is refused: as `LocalViolation` when it is our
own (a bug), as `RemoteViolation` when it is the peer's (a verdict).
"""

from __future__ import annotations

from enum import StrEnum

from .errors import LocalViolation, RemoteViolation
from .messages import FROM_GUEST, FROM_SUPERVISOR, Kind

__all__ = ["CROSSED", "EDGES", "SAVING", "Conversation", "Role", "State"]


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


# What a guest and its supervisor say while the task runs, which changes nothing of the rest.
_BY_THE_WAY = (
    Kind.EMIT,
    Kind.LOG,
    Kind.PROGRESS,
    Kind.SAVE,
    Kind.ARTIFACT,
    Kind.CREDIT,
    Kind.SAVED,
    Kind.ITEM,
    Kind.END,
    Kind.DEADLINE,
)

EDGES: dict[State, dict[Kind, State]] = {
    State.CONNECTED: {Kind.HELLO: State.GREETED},
    State.GREETED: {Kind.ACCEPT: State.ACCEPTED},
    State.ACCEPTED: {Kind.RUN: State.RUNNING},
    State.RUNNING: {
        **dict.fromkeys(_BY_THE_WAY, State.RUNNING),
        Kind.CANCEL: State.CANCELLING,
        Kind.RESULT: State.TOLD,
        Kind.FAIL: State.TOLD,
    },
    State.CANCELLING: {
        **dict.fromkeys(_BY_THE_WAY, State.CANCELLING),
        Kind.RESULT: State.OVER,
        Kind.FAIL: State.OVER,
    },
    State.TOLD: {},
    State.OVER: {},
}

# What may be received, though never sent, in a state: it was under way when the state was entered.
_UNDER_WAY = (Kind.SAVED, Kind.ITEM, Kind.END, Kind.DEADLINE)
CROSSED: dict[State, dict[Kind, State]] = {
    State.TOLD: {**dict.fromkeys(_UNDER_WAY, State.TOLD), Kind.CANCEL: State.OVER},
    State.OVER: dict.fromkeys(_UNDER_WAY, State.OVER),
}

# Whether a SAVE waits for its SAVED: for these two kinds only.
SAVING: dict[bool, dict[Kind, bool]] = {
    False: {Kind.SAVE: True},
    True: {Kind.SAVED: False},
}
_OF_SAVING = frozenset((Kind.SAVE, Kind.SAVED))

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

    __slots__ = ("_receives", "_sends", "is_saving", "role", "state")

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.CONNECTED
        self.is_saving = False
        self._sends = _SENDS[role]
        self._receives = _RECEIVES[role]

    @property
    def is_over(self) -> bool:
        """The outcome has been said: this end says nothing more."""
        return self.state is State.TOLD or self.state is State.OVER

    def may_send(self, kind: Kind) -> bool:
        return kind in self._sends[self.state] and (
            kind not in _OF_SAVING or kind in SAVING[self.is_saving]
        )

    def sent(self, kind: Kind) -> None:
        """This end is about to send a message of this kind."""
        if not self._move(self._sends, kind):
            raise LocalViolation(f"{self.role.value} sent {kind.name} while {self._situation}")

    def received(self, kind: Kind) -> None:
        """The other end has sent a message of this kind."""
        if not self._move(self._receives, kind):
            raise RemoteViolation(f"{self.role.value} was sent {kind.name} while {self._situation}")

    def _move(self, table: _Table, kind: Kind) -> bool:
        after = table[self.state].get(kind)
        if after is None:
            return False
        if kind in _OF_SAVING:
            is_saving = SAVING[self.is_saving].get(kind)
            if is_saving is None:
                return False
            self.is_saving = is_saving
        self.state = after
        return True

    @property
    def _situation(self) -> str:
        return f"{self.state.value}{', saving' if self.is_saving else ''}"
