"""Messages as bytes: what goes out comes in, and what a guest must not say is refused."""

from __future__ import annotations

import math

import msgspec
import pytest
from casemate.protocol.codec import (
    checked_raw,
    cut_text,
    decode_from_guest,
    decode_from_supervisor,
    encode,
    encode_value,
    kind_of,
)
from casemate.protocol.errors import LocalViolation, RemoteViolation
from casemate.protocol.limits import (
    ARTIFACT_NAME_SIZE,
    ARTIFACTS_SIZE,
    ERROR_TEXT_SIZE,
    ERROR_TYPE_SIZE,
    ITEM_SIZE,
    LINK_VERSION,
    LOG_TEXT_SIZE,
    MESSAGE_SIZE,
    REFUSAL_SUBJECT,
    REFUSALS,
    SAVED_SIZE,
    STREAM_CREDIT_ITEMS,
    VALUE_SIZE,
)
from casemate.protocol.messages import (
    FROM_GUEST,
    FROM_SUPERVISOR,
    Accept,
    Artifact,
    Cancel,
    Credit,
    Deadline,
    Emit,
    End,
    Fail,
    Hello,
    Item,
    Kind,
    Log,
    Message,
    Progress,
    Result,
    Run,
    Save,
    Saved,
)
from casemate.protocol.pipeline import CommandEntry, FileEntry, ModuleEntry, PickleEntry
from casemate.protocol.refusals import Refusal, Wall
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

NIL = Raw(b"\xc0")
ITEM = Raw(encode_value({"path": "a.py", "line": 3}))
DIGEST = bytes(32)
FAR_TOO_LONG = {"wall": "call", "subject": "x" * (REFUSAL_SUBJECT + 1)}


def run(**changes: object) -> Run:
    message = Run(
        run="r",
        task="t",
        attempt=1,
        entry=FileEntry(file="agents.py", name="analyze"),
        input=ITEM,
        input_file=None,
        spec=ITEM,
        idempotency_key="k",
        deadline=12.5,
        workspace="/workspace",
    )
    return msgspec.structs.replace(message, **changes)


GOOD_FROM_GUEST: list[Message] = [
    Hello(version=LINK_VERSION, pid=2),
    Emit(item=ITEM),
    Log(text="schön", fields=Raw(encode_value({"a": 1}))),
    Log(text="", fields=Raw(encode_value({f"key {n}": n for n in range(20)}))),
    Progress(done=0.5, total=None),
    Progress(done=3.0, total=-1.0),
    Artifact(name="a", size=0, digest=DIGEST),
    Artifact(name="häuser/plan 1.html", size=ARTIFACTS_SIZE, digest=DIGEST),
    Artifact(name="a" * ARTIFACT_NAME_SIZE, size=1, digest=DIGEST),
    Save(state=ITEM),
    Save(state=NIL),
    Save(state=Raw(encode_value(bytes(SAVED_SIZE - 5)))),
    Credit(upstream="a" * 64, items=1),
    Credit(upstream="a", items=STREAM_CREDIT_ITEMS),
    Result(output=ITEM),
    Result(output=NIL),
    Result(output=NIL, digest=DIGEST, size=VALUE_SIZE),
    *(
        Fail(kind=kind, message="m", type="E", traceback="t")
        for kind in ("error", "crash", "invalid_output", "output_limit")
    ),
    Fail(kind="error", message=""),
    Fail(kind="error", message="", refused=(Refusal(Wall.NETWORK, "1.1.1.1:443"),) * REFUSALS),
    Fail(kind="error", message="", refused=(Refusal(Wall.PATH, "x" * REFUSAL_SUBJECT),)),
]
GOOD_FROM_SUPERVISOR: list[Message] = [
    Accept(version=LINK_VERSION),
    run(),
    run(entry=ModuleEntry(module="agents.review", name="analyze"), deadline=None),
    run(entry=PickleEntry(payload=b"\x80\x05", name="<lambda>"), workspace=None),
    run(entry=CommandEntry(argv=("node", "agent.js")), input=NIL, input_file="/casemate/input"),
    run(saved=ITEM, streams=("a", "b")),
    Saved(),
    Item(upstream="a", items=(ITEM, NIL)),
    Item(upstream="a", items=(NIL,) * STREAM_CREDIT_ITEMS),
    End(upstream="a"),
    Deadline(deadline=12.5),
    Deadline(deadline=None),
    Cancel(grace=0.0),
    Cancel(grace=2.5),
]


