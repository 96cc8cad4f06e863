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

Whoever says something never waits for whoever reads it: a thread writes. While a reader stands
still lines wait, up to a bound; beyond it they are counted, and the number takes their place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections import deque
from datetime import UTC, datetime

__all__ = ["keep_quiet", "set_up"]

# One line. The last words of a process that died may be a traceback.
_LENGTH = 4000

# Lines that wait for a reader: some megabytes at the most.
_WAITING_LINES = 1000
# How long a process that ends waits for whoever reads them; one who reads takes a millisecond.
_PARTING_SECONDS = 1.0

_STDERR = 2

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
        old.flush()
        old.close()
    logger.propagate = log == "off"
    if log == "off" or sys.stderr is None:  # then its number may be another file's
        keep_quiet()
        return
    handler = _Lines()
    handler.setFormatter(_Json() if log == "json" else _Words(with_time=log == "text"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if log == "warnings" else logging.INFO)


class _Lines(logging.Handler):
    """Ours. A reader that went away ends no engine, and one that stands still holds up none.

    It is not O_NONBLOCK that sees to it: others write to the same stderr, and would have it too.
    Nor is it sys.stderr that is written to: a thread that is stuck there holds its lock, and an
    interpreter that ends then aborts.
    """

    def __init__(self) -> None:
        super().__init__()
        assert self.lock is not None
        # Logging's lock, which is made anew in a child that forks.
        self._changed = threading.Condition(self.lock)
        self._waiting: deque[bytes] = deque()  # the first stays until it is written
        self._left_out = 0
        self._writer: threading.Thread | None = None
        self._is_closed = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._writer is None:
            self._start()
        # Once one was left out all are, until those before it are through: so the number that
        # takes their place stands where they would.
        if self._left_out or len(self._waiting) >= _WAITING_LINES:
            self._left_out += 1
            return
        self._waiting.append(self._line(record))
        self._changed.notify_all()

    def flush(self) -> None:
        """Until all is written, or nobody has read it for a while. Logging calls it at the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, _PARTING_SECONDS)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def _start(self) -> None:
        writer = threading.Thread(target=self._write, name="casemate-log", daemon=True)
        # Where no more threads are to be had it is tried again with the next line.
        with contextlib.suppress(RuntimeError):
            writer.start()
            self._writer = writer

    def _write(self) -> None:
        """The thread's whole life."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                rest = self._waiting[0]
            with contextlib.suppress(OSError):
                while rest:
                    rest = rest[os.write(_STDERR, rest) :]
            with self._changed:
                self._waiting.popleft()
                if self._left_out and not self._waiting:
                    self._waiting.append(self._line(self._count()))
                self._changed.notify_all()

    def _count(self) -> logging.LogRecord:
        words, self._left_out = f"{self._left_out} lines were left out here", 0
        return _warning(words)

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            words = self.format(record)
        except Exception as error:  # as every handler of logging: no line ends who says it
            words = self.format(_warning(f"{record.name} said what is no line: {error!r}"))
        return words.encode("utf-8", "backslashreplace") + b"\n"


def _warning(words: str) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "casemate", "levelno": logging.WARNING, "levelname": "WARNING", "msg": words}
    )


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
