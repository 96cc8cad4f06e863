"""A whole terminal: keys in, lines out.

While it is entered the terminal shows its other screen, echoes nothing and hands over each key as
it is pressed, ^C and ^Z among them; whatever happens it is given back as it was. A line is written
only where it differs from what is there: over ssh a redrawn screen of 200×50 four times a second
would be more than the events themselves. There is no mouse: selecting text stays the terminal's.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import shutil
import termios
import tty
from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.console import Console
from rich.text import Text

__all__ = ["Keys", "Terminal"]

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # the other screen, no cursor, no wrapping
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"

# What terminals send, xterm's and the application variant that tmux and screen may use.
_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left",
    "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[5~": "pageup", "[6~": "pagedown",
    "[H": "home", "[F": "end", "OH": "home", "OF": "end",
    "[1~": "home", "[4~": "end", "[7~": "home", "[8~": "end",
}  # fmt: skip
_SINGLE = {"\r": "enter", "\n": "enter", "\x03": "ctrl+c"}

# An escape that nothing follows for so long was the key itself: ssh may cut a sequence in two.
ESCAPE_SECONDS = 0.05


class Keys:
    """Names of keys, out of the bytes that a terminal sends, however they are cut."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._rest = ""

    def feed(self, sent: bytes) -> list[str]:
        self._rest += self._decoder.decode(sent)
        keys = []
        while self._rest:
            length, key = self._next()
            if not length:
                break
            self._rest = self._rest[length:]
            if key is not None:
                keys.append(key)
        return keys

    @property
    def is_waiting(self) -> bool:
        """For what an escape may be the beginning of."""
        return bool(self._rest)

    def settle(self) -> list[str]:
        """Nothing more has come."""
        rest, self._rest = self._rest, ""
        return ["escape"] if rest else []

    def _next(self) -> tuple[int, str | None]:
        """The length of the next key, and its name where it has one; 0: it is not whole yet."""
        first = self._rest[0]
        if first != "\x1b":
            return 1, _SINGLE.get(first, first if first.isprintable() else None)
        if len(self._rest) == 1:
            return 0, None
        if self._rest[1] not in "[O":
            return 1, "escape"
        for at, character in enumerate(self._rest[2:], 2):
            if "@" <= character <= "~":
                return at + 1, _SEQUENCES.get(self._rest[1 : at + 1])
        return 0, None


class Terminal:
    """Use it as a context manager, within a loop."""

    def __init__(self, source: int, target: int, press: Callable[[str], None]) -> None:
        """`press`: called with each key."""
        self._source = source
        self._target = target
        self._press = press
        self._keys = Keys()
        self._before: list[Any] = []
        self._painted: list[str] = []
        self._size = (0, 0)
        self._console = Console(force_terminal=True, highlight=False, emoji=False, markup=False)
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._source)
        self.take()
        self._loop.add_reader(self._source, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._source)
        if self._waiting is not None:
            self._waiting.cancel()
        self._write(_LEAVE)
        termios.tcsetattr(self._source, termios.TCSADRAIN, self._before)

    def take(self) -> None:
        """Make it ours, again after a shell had it (`fg`)."""
        tty.setraw(self._source)
        self._write(_ENTER)
        self._painted = []

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(self._target)
        except OSError:
            columns, rows = shutil.get_terminal_size()
        return max(columns, 1), max(rows, 1)

    def paint(self, lines: Sequence[Text]) -> None:
        """The screen from its first line on, as large as it was when `size` was asked."""
        width, height = size = self.size()
        out = []
        if size != self._size:
            self._size, self._painted = size, []
            out.append("\x1b[2J")
        shown = [self._styled(line, width) for line in lines[:height]]
        self._painted += [""] * (height - len(self._painted))
        for row, line in enumerate(shown):
            if line != self._painted[row]:
                # Erased first: at the end of a full line the cursor stands on its last character.
                out.append(f"\x1b[{row + 1};1H\x1b[2K{line}")
                self._painted[row] = line
        if out:
            self._write("".join(out))

    def _styled(self, line: Text, width: int) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", no_wrap=True, crop=True, width=width)
        return captured.get()

    def _read(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        try:
            sent = os.read(self._source, 1024)
        except OSError:
            sent = b""
        if not sent:  # the terminal is gone
            self._loop.remove_reader(self._source)
            self._press("ctrl+c")
            return
        for key in self._keys.feed(sent):
            self._press(key)
        if self._keys.is_waiting:
            self._waiting = self._loop.call_later(ESCAPE_SECONDS, self._settle)

    def _settle(self) -> None:
        for key in self._keys.settle():
            self._press(key)

    def _write(self, text: str) -> None:
        left = memoryview(text.encode())
        while left:
            try:
                left = left[os.write(self._target, left) :]
            except OSError:  # gone: the reader is told, and ends it
                return
