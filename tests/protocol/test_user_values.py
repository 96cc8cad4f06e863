"""Users' values: what is carried comes back, and what is not is refused by its path."""

from __future__ import annotations

import array
import collections
import dataclasses
import decimal
import enum
import json
import math
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from casemate.protocol.codec import (
    ValueRefused,
    decode_value,
    encode_value,
    from_jsonable,
    to_jsonable,
)
from casemate.protocol.errors import RemoteViolation, UsageError
from casemate.protocol.limits import READ_DEPTH, VALUE_DEPTH
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

Convert = Callable[[object], Any]

utf8 = st.text(st.characters(codec="utf-8"))
moments = st.datetimes(
    min_value=datetime(1, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))]),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | utf8
    | st.binary()
    | moments
)
keys = utf8 | st.sampled_from(["$bytes", "$datetime", "$float", "$$bytes", "$$$float", "$ref", "$"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=20,
)


def nested(depth: int, bottom: object = 1) -> object:
    made = bottom
    for level in range(depth):
        made = [made] if level % 2 else {"k": made}
    return made


@given(values)
def test_what_is_encoded_comes_back(value: object) -> None:
    back = decode_value(encode_value(value))
    assert back == value
    assert repr(type(back)) == repr(type(value))


@given(values)
def test_what_is_said_in_json_comes_back(value: object) -> None:
    assert from_jsonable(json.loads(json.dumps(to_jsonable(value), allow_nan=False))) == value


@given(values)
def test_no_two_values_are_said_alike_in_json(value: object) -> None:
    """What looks like our notation inside a user's own data survives as well."""
    said = to_jsonable(value)
    assert decode_value(encode_value(said)) == said
    assert from_jsonable(to_jsonable(said)) == said


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_violation(raw: bytes) -> None:
    try:
        value = decode_value(raw)
    except RemoteViolation:
        return
    assert isinstance(value, None | bool | int | float | str | bytes | datetime | list | dict)
    json.dumps(to_jsonable(value), allow_nan=False)


class Name(str):
    __slots__ = ()


class Number(int):
    pass


class Level(enum.IntEnum):
    LOW = 1


class Colour(enum.StrEnum):
    RED = "red"


class Ratio(float):
    pass


class Moment(datetime):
    pass


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "carried"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1, 2), [1, 2]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
        ({Name("k"): Name("v")}, {"k": "v"}),
        ({Colour.RED: 1}, {"red": 1}),
        (Number(3), 3),
        (Level.LOW, 1),
        (Colour.RED, "red"),
        ([Ratio(0.5)], [0.5]),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        (
            Moment(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=1))),
            datetime(2026, 1, 2, 2, 4, 5, 6, tzinfo=UTC),
        ),
        ([1.0, -0.0, math.inf, -math.inf], [1.0, -0.0, math.inf, -math.inf]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_near_relatives_are_carried_as_plain_data(value: object, carried: object) -> None:
    back = decode_value(encode_value(value))
    assert back == carried
    assert type(back) is type(carried)


def test_nan_is_carried() -> None:
    assert math.isnan(decode_value(encode_value(math.nan)))
    assert math.isnan(from_jsonable(json.loads(json.dumps(to_jsonable(math.nan)))))


@dataclasses.dataclass
class Finding:
    line: int


class Bare(enum.Enum):
    A = 1


class Model:
    def model_dump(self) -> None: ...


def cycle() -> list[object]:
    made: list[object] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1}, "output: set is not carried; use a sorted list"),
        ({"files": [0, 1, 2, {3}]}, "output.files[3]: set is not carried"),
        ({"a b": frozenset()}, "output['a b']: frozenset is not carried"),
        ([date(2026, 1, 1)], "output[0]: datetime.date is not carried; use isoformat()"),
        (time(1), "output: datetime.time is not carried; use isoformat()"),
        (datetime(2026, 1, 1), "output: datetime without a time zone is not carried; give it one"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "out of range in UTC"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), "out of range in UTC"),
        (timedelta(1), "output: datetime.timedelta is not carried"),
        (uuid.UUID(int=1), "output: uuid.UUID is not carried"),
        (decimal.Decimal(1), "output: decimal.Decimal is not carried"),
        (PurePath("a"), "PurePosixPath is not carried"),
        (1j, "output: complex is not carried"),
        (Bare.A, "Bare is not carried; use its value"),
        (Finding(1), "Finding is not carried; use dataclasses.asdict()"),
        (Model(), "Model is not carried; use its model_dump()"),
        (array.array("i"), "array.array is not carried; use its tolist()"),
        (MappingProxyType({}), "output: mappingproxy is not carried; use a dict"),
        (range(3), "output: range is not carried; use a list"),
        (iter([]), "output: list_iterator is not carried; use a list"),
        (object(), "output: object is not carried; use JSON-like data, bytes or datetimes"),
        (print, "is not carried"),
        (1 << 64, "output: int of 65 bits is not carried; use a str"),
        ([-(1 << 63) - 1], "output[0]: int of 64 bits is not carried"),
        ("\ud800", "output: text with lone surrogates is not carried; use bytes"),
        ({"\ud800": 1}, "output, a key: text with lone surrogates is not carried"),
        ({1: 2}, "output: key 1 (int) is not carried; keys must be str"),
        ({"a": {None: 2}}, "output.a: key None (NoneType) is not carried"),
        (cycle(), "nesting this deep is not carried; at most 128 levels (is it a cycle?)"),
    ],
)
def test_what_is_not_carried_is_named(value: object, message: str) -> None:
    with pytest.raises(ValueRefused) as caught:
        encode_value(value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600
    assert issubclass(ValueRefused, UsageError)


def test_the_callers_word_begins_the_path() -> None:
    with pytest.raises(ValueRefused, match=r"^item\.a: set"):
        encode_value({"a": {1}}, "item")


@pytest.mark.parametrize("bottom", [1, Number(1)], ids=["plain", "by copy"])
def test_depth_is_bounded_when_it_is_written(bottom: object) -> None:
    value = nested(VALUE_DEPTH, bottom)
    assert decode_value(encode_value(value)) == value
    with pytest.raises(ValueRefused, match="at most 128 levels"):
        encode_value([value])


def test_depth_is_bounded_when_it_is_read() -> None:
    value = nested(READ_DEPTH)
    raw = msgspec.msgpack.encode(value)
    assert decode_value(raw) == value
    assert from_jsonable(to_jsonable(value)) == value
    with pytest.raises(RemoteViolation, match="deeper than 136 levels"):
        decode_value(b"\x91" + raw)
    for convert in (to_jsonable, from_jsonable):
        with pytest.raises(ValueRefused, match="nesting this deep is not carried"):
            convert([value])


def test_the_deepest_value_is_still_readable_inside_an_event() -> None:
    value = nested(VALUE_DEPTH)
    event = {"data": {"outputs": {"task": Raw(encode_value(value))}}}
    opened = decode_value(msgspec.msgpack.encode(event))
    assert opened == {"data": {"outputs": {"task": value}}}
    assert from_jsonable(to_jsonable(opened)) == opened


@pytest.mark.parametrize("bottom", [1, b"bytes", {"a": b"bytes"}, [b"bytes"] * 3])
def test_values_of_every_depth_come_back(bottom: object) -> None:
    value = bottom
    for depth in range(30):
        assert decode_value(encode_value(value)) == value
        value = [0, value] if depth % 2 else {"a": 0, "k": value}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b"\x92\x01",
        b"\xa1\xff",
        b"\x91\xa1\xff",
        b"\x91" * 100_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xd4\x05\x00",  # extension type 5
        b"\x91\xd4\x05\x00",
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a time out of range
        b"\x81\x01\x02",  # keys that are not text
        b"\x81\xc4\x01a\x02",
        b"\x81\x92\x01\x02\x03",
        b"\x92\xc4\x01a\x81\x92\x01\x02\x03",
    ],
)
def test_what_is_no_value_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteViolation, match="not a value: "):
        decode_value(raw)


