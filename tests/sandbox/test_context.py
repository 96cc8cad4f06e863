"""What a task says through its context, and what it may not say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol import codec
from casemate.protocol.errors import UsageError
from casemate.protocol.limits import LOG_TEXT_SIZE, MESSAGE_SIZE, SAVED_SIZE
from casemate.protocol.messages import Emit, Log, Message, Progress, Save
from casemate.sandbox.context import ENDED, PAYLOAD_SIZE, Cancelled, RuntimeContext


class Heard:
    """A speaker that keeps what is said, as the bytes it would send."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.cancelled = False
        self.moment: float | None = 12.5
        self.items: list[object] = []

    def send(self, message: Message) -> None:
        self.frames.append(codec.encode(message))

    def is_cancelled(self) -> bool:
        return self.cancelled

    def deadline(self) -> float | None:
        return self.moment

    def save(self, message: Save) -> None:
        self.send(message)

    def take(self, upstream: str) -> Any:
        return self.items.pop(0) if self.items else ENDED

    async def take_later(self, upstream: str) -> Any:
        return self.take(upstream)

    @property
    def last(self) -> Message:
        return codec.decode_from_guest(self.frames[-1])


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def context(heard: Heard) -> RuntimeContext:
    return RuntimeContext(
        heard,
        run_id="r1",
        task_id="lint",
        attempt=3,
        spec={"role": "linter"},
        workspace=Path("/workspace"),
        idempotency_key="r1/lint",
        streams=("parse", "index"),
    )


def test_an_item_travels_as_it_is(context: RuntimeContext, heard: Heard) -> None:
    item = {"a": [1, 2.5, None, True], "b": b"\x00\xff", "at": datetime(2026, 11, 23, tzinfo=UTC)}
    context.emit(item)
    assert isinstance(heard.last, Emit)
    assert codec.decode_value(heard.last.item) == item


def test_an_item_that_cannot_be_carried_is_refused_by_path(
    context: RuntimeContext, heard: Heard
) -> None:
    with pytest.raises(codec.ValueRefused, match=r"item\.files\[1\]: set"):
        context.emit({"files": [1, {2}]})
    assert heard.frames == []


def test_the_largest_item_fits_and_one_byte_more_is_refused(
    context: RuntimeContext, heard: Heard
) -> None:
    header = len(codec.encode_value(bytes(PAYLOAD_SIZE))) - PAYLOAD_SIZE
    context.emit(bytes(PAYLOAD_SIZE - header))
    assert len(heard.frames[0]) <= MESSAGE_SIZE
    with pytest.raises(ValueError, match="split it"):
        context.emit(bytes(PAYLOAD_SIZE - header + 1))


def test_a_log_line_takes_any_fields(context: RuntimeContext, heard: Heard) -> None:
    context.log("compiled", files=3, message="also a field", self=None)
    assert isinstance(heard.last, Log)
    assert heard.last.text == "compiled"
    assert codec.decode_value(heard.last.fields) == {
        "files": 3,
        "message": "also a field",
        "self": None,
    }


def test_the_longest_log_line_with_the_largest_fields_fits(
    context: RuntimeContext, heard: Heard
) -> None:
    header = len(codec.encode_value({"f": bytes(PAYLOAD_SIZE)})) - PAYLOAD_SIZE
    context.log("é" * LOG_TEXT_SIZE, f=bytes(PAYLOAD_SIZE - header))
    assert isinstance(heard.last, Log)
    assert "bytes cut" in heard.last.text
    with pytest.raises(ValueError, match="log fields"):
        context.log("", f=bytes(PAYLOAD_SIZE))


def test_log_takes_what_is_not_text(context: RuntimeContext, heard: Heard) -> None:
    context.log(ValueError("x\udcff"))
    assert isinstance(heard.last, Log)
    assert heard.last.text == "x\\udcff"


def test_progress(context: RuntimeContext, heard: Heard) -> None:
    context.progress(3, 10)
    assert heard.last == Progress(done=3.0, total=10.0)
    context.progress(0.5)
    assert heard.last == Progress(done=0.5, total=None)


@pytest.mark.parametrize(
    ("done", "total"), [(float("nan"), None), (1.0, float("inf")), (float("-inf"), 1.0)]
)
def test_progress_must_be_finite(context: RuntimeContext, done: float, total: float | None) -> None:
    with pytest.raises(ValueError, match="finite"):
        context.progress(done, total)


def test_cancelled_asks_the_speaker(context: RuntimeContext, heard: Heard) -> None:
    assert not context.cancelled
    heard.cancelled = True
    assert context.cancelled


def test_the_deadline_is_what_the_speaker_knows_now(context: RuntimeContext, heard: Heard) -> None:
    assert context.deadline == 12.5
    heard.moment = 60.0
    assert context.deadline == 60.0


def test_a_saved_state_has_a_bound(context: RuntimeContext, heard: Heard) -> None:
    assert context.saved is None
    header = len(codec.encode_value(bytes(SAVED_SIZE))) - SAVED_SIZE
    context.save(bytes(SAVED_SIZE - header))
    assert isinstance(heard.last, Save)
    with pytest.raises(ValueError, match=f"at most {SAVED_SIZE} are kept"):
        context.save(bytes(SAVED_SIZE))
    with pytest.raises(codec.ValueRefused, match=r"state\[0\]: set"):
        context.save([{1}])
    assert len(heard.frames) == 1


def test_there_is_one_stream_for_each_upstream(context: RuntimeContext, heard: Heard) -> None:
    heard.items = [1, None, 3, 4]
    for item in context.stream("parse"):
        assert item == 1
        break
    assert list(context.stream("parse")) == [None, 3, 4]
    assert context.stream("parse") is context.stream("parse")
    assert [stream.upstream for stream in context.streams] == ["parse", "index"]
    assert repr(context.stream("index")) == "<Stream of index>"


def test_an_unknown_stream_is_told_which_there_are(context: RuntimeContext, heard: Heard) -> None:
    with pytest.raises(UsageError, match=r"'x'.* lead to lint from: index, parse"):
        context.stream("x")
    plain = RuntimeContext(
        heard, run_id="r", task_id="t", attempt=1, spec=None, workspace=None, idempotency_key="k"
    )
    with pytest.raises(UsageError, match="from: none"):
        plain.stream("x")


def test_cancelled_is_no_error_to_shield_from() -> None:
    assert not issubclass(Cancelled, Exception)


def test_a_context_says_whose_it_is(context: RuntimeContext) -> None:
    assert repr(context) == "<RuntimeContext of task r1/lint, attempt 3>"
