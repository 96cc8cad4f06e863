"""Sizes, durations and rates as people write them: `256MiB`, `64k`, `1m30s`, `500ms`, `10/min`.

Reading is exact (no floats on the way) and total: a text is a size, or an error that says what one
looks like. What `format_…` writes, `parse_…` reads back as the same number.

A bare letter means powers of 1024, as in `docker --memory` and systemd; `kB`, `MB` with the B are
powers of 1000, as in SI; `KiB`, `MiB` leave no doubt and are what we write ourselves. Letter case
does not matter: nobody means millibytes.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

__all__ = [
    "DURATION_LIMIT",
    "SIZE_LIMIT",
    "format_duration",
    "format_rate",
    "format_size",
    "parse_duration",
    "parse_rate",
    "parse_size",
]

# rlimits, file offsets and msgpack integers all hold this, and nothing we run on has as much.
SIZE_LIMIT = 2**63 - 1

# A year. More is a slip of units (milliseconds where seconds are meant), not a wish.
DURATION_LIMIT = 365 * 86400.0

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _SIZE_UNITS |= {
        _letter: 1024**_power,
        f"{_letter}ib": 1024**_power,
        f"{_letter}b": 1000**_power,
    }

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_DURATION = re.compile(
    r"(?:(?P<d>N)d)?\s*(?:(?P<h>N)h)?\s*(?:(?P<m>N)m(?!s))?\s*(?:(?P<s>N)s)?\s*(?:(?P<ms>N)ms)?"
    .replace("N", r"[0-9]+(?:\.[0-9]+)?"),
    re.ASCII,
)  # fmt: skip
_SECONDS = {
    "d": Fraction(86400),
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1000),
}

# Longer texts cannot be a number we accept; int() and Fraction() are quadratic in their digits.
_TEXT_SIZE = 64

# The units of a rate are those that people say: "ten a minute".
_PERIODS = {
    1.0: ("s", "sec", "second"),
    60.0: ("min", "m", "minute"),
    3600.0: ("h", "hour"),
    86400.0: ("d", "day"),
}
_PERIOD_OF = {name: seconds for seconds, names in _PERIODS.items() for name in names}
_RATE = re.compile(r"([0-9]{1,9})\s*/\s*(\S.*)", re.ASCII)

_SIZE_HELP = "write a number of bytes or a text such as 64KiB, 256MiB, 1.5GiB"
_DURATION_HELP = "write a number of seconds or a text such as 500ms, 30s, 1m30s, 2h"

_RATE_HELP = "write how many within which time, such as 10/min, 2/s, 100/h, 5/30s"


def parse_size(value: int | str) -> int:
    """Bytes. Raises ValueError with a message for people."""
    # bool is an int to Python and a mistake to everybody else
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a size; {_SIZE_HELP}")
    if isinstance(value, str):
        text = value.strip()
        match = _SIZE.fullmatch(text) if len(text) <= _TEXT_SIZE else None
        unit = _SIZE_UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f"{_shown(value)} is not a size; {_SIZE_HELP}")
        exact = Fraction(match[1]) * unit
        if exact.denominator != 1:
            raise ValueError(f"{_shown(value)} is not a whole number of bytes")
        size = exact.numerator
    else:
        size = value
    if size < 0:
        raise ValueError(f"{value} is negative; {_SIZE_HELP}")
    if size > SIZE_LIMIT:
        raise ValueError(f"{_shown(value)} is more than any host has (8EiB)")
    return size


def format_size(size: int) -> str:
    """Exact: the largest unit that leaves no rest."""
    for letter, power in (("T", 4), ("G", 3), ("M", 2), ("K", 1)):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{letter}iB"
    return f"{size}B"


def parse_duration(value: float | str) -> float:
    """Seconds. Raises ValueError with a message for people."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a duration; {_DURATION_HELP}")
    if isinstance(value, str):
        text = value.strip()
        seconds = _seconds(text) if 0 < len(text) <= _TEXT_SIZE else None
        if seconds is None:
            raise ValueError(f"{_shown(value)} is not a duration; {_DURATION_HELP}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} is not a duration; {_DURATION_HELP}")
    else:
        seconds = Fraction(value)
    if seconds < 0:
        raise ValueError(f"{value} is negative; {_DURATION_HELP}")
    if seconds > DURATION_LIMIT:
        raise ValueError(f"{_shown(value)} is more than a year; {_DURATION_HELP}")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Exact: `1m30s`, `500ms`, `0.0001s`."""
    rest = Decimal(repr(float(seconds)))
    if 0 < rest < 1 and rest * 1000 == int(rest * 1000):
        return f"{int(rest * 1000)}ms"
    text = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        count = int(rest // size)
        if count:
            text += f"{count}{unit}"
            rest -= count * size
    if rest or not text:
        digits = f"{rest:f}"
        text += (digits.rstrip("0").rstrip(".") if "." in digits else digits) + "s"
    return text


def parse_rate(value: str) -> tuple[int, float]:
    """How many, within how many seconds. Raises ValueError with a message for people."""
    text = value.strip() if isinstance(value, str) else ""
    match = _RATE.fullmatch(text) if len(text) <= _TEXT_SIZE else None
    seconds = None
    if match is not None:
        seconds = _PERIOD_OF.get(match[2]) or _seconds(match[2])
    if match is None or not seconds or int(match[1]) == 0:
        raise ValueError(f"{_shown(value)} is not a rate; {_RATE_HELP}")
    if seconds > DURATION_LIMIT:
        raise ValueError(f"{_shown(value)}: more than a year; {_RATE_HELP}")
    return int(match[1]), float(seconds)


def format_rate(limit: int, period: float) -> str:
    """Exact: `10/min`, `3/1m30s`."""
    return f"{limit}/{_PERIODS[period][0] if period in _PERIODS else format_duration(period)}"


def _seconds(text: str) -> Fraction | None:
    if _NUMBER.fullmatch(text):  # "30", as a flag or an environment variable gives it
        return Fraction(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    return sum(
        (Fraction(count) * _SECONDS[unit] for unit, count in match.groupdict().items() if count),
        Fraction(0),
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _TEXT_SIZE else text[:_TEXT_SIZE] + "…"
