"""What casemate says of itself, for operators: facts about its own processes, never a task's words.

Everything goes to the standard library's loggers below `casemate`, and nobody hears of it unless he
asked: a library that embeds us decides by its own logging configuration what becomes of it, and the
processes that are ours (the commands, and the engine wherever it runs) write on stderr what `log`
of the configuration says:

    off         nothing
    warnings    a line of words for what an operator has to know; the default of the commands
    text        also what goes on: runs taken and let go of, who was steered, processes that died
    json        the same as one JSON object a line

The engine tells of the front and of the zygote, whose deaths it learns of and whose last words it
has; they have no log of their own. A run's own events are not in it: those are in its journal.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

__all__ = ["keep_quiet", "set_up"]

# One line. The last words of a process that died may be a traceback.
_LENGTH = 4000

# What every record has: whatever else is in one was given as `extra`.
_COMMON = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def keep_quiet() -> None:
    """As a library should: logging's last resort would print warnings on its host's stderr."""
    logging.getLogger("casemate").addHandler(logging.NullHandler())


def set_up(log: str) -> None:
    """Of this process. Whatever its root logger has goes on as it was."""
    logger = logging.getLogger("casemate")
    for old in [each for each in logger.handlers if isinstance(each, _Lines)]:
        logger.removeHandler(old)
    logger.propagate = log == "off"
    if log == "off":
        keep_quiet()
        return
    handler = _Lines(sys.stderr)
    handler.setFormatter(_Json() if log == "json" else _Words(with_time=log == "text"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if log == "warnings" else logging.INFO)


class _Lines(logging.StreamHandler):  # type: ignore[type-arg] # of 3.11's logging it has none
    """Ours. A reader that went away ends no engine."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        return


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": _at(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage()[:_LENGTH],
        }
        line |= {key: each for key, each in vars(record).items() if key not in _COMMON}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Words(logging.Formatter):
    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        words = record.getMessage()
        if record.exc_info:
            words += f"\n{self.formatException(record.exc_info)}"
        words = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode()
            for each in words[:_LENGTH]
        )
        if not self._with_time:
            return f"casemate: {words}"
        clock = _at(record).astimezone().strftime("%H:%M:%S")
        return f"{clock} {record.levelname.lower()} {record.name}: {words}"


def _at(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
