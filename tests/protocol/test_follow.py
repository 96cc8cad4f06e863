"""A follower gives each event of its run once, in order, whatever of the live ones it is spared."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from casemate.protocol.control import (
    ControlError,
    Error,
    Fetch,
    Fetched,
    Frame,
    Header,
    Heartbeat,
    Problem,
    Replay,
    Replayed,
    Reply,
    RunState,
    RunSummary,
    Show,
    Shown,
    topic,
)
from casemate.protocol.errors import RemoteViolation
from casemate.protocol.follow import EDGES, Beat, Follower, Happening, Published, State, read_frames
from casemate.protocol.limits import EVENT_VERSION, HELD_EVENTS
from hypothesis import given, settings
from hypothesis import strategies as st

RUN = "1m85ef4nyqcq"
encode = msgspec.msgpack.encode


def frames_of(seq: int, kind: str = "task.log", *, run: str = RUN, epoch: int = 1) -> list[bytes]:
    task = "a" if kind.startswith("task.") else None
    header = Header(version=EVENT_VERSION, epoch=epoch, seq=seq, kind=kind, time=0.0)
    return [topic(run, task, kind), encode(header), encode({"n": seq})]


def published(seq: int, kind: str = "task.log", *, epoch: int = 1) -> Published:
    message = read_frames(frames_of(seq, kind, epoch=epoch))
    assert isinstance(message, Published)
    return message


@dataclass
class House:
    """A supervisor's side: a journal, and answers from it."""

    page: int = 3
    epoch: int = 1
    kinds: list[str] = field(default_factory=list)
    large: frozenset[int] = frozenset()

    def commit(self, kind: str = "task.log") -> Published:
        self.kinds.append(kind)
        return self.event(len(self.kinds))

    def event(self, seq: int) -> Published:
        event = published(seq, self.kinds[seq - 1], epoch=self.epoch)
        return msgspec.structs.replace(event, omitted={"item": 9} if seq in self.large else {})

    def beat(self) -> Beat:
        return Beat(self.epoch, {RUN: len(self.kinds)})

    def answer(self, request: Show | Replay | Fetch) -> Reply:
        last = len(self.kinds)
        match request:
            case Show():
                ended = self.kinds[-1:] == ["run.completed"]
                state = RunState.COMPLETED if ended else RunState.RUNNING
                summary = RunSummary(id=RUN, state=state, last_seq=last)
                return Shown(id=request.id, run=summary, tasks=(), as_of=last)
            case Replay(since=since):
                found = []
                for seq in range(since + 1, min(last, since + self.page) + 1):
                    name, _, payload = frames_of(seq, self.kinds[seq - 1])
                    event = self.event(seq)
                    header = Header(
                        version=EVENT_VERSION,
                        epoch=self.epoch,
                        seq=seq,
                        kind=event.event.kind,
                        time=0.0,
                        omitted=event.omitted,
                    )
                    found.append(Frame(name, encode(header), payload))
                return Replayed(id=request.id, run=RUN, events=tuple(found), last_seq=last)
            case Fetch(seq=seq, offset=offset):
                whole = encode({"item": f"large {seq}"})
                piece = whole[offset : offset + 4]
                return Fetched(id=request.id, run=RUN, seq=seq, size=len(whole), data=piece)


def take_all(follower: Follower) -> list[int]:
    found = []
    while (each := follower.take()) is not None:
        found.append(each.event.seq)
    return found


def catch_up(follower: Follower, house: House) -> list[int]:
    """Answer its questions until it has none."""
    found = take_all(follower)
    while (request := follower.request()) is not None:
        follower.reply(house.answer(request))
        found += take_all(follower)
    return found


def live(house: House, follower: Follower) -> None:
    follower.beat(house.beat())
    catch_up(follower, house)
    assert follower.state is State.LIVE


def test_who_comes_late_is_given_everything_and_then_what_is_live() -> None:
    house = House(kinds=["run.started", *["task.log"] * 7])
    follower = Follower("last")
    follower.beat(house.beat())
    assert catch_up(follower, house) == list(range(1, 9))
    assert (follower.run, follower.state) == (RUN, State.LIVE)
    follower.publish(house.commit())
    assert take_all(follower) == [9]