def colliding_keys(count: int) -> bytes:
    """A map whose keys are pairs of ints that all have one hash (CPython's tuple hash, which is
    xxHash without a secret)."""
    one, two, five = 11400714785074694791, 14029467366897019727, 2870177450012600261
    mask = (1 << 64) - 1
    inverse = pow(two, -1, 1 << 64)
    pairs: list[bytes] = []
    first = 0
    while len(pairs) < count:
        state = (five + first * two) & mask
        state = ((state << 31 | state >> 33) & mask) * one & mask
        second = (0x1234567890ABCDEF - state) * inverse & mask
        if second < (1 << 61) - 1:  # an int that is its own hash
            pairs.append(msgspec.msgpack.encode((first, second)) + b"\x01")
        first += 1
    return b"\xdf" + count.to_bytes(4, "big") + b"".join(pairs)


def test_keys_with_chosen_hashes_never_meet_in_a_dict() -> None:
    raw = colliding_keys(100)
    assert len({hash(key) for key in msgspec.msgpack.decode(raw)}) == 1  # the attack is real
    for hostile in (raw, b"\x92\xc4\x00" + raw):
        with pytest.raises(RemoteViolation, match="Expected `str`, got `array`"):
            decode_value(hostile)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\x00\xff", {"$bytes": "AP8="}),
        (
            datetime(2026, 11, 22, 19, 20, 1, 123456, tzinfo=timezone(timedelta(hours=1))),
            {"$datetime": "2026-11-22T18:20:01.123456Z"},
        ),
        (math.nan, {"$float": "nan"}),
        ([math.inf, -math.inf], [{"$float": "inf"}, {"$float": "-inf"}]),
        ({"$bytes": "AP8="}, {"$$bytes": "AP8="}),
        ({"$$bytes": 1}, {"$$$bytes": 1}),
        ({"$datetime": b""}, {"$$datetime": {"$bytes": ""}}),
        ({"$bytes": 1, "more": 2}, {"$bytes": 1, "more": 2}),
        ({"$ref": "#/x"}, {"$ref": "#/x"}),
        ((1, 2), [1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_values_look_in_json(value: object, said: object) -> None:
    assert to_jsonable(value) == said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"$bytes": "!"}}, "input.a: $bytes stands for base64 text, got '!'"),
        ({"$bytes": 1}, "write $$bytes"),
        ({"$bytes": "AP8"}, "base64"),
        ([{"$datetime": "2026-01-01T00:00:00"}], "input[0]: $datetime stands for an RFC 3339 time"),
        ({"$datetime": "0001-01-01T00:00:00+01:00"}, "RFC 3339"),
        ({"$datetime": "yesterday"}, "RFC 3339"),
        ({"$float": "1.5"}, "nan, inf or -inf"),
        ({"$float": 1.5}, "nan, inf or -inf"),
        ({"$float": ["nan"]}, "nan, inf or -inf"),
    ],
)
def test_a_word_used_wrongly_is_refused_by_path(data: object, message: str) -> None:
    with pytest.raises(ValueRefused) as caught:
        from_jsonable(data)
    assert message in str(caught.value)


@pytest.mark.parametrize("convert", [to_jsonable])
def test_what_json_cannot_say_is_refused(convert: Convert) -> None:
    with pytest.raises(ValueRefused, match=r"output\.a: set"):
        convert({"a": {1}})
    with pytest.raises(ValueRefused, match="keys must be str"):
        convert({1: 2})
