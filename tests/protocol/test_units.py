"""Sizes and durations: what people write, what is refused, and that writing reads back."""

from __future__ import annotations

import pytest
from casemate.protocol.units import (
    DURATION_LIMIT,
    SIZE_LIMIT,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)
from hypothesis import example, given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("10B", 10),
        ("64k", 64 * 1024),
        ("64K", 64 * 1024),
        ("64KiB", 64 * 1024),
        ("64kib", 64 * 1024),
        ("64kB", 64_000),
        ("256MiB", 256 * 2**20),
        ("256 MiB", 256 * 2**20),
        ("256m", 256 * 2**20),
        ("5MB", 5_000_000),
        ("1.5GiB", 3 * 2**29),
        ("2t", 2 * 2**40),
        (SIZE_LIMIT, SIZE_LIMIT),
    ],
)
def test_a_size_is_read_as_people_mean_it(written: int | str, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [
        "",
        "MiB",
        "12 parsecs",
        "1e3",
        "-1",
        "1,5GiB",
        "0x10",
        "1MiBB",
        "\u0661k",
        1.5,
        True,
        None,
        [],
    ],
)
def test_what_is_not_a_size_is_told_what_one_looks_like(written: int | str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; write a number of bytes or a text such"):
        parse_size(written)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (-1, "-1 is negative; write a number of bytes"),
        (2**63, "is more than any host has"),
        ("9999999TiB", "is more than any host has"),
        ("0.3KiB", "'0.3KiB' is not a whole number of bytes"),
        ("9" * 10_000, "is not a size"),
    ],
)
def test_an_impossible_size_says_why(written: int | str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        parse_size(written)
    assert len(str(refusal.value)) < 200


@given(st.integers(0, SIZE_LIMIT))
@example(2**40)
@example(1023 * 1024)
def test_a_size_written_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (30, 30.0),
        (0.25, 0.25),
        ("30", 30.0),
        ("0.5", 0.5),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("1m 30s", 90.0),
        ("500ms", 0.5),
        ("1s500ms", 1.5),
        ("5m", 300.0),
        ("5ms", 0.005),
        ("2h", 7200.0),
        ("1.5h", 5400.0),
        ("1d2h3m4s5ms", 93784.005),
        (DURATION_LIMIT, DURATION_LIMIT),
    ],
)
def test_a_duration_is_read_as_people_mean_it(written: float | str, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "s",
        "30 sec",
        "30s1m",
        "1m1m",
        "1:30",
        "-5s",
        "1e3",
        "inf",
        "nan",
        "9" * 10000,
        float("inf"),
        float("nan"),
        True,
        None,
        [],
    ],
)
def test_what_is_not_a_duration_is_told_what_one_looks_like(written: float | str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration; write a number of seconds") as told:
        parse_duration(written)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("written", "message"), [(-0.1, "-0.1 is negative"), ("400d", "'400d' is more than a year")]
)
def test_an_impossible_duration_says_why(written: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_duration(written)


@given(st.floats(0, DURATION_LIMIT))
@example(0.1 + 0.2)
@example(5e-324)
@example(59.9999999)
def test_a_duration_written_reads_back(seconds: float) -> None:
    written = format_duration(seconds)
    assert len(written) > 64 or parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"), (30, "30s"), (90, "1m30s"), (0.5, "500ms"), (0.25, "250ms"), (1.5, "1.5s"),
        (7200, "2h"), (86400, "1d"), (600, "10m"), (0.0001, "0.0001s"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_a_person_would(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    ("size", "written"),
    [(0, "0B"), (1000, "1000B"), (1024, "1KiB"), (3 * 2**29, "1536MiB"), (2**40, "1TiB")],
)
def test_a_size_is_written_as_a_person_would(size: int, written: str) -> None:
    assert format_size(size) == written


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        ("10/min", (10, 60)),
        ("10 / m", (10, 60)),
        ("2/s", (2, 1)),
        ("100/hour", (100, 3600)),
        ("1/day", (1, 86400)),
        ("5/30s", (5, 30)),
        ("3/1m30s", (3, 90)),
        ("7/500ms", (7, 0.5)),
    ],
)
def test_a_rate_is_how_many_within_which_time(written: str, rate: tuple[int, float]) -> None:
    assert parse_rate(written) == rate
    assert parse_rate(format_rate(*rate)) == rate


@pytest.mark.parametrize(
    "written",
    ["", "10", "10/", "/min", "0/min", "1/0s", "-1/s", "1.5/s", "10/fortnight", "1/367d", "9" * 70],
)
def test_what_is_no_rate_is_told_what_one_looks_like(written: str) -> None:
    with pytest.raises(ValueError, match=r"write how many within which time, such as 10/min"):
        parse_rate(written)