def test_nothing_is_asked_before_a_heartbeat_proves_the_subscription() -> None:
    follower = Follower(RUN)
    follower.publish(published(1))
    assert follower.request() is None
    assert follower.take() is None


def test_a_hole_is_filled_and_what_came_behind_it_not_given_twice() -> None:
    house, follower = House(), Follower(RUN)
    live(house, follower)
    events = [house.commit() for _ in range(5)]
    for each in (events[0], events[3], events[4]):
        follower.publish(each)
    assert catch_up(follower, house) == [1, 2, 3, 4, 5]


def test_a_lost_tail_shows_by_the_heartbeat() -> None:
    house, follower = House(), Follower(RUN)
    live(house, follower)
    house.commit()
    assert catch_up(follower, house) == []
    follower.beat(house.beat())
    assert catch_up(follower, house) == [1]


def test_a_new_epoch_is_asked_what_the_old_one_took_along() -> None:
    house, follower = House(), Follower(RUN)
    live(house, follower)
    house.commit()
    house.epoch = 2
    follower.beat(Beat(2, {}))  # a front that has published nothing yet
    assert catch_up(follower, house) == [1]


def test_it_is_over_when_the_end_of_the_run_was_taken() -> None:
    house, follower = House(kinds=["run.started"]), Follower(RUN)
    live(house, follower)
    follower.publish(house.commit("run.completed"))
    assert not follower.is_over
    assert take_all(follower) == [2]
    assert follower.is_over


def test_an_end_that_was_taken_back_is_not_the_end() -> None:
    house = House(kinds=["run.started", "run.completed", "run.rolled_back"])
    follower = Follower(RUN)
    follower.beat(house.beat())
    assert catch_up(follower, house) == [1, 2, 3]
    assert not follower.is_over


def test_from_the_end_of_a_run_that_has_ended_there_is_nothing() -> None:
    house = House(kinds=["run.started", "run.completed"])
    for since in (2, None):
        follower = Follower(RUN, since)
        follower.beat(house.beat())
        assert catch_up(follower, house) == []
        assert follower.is_over


def test_from_now_on_begins_where_the_snapshot_ends() -> None:
    house, follower = House(kinds=["run.started", "task.log"]), Follower(RUN, None)
    follower.beat(house.beat())
    assert catch_up(follower, house) == []
    assert follower.snapshot is not None and follower.snapshot.as_of == 2
    follower.publish(house.commit())
    assert take_all(follower) == [3]


def test_one_that_may_lose_skips_holes_and_takes_a_snapshot_for_a_lost_tail() -> None:
    house, follower = House(kinds=["run.started"]), Follower(RUN, lossy=True)
    live(house, follower)
    events = [house.commit() for _ in range(3)]
    follower.publish(events[2])
    assert catch_up(follower, house) == [4]
    house.commit("run.completed")
    follower.beat(house.beat())
    assert catch_up(follower, house) == []
    assert follower.snapshot is not None and follower.snapshot.as_of == 5
    assert follower.is_over


def test_a_large_value_is_fetched_piece_by_piece_before_the_event_is_given() -> None:
    house = House(kinds=["run.started", "task.emitted", "task.log"], large=frozenset({2}))
    follower = Follower(RUN)
    follower.beat(house.beat())
    found: list[Published] = []
    while (request := follower.request()) is not None:
        follower.reply(house.answer(request))
        while (each := follower.take()) is not None:
            found.append(each)
    assert [each.event.seq for each in found] == [1, 2, 3]
    assert msgspec.msgpack.decode(found[1].event.data) == {"item": "large 2"}
    assert found[1].omitted == {}


def test_who_wants_no_large_values_is_told_which_are_missing() -> None:
    house = House(kinds=["task.emitted"], large=frozenset({1}))
    follower = Follower(RUN, whole=False)
    follower.beat(house.beat())
    while (request := follower.request()) is not None:
        follower.reply(house.answer(request))
    each = follower.take()
    assert each is not None and each.omitted == {"item": 9}