def frame(kind: Kind, /, **fields: object) -> bytes:
    """A frame past every check of `encode`."""
    return bytes((kind,)) + msgspec.msgpack.encode(fields)


def name_of(case: Message | str) -> str:
    """For tests' names: a repr would have addresses in it."""
    return case if isinstance(case, str) else kind_of(case).name


def same(one: Message, other: Message) -> bool:
    return type(one) is type(other) and msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other)


@pytest.mark.parametrize("message", GOOD_FROM_GUEST, ids=name_of)
def test_what_a_guest_says_arrives(message: Message) -> None:
    got = encode(message)
    assert got[0] == kind_of(message)
    assert same(decode_from_guest(got), message)
    with pytest.raises(RemoteViolation, match="never gets"):
        decode_from_supervisor(got)


@pytest.mark.parametrize("message", GOOD_FROM_SUPERVISOR, ids=name_of)
def test_what_the_supervisor_says_arrives(message: Message) -> None:
    got = encode(message)
    assert got[0] == kind_of(message)
    assert same(decode_from_supervisor(got), message)
    with pytest.raises(RemoteViolation, match="never gets"):
        decode_from_guest(got)


def test_every_kind_has_one_speaker_and_is_tried_above() -> None:
    tried = {kind_of(message) for message in GOOD_FROM_GUEST}
    assert tried == set(FROM_GUEST)
    tried = {kind_of(message) for message in GOOD_FROM_SUPERVISOR}
    assert tried == set(FROM_SUPERVISOR)
    assert set(FROM_GUEST) | set(FROM_SUPERVISOR) == set(Kind)
    assert not set(FROM_GUEST) & set(FROM_SUPERVISOR)


BAD_MESSAGES: list[tuple[str, Message]] = [
    ("version", Hello(version=LINK_VERSION + 1, pid=2)),
    ("pid", Hello(version=LINK_VERSION, pid=0)),
    ("pid", Hello(version=LINK_VERSION, pid=1 << 31)),
    ("map", Log(text="x", fields=NIL)),
    ("map", Log(text="x", fields=Raw(encode_value([1])))),
    ("finite", Progress(done=math.nan, total=None)),
    ("finite", Progress(done=0, total=math.inf)),
    ("together", Result(output=NIL, digest=DIGEST)),
    ("together", Result(output=NIL, size=1)),
    ("twice", Result(output=ITEM, digest=DIGEST, size=1)),
    ("digest", Result(output=NIL, digest=b"short", size=1)),
    ("output file", Result(output=NIL, digest=DIGEST, size=VALUE_SIZE + 1)),
    ("output file", Result(output=NIL, digest=DIGEST, size=0)),
    ("output file", Result(output=NIL, digest=DIGEST, size=-1)),
    *(
        ("claim", Fail(kind=kind, message="m"))
        for kind in ("timeout.wall", "memory", "violation", "protocol", "setup", "lost", "", "x")
    ),
    *(
        ("relative path", Artifact(name=name, size=1, digest=DIGEST))
        for name in ("", ".", "..", "/", "/etc/x", "a/", "a//b", "a/../b", "./a", "../" * 100 + "x")
    ),
    *(
        ("printable", Artifact(name=name, size=1, digest=DIGEST))
        for name in ("a\0b", "a\nb", "\x1b[2J", "C:\\x", "\u202egnp.exe", "\ud7ff")
    ),
    ("name of 513", Artifact(name="a" * (ARTIFACT_NAME_SIZE + 1), size=1, digest=DIGEST)),
    ("name of 5000", Artifact(name="a" * 5000, size=1, digest=DIGEST)),
    ("-1 bytes", Artifact(name="a", size=-1, digest=DIGEST)),
    ("bytes", Artifact(name="a", size=ARTIFACTS_SIZE + 1, digest=DIGEST)),
    ("digest of 5", Artifact(name="a", size=1, digest=b"short")),
    ("state of", Save(state=Raw(encode_value(bytes(SAVED_SIZE - 4))))),
    ("credit for 0", Credit(upstream="a", items=0)),
    ("credit for -1", Credit(upstream="a", items=-1)),
    ("credit for", Credit(upstream="a", items=STREAM_CREDIT_ITEMS + 1)),
    ("upstream", Credit(upstream="a" * 65, items=1)),
    ("state of", run(saved=Raw(encode_value(bytes(SAVED_SIZE - 4))))),
    ("0 items", Item(upstream="a", items=())),
    ("items", Item(upstream="a", items=(NIL,) * (STREAM_CREDIT_ITEMS + 1))),
    ("upstream", Item(upstream="a" * 65, items=(NIL,))),
    ("upstream", End(upstream="a" * 65)),
    ("deadline", Deadline(deadline=math.inf)),
    ("deadline", Deadline(deadline=math.nan)),
    ("version", Accept(version=0)),
    ("twice", run(input_file="/casemate/input")),
    ("grace", Cancel(grace=-1)),
    ("grace", Cancel(grace=math.nan)),
    ("grace", Cancel(grace=math.inf)),
]


