"""Which lines two texts have in common, at a bounded price.

Myers' greedy algorithm finds the shortest edit in time (lines × edits): at once for what people
and agents do to a file. Where there are too many edits, the lines that occur once in either text
and in the same order on both sides (Cohen's patience diff) cut the texts into pieces, each tried
again. What has no such line either, or comes when the effort is spent, is taken as replaced whole:
a coarser diff, never a wrong one.

difflib is the road not taken: it is cubic for texts made to be so, and the texts are an agent's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

__all__ = ["Effort", "changed_blocks"]

# Edits in one piece that Myers is tried for. Its memory is the square of this.
_EDITS = 200

# Steps of its inner loop for one pair of texts: two seconds (Python 3.11, 2-core VM). A 10 000-line
# file with a hundred scattered edits takes a third of it.
_STEPS_EACH = 4_000_000

# and for all the texts that share an Effort.
_STEPS_ALL = 60_000_000


class Effort:
    """Steps left, for all the texts of one patch and for the pair at hand."""

    def __init__(self, total: int = _STEPS_ALL, each: int = _STEPS_EACH) -> None:
        self._each = each
        self._total = total
        self._left = 0

    def begin(self) -> None:
        self._left = min(self._each, self._total)

    def spend(self, steps: int) -> None:
        self._left -= steps
        self._total -= steps

    @property
    def is_spent(self) -> bool:
        return self._left <= 0


Block = tuple[int, int, int, int]


def changed_blocks(old: Sequence[bytes], new: Sequence[bytes], effort: Effort) -> list[Block]:
    """What differs, in order: (from, to) in `old` and (from, to) in `new`; all else is equal."""
    numbers: dict[bytes, int] = {}
    a = [numbers.setdefault(line, len(numbers)) for line in old]
    b = [numbers.setdefault(line, len(numbers)) for line in new]
    effort.begin()
    blocks: list[Block] = []
    waiting = [(0, len(a), 0, len(b))]
    while waiting:
        alo, ahi, blo, bhi = waiting.pop()
        while alo < ahi and blo < bhi and a[alo] == b[blo]:
            alo, blo = alo + 1, blo + 1
        while alo < ahi and blo < bhi and a[ahi - 1] == b[bhi - 1]:
            ahi, bhi = ahi - 1, bhi - 1
        if alo == ahi and blo == bhi:
            continue
        common = None
        if alo < ahi and blo < bhi and not effort.is_spent:
            piece_a, piece_b = a[alo:ahi], b[blo:bhi]
            common = _shortest(piece_a, piece_b, effort)
            if common is not None:
                blocks += _between(common, alo, ahi, blo, bhi)
                continue
            common = _anchors(piece_a, piece_b)
        if not common:
            blocks.append((alo, ahi, blo, bhi))
            continue
        waiting += _between(common, alo, ahi, blo, bhi)
    blocks.sort()
    return _joined(blocks)


def _between(common: list[tuple[int, int]], alo: int, ahi: int, blo: int, bhi: int) -> list[Block]:
    """The pieces before, between and behind lines that are common, where there is anything."""
    pieces = []
    a, b = alo, blo
    for x, y in [*((alo + x, blo + y) for x, y in common), (ahi, bhi)]:
        if a < x or b < y:
            pieces.append((a, x, b, y))
        a, b = x + 1, y + 1
    return pieces


def _joined(blocks: list[Block]) -> list[Block]:
    joined: list[Block] = []
    for block in blocks:
        if joined and joined[-1][1] == block[0] and joined[-1][3] == block[2]:
            last = joined.pop()
            block = (last[0], block[1], last[2], block[3])
        joined.append(block)
    return joined


def _shortest(a: list[int], b: list[int], effort: Effort) -> list[tuple[int, int]] | None:
    """Pairs of equal lines, as many as can be; None where that takes too long."""
    n, m = len(a), len(b)
    limit = min(n + m, _EDITS)
    # furthest[k]: how far into `a` one gets on diagonal k (x - y) with the edits so far; negative
    # indices are diagonals too. -1: not reached.
    furthest = [-1] * (2 * limit + 3)
    before: list[list[int]] = []
    for edits in range(limit + 1):
        before.append(furthest[:])
        steps = len(furthest) // 8
        for k in range(-edits, edits + 1, 2):
            x = _reached(furthest, k, n, m) if edits else 0
            if x < 0:
                furthest[k] = -1
                continue
            y = x - k
            start = x
            while x < n and y < m and a[x] == b[y]:
                x, y = x + 1, y + 1
            steps += x - start + 2
            furthest[k] = x
            if x == n and y == m:
                effort.spend(steps)
                return _traced(before, n, m)
        effort.spend(steps)
        if effort.is_spent:
            return None
    return None


def _reached(furthest: list[int], k: int, n: int, m: int) -> int:
    """How far one edit more leads on diagonal k: a line of `b` added, or one of `a` deleted."""
    added = furthest[k + 1]
    if added - k > m:
        added = -1
    deleted = furthest[k - 1]
    deleted = deleted + 1 if 0 <= deleted < n else -1
    return max(added, deleted)


def _traced(before: list[list[int]], n: int, m: int) -> list[tuple[int, int]]:
    common = []
    x, y = n, m
    for edits in range(len(before) - 1, -1, -1):
        k = x - y
        start = _reached(before[edits], k, n, m) if edits else 0
        while x > start:
            x, y = x - 1, y - 1
            common.append((x, y))
        if edits:
            if before[edits][k + 1] == start and start - k <= m:
                y -= 1
            else:
                x -= 1
    common.reverse()
    return common


def _anchors(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    """Lines that occur once in either, the longest run of them that is in order in both."""
    once_a = {line for line, count in Counter(a).items() if count == 1}
    once_b = {line for line, count in Counter(b).items() if count == 1}
    place = {line: x for x, line in enumerate(a) if line in once_a and line in once_b}
    pairs = [(place[line], y) for y, line in enumerate(b) if line in place]
    # the longest rising run, by piles of patience
    tops: list[int] = []
    top_pair: list[int] = []
    previous = [-1] * len(pairs)
    for index, (x, _) in enumerate(pairs):
        pile = bisect_left(tops, x)
        if pile:
            previous[index] = top_pair[pile - 1]
        if pile == len(tops):
            tops.append(x)
            top_pair.append(index)
        else:
            tops[pile] = x
            top_pair[pile] = index
    run = []
    index = top_pair[-1] if top_pair else -1
    while index >= 0:
        run.append(pairs[index])
        index = previous[index]
    run.reverse()
    return run