def test_a_value_half_fetched_when_its_supervisor_went_is_had_from_the_journal() -> None:
    house = House(kinds=["run.started", "task.emitted"], large=frozenset({2}))
    follower = Follower(RUN)
    follower.beat(house.beat())
    found = []
    while not isinstance(request := follower.request(), Fetch):
        assert request is not None
        follower.reply(house.answer(request))
        found += take_all(follower)
    follower.reply(house.answer(request))  # the first piece
    follower.lose()
    shown = house.answer(Show(version=1, id=0, run=RUN))
    assert isinstance(shown, Shown)
    follower.read(shown, [published(2, "task.emitted")])
    assert [*found, *take_all(follower)] == [1, 2]


def test_what_is_held_is_bounded_and_what_is_not_is_asked_for() -> None:
    house, follower = House(page=1000), Follower(RUN)
    follower.beat(house.beat())
    for _ in range(HELD_EVENTS + 10):
        follower.publish(house.commit())
    assert catch_up(follower, house) == list(range(1, HELD_EVENTS + 11))


def test_a_late_reply_changes_nothing_and_a_refusal_is_an_error() -> None:
    house, follower = House(kinds=["run.started"]), Follower(RUN)
    follower.beat(house.beat())
    given_up = follower.request()
    assert given_up is not None
    follower.ask_again()
    asked = follower.request()
    assert asked is not None
    follower.reply(house.answer(given_up))
    assert follower.snapshot is None
    with pytest.raises(LookupError, match="no such run"):
        problem = Problem(ControlError.NOT_FOUND, "no such run")
        follower.reply(Error(id=asked.id, error=problem))


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"hb."],
        [b"hb.", b"\xc1", b"\x80"],
        [b"hb.", encode(Heartbeat(version=9, epoch=1, time=0.0)), b"\x80"],
        [b"ev.x", *frames_of(1)[1:]],
        [b"ev.run.a.task.emitted.", *frames_of(1)[1:]],
        [b"\xff", *frames_of(1)[1:]],
        [frames_of(1)[0], b"\x93", b""],
        [*frames_of(1), b""],
    ],
)
def test_what_is_no_event_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(RemoteViolation):
        read_frames(frames)


def test_a_replay_with_a_hole_or_of_another_run_is_refused() -> None:
    house = House(kinds=["task.log"] * 3)
    for wrong in (frames_of(2), frames_of(1, run="another")):
        follower = Follower(RUN)
        follower.beat(house.beat())
        shown = follower.request()
        assert shown is not None
        follower.reply(house.answer(shown))
        asked = follower.request()
        assert isinstance(asked, Replay)
        page = Replayed(id=asked.id, run=RUN, events=(Frame(*wrong),), last_seq=3)
        with pytest.raises(RemoteViolation):
            follower.reply(page)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["commit", "lose", "beat", "restart", "answer", "drop", "take"])),
    st.integers(0, 3),
)
def test_whatever_is_lost_each_event_comes_once_and_in_order(what: list[str], before: int) -> None:
    house = House(page=2, kinds=["task.log"] * before, large=frozenset({2, 5}))
    follower = Follower(RUN)
    found: list[int] = []
    taken: set[tuple[State, Happening]] = set()
    asked: Show | Replay | Fetch | None = None
    for each in what:
        match each:
            case "commit":
                follower.publish(house.commit())
            case "lose":
                house.commit()
            case "beat":
                follower.beat(house.beat())
            case "restart":
                house.epoch += 1
            case "answer":
                asked = follower.request() or asked
                if asked is not None:
                    follower.reply(house.answer(asked))
                    asked = None
            case "drop":
                follower.request()
                follower.ask_again()
            case "take":
                one = follower.take()
                found += [] if one is None else [one.event.seq]
    follower.ask_again()
    house.commit("run.completed")
    for _ in range(2):
        follower.beat(house.beat())
        found += catch_up(follower, house)
    assert found == list(range(1, len(house.kinds) + 1))
    assert follower.is_over
    assert taken <= {(state, happening) for state, edges in EDGES.items() for happening in edges}