@pytest.mark.parametrize(("problem", "message"), BAD_MESSAGES, ids=name_of)
def test_one_rule_for_both_ends(problem: str, message: Message) -> None:
    kind = kind_of(message)
    with pytest.raises(LocalViolation, match=f"{kind.name}: .*{problem}"):
        encode(message)
    decode = decode_from_guest if kind in FROM_GUEST else decode_from_supervisor
    with pytest.raises(RemoteViolation, match=f"{kind.name}: .*{problem}"):
        decode(bytes((kind,)) + msgspec.msgpack.encode(message))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x00",
        b"\x0a\x80",
        b"\x10\x80",
        b"\x11\x80",
        b"\xff",
        frame(Kind.CREDIT, upstream="a", items=1.0),
        frame(Kind.CREDIT, upstream="a", items=1 << 64 - 1),
        frame(Kind.CREDIT, upstream=None, items=1),
        frame(Kind.SAVE, state=1, more=1),
        bytes((Kind.EMIT,)),
        bytes((Kind.EMIT,)) + b"\xc0",
        bytes((Kind.EMIT,)) + b"\x91\xc0",
        frame(Kind.EMIT),
        frame(Kind.EMIT, item=1, more=2),
        frame(Kind.EMIT, item=1) + b"\xc0",
        frame(Kind.EMIT, item=1)[:-1],
        frame(Kind.EMIT, item=1)[:-1] + b"\xc1",
        frame(Kind.EMIT, item=1)[:-1] + b"\xdf\xff\xff\xff\xff",
        frame(Kind.EMIT, item=1)[:-1] + b"\x91" * 100_000,
        frame(Kind.EMIT, item=1)[:-1] + b"\x91" * 100_000 + b"\xc0",
        frame(Kind.LOG, text=b"bytes", fields={}),
        frame(Kind.LOG, text=None, fields={}),
        b"\x05\x82\xa4text\xa1\xff\xa6fields\x80",
        frame(Kind.PROGRESS, done="1", total=None),
        frame(Kind.PROGRESS, done=True, total=None),
        frame(Kind.RESULT, output=None, digest="0" * 32, size=1),
        frame(Kind.RESULT, output=None, digest=DIGEST, size=1.5),
        frame(Kind.FAIL, kind="error"),
        frame(Kind.FAIL, kind="error", message="m", refused=[{"wall": "none"}]),
        frame(Kind.FAIL, kind="error", message="m", refused=[{"wall": "call"}] * (REFUSALS + 1)),
        frame(Kind.FAIL, kind="error", message="m", refused=[FAR_TOO_LONG]),
        frame(Kind.FAIL, kind="error", message="m", refused=["network"]),
        frame(Kind.ARTIFACT, name=b"bad \xff", size=1, digest=DIGEST),
        b"\x10\x83\xa4name\xa1\xff\xa4size\x01\xa6digest\xc4\x20" + DIGEST,
        frame(Kind.FAIL, kind="error", message=["m"]),
        frame(Kind.HELLO, version=1.0, pid=2),
    ],
)
def test_malformed_messages_are_refused(bad: bytes) -> None:
    with pytest.raises(RemoteViolation):
        decode_from_guest(bad)


@pytest.mark.parametrize(
    ("limit", "fields"),
    [
        (LOG_TEXT_SIZE, {"kind": Kind.LOG, "name": "text", "fields": {}}),
        (ERROR_TEXT_SIZE, {"kind": Kind.FAIL, "name": "message"}),
        (ERROR_TEXT_SIZE, {"kind": Kind.FAIL, "name": "traceback", "message": ""}),
        (ERROR_TYPE_SIZE, {"kind": Kind.FAIL, "name": "type", "message": ""}),
    ],
)
@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_texts_from_a_guest_have_bounds(limit: int, fields: dict[str, object], letter: str) -> None:
    rest = dict(fields)
    kind, name = rest.pop("kind"), str(rest.pop("name"))
    assert isinstance(kind, Kind)
    if kind is Kind.FAIL:
        rest["kind"] = "error"
    fits = letter * (limit // len(letter.encode()))
    decode_from_guest(frame(kind, **rest, **{name: fits}))
    with pytest.raises(RemoteViolation, match=f"{name} of more than {limit} bytes"):
        decode_from_guest(frame(kind, **rest, **{name: fits + letter}))


@pytest.mark.parametrize("letter", ["x", "é", "😀", "\ud800", "\n"])
def test_texts_of_a_task_are_cut_before_they_are_sent(letter: str) -> None:
    long = "begin " + letter * 1_000_000 + " end"
    log = decode_from_guest(encode(Log(text=long, fields=Raw(b"\x80"))))
    assert isinstance(log, Log)
    fail = decode_from_guest(encode(Fail(kind="error", message=long, type=long, traceback=long)))
    assert isinstance(fail, Fail)
    for text in (log.text, fail.message, fail.type, fail.traceback):
        assert text is not None
        assert text.startswith("begin ")
        assert text.endswith(" end")
        assert "bytes cut" in text


@given(st.text(st.characters(codec=None), max_size=300), st.integers(64, 256))
def test_cut_text_fits_and_keeps_what_fits(text: str, size: int) -> None:
    cut = cut_text(text, size)
    assert len(cut.encode()) <= size
    clean = text.encode("utf-8", "backslashreplace").decode()
    if len(clean.encode()) <= size:
        assert cut == clean


def test_a_message_too_large_is_our_own_fault() -> None:
    overhead = len(encode(Result(output=Raw(encode_value(b"x" * 100_000))))) - 100_000
    fits = Result(output=Raw(encode_value(b"x" * (MESSAGE_SIZE - overhead))))
    assert len(encode(fits)) == MESSAGE_SIZE
    with pytest.raises(LocalViolation, match=f"{MESSAGE_SIZE + 1} bytes"):
        encode(Result(output=Raw(encode_value(b"x" * (MESSAGE_SIZE - overhead + 1)))))


def test_whatever_may_be_emitted_can_be_sent_on_to_who_reads_it() -> None:
    header = len(encode_value(bytes(ITEM_SIZE))) - ITEM_SIZE
    largest = Raw(encode_value(bytes(ITEM_SIZE - header)))
    emitted = decode_from_guest(encode(Emit(item=largest)))
    assert isinstance(emitted, Emit)
    assert len(encode(Item(upstream="u" * 64, items=(emitted.item,)))) <= MESSAGE_SIZE
    with pytest.raises(LocalViolation, match=f"item of {ITEM_SIZE + 1} bytes"):
        encode(Emit(item=Raw(encode_value(bytes(ITEM_SIZE - header + 1)))))


def test_what_cannot_be_encoded_is_our_own_fault() -> None:
    with pytest.raises(LocalViolation, match="RUN: "):
        encode(run(task="\ud800"))


def test_a_violation_quotes_little_and_keeps_nothing() -> None:
    with pytest.raises(RemoteViolation) as caught:
        decode_from_guest(frame(Kind.EMIT, **{"k" * 100_000: 1}))
    assert len(str(caught.value)) < 400
    # A UnicodeDecodeError holds the bytes it is about.
    with pytest.raises(RemoteViolation) as caught:
        decode_from_guest(b"\x05\x82\xa4text\xa1\xff\xa6fields\x80")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_payloads_stay_closed_and_are_bounded() -> None:
    """A megabyte of empty lists is 76 MiB when it is opened; it is not opened."""
    hostile = frame(Kind.EMIT, item=1)[:-1] + b"\xdd\x00\x0f\x00\x00" + b"\x90" * 0xF0000
    message = decode_from_guest(hostile)
    assert isinstance(message, Emit)
    assert isinstance(message.item, Raw)


def test_a_value_by_file_is_checked_before_it_joins_a_message() -> None:
    good = encode_value({"a": [1, b"x"]})
    assert bytes(checked_raw(good)) == good
    for bad in (b"", good[:-1], good + b"\xc0", b"\xc1", b"\x91" * 100_000):
        with pytest.raises(RemoteViolation, match="not a value"):
            checked_raw(bad)
