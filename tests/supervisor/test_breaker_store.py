"""Rows that supervisors share: one step at a time, seen by all, made whole."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from casemate.protocol.errors import CasemateError, UsageError
from casemate.protocol.pipeline import Breaker, OnOpen
from casemate.supervisor.breakers import BreakerDesk, BreakerStore, standing_of
from casemate.supervisor.core.breaker import (
    Claimed,
    Failed,
    Forced,
    Happening,
    Probe,
    Reset,
    Row,
    Standing,
)
from casemate.supervisor.core.commands import ForgetBreaker, TellBreaker
from casemate.supervisor.core.events import BreakerMoved
from fakes import wait_until

POLICY = Breaker(
    key="k",
    failures=100,
    window=None,
    open_for=30,
    backoff=2,
    max_open_for=60,
    on_open=OnOpen.KILL,
    wait=None,
)


class Once:
    """A store for one call, closed after it: a connection that is left to the collector is a
    warning from Python 3.13 on."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def rows(self) -> dict[str, Row]:
        with closing(BreakerStore(self._state)) as store:
            return store.rows()

    def row(self, key: str) -> Row:
        with closing(BreakerStore(self._state)) as store:
            return store.row(key)

    def step(self, key: str, now: float, happening: Happening) -> Row:
        with closing(BreakerStore(self._state)) as store:
            return store.step(key, now, happening)


def test_looking_makes_nothing_and_a_step_makes_it_whole(tmp_path: Path) -> None:
    store = BreakerStore(tmp_path)
    assert (store.rows(), store.row("k")) == ({}, Row())
    assert list(tmp_path.iterdir()) == []
    opened = store.step("k", 1.0, Forced(7))
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600
    store.close()
    assert Once(tmp_path).rows() == {"k": opened}


def test_no_failure_is_lost_where_many_count_at_once(tmp_path: Path) -> None:
    def count(task: str) -> None:
        store = BreakerStore(tmp_path)
        for attempt in range(12):
            store.step("k", time.time(), Failed(Probe("r", task, attempt), POLICY))
        store.close()

    threads = [threading.Thread(target=count, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Once(tmp_path).row("k").failures) == 96


def test_of_many_that_claim_the_probe_one_gets_it(tmp_path: Path) -> None:
    Once(tmp_path).step("k", 1.0, Forced(7))
    granted: list[bool] = []

    def claim(task: str) -> None:
        mine = Probe("r", task, 1)
        granted.append(Once(tmp_path).step("k", 8.5, Claimed(mine)).probe == mine)

    threads = [threading.Thread(target=claim, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted) == [False] * 7 + [True]


def test_a_desk_answers_in_order_and_tells_what_others_did_while_it_is_asked_to(
    tmp_path: Path,
) -> None:
    heard: list[BreakerMoved] = []
    errors: list[CasemateError] = []
    desk = BreakerDesk(tmp_path, heard.append, errors.append)
    desk.tell(TellBreaker(1, "k", None))
    desk.tell(TellBreaker(2, "k", Failed(Probe("r", "a", 1), POLICY)))
    desk.tell(TellBreaker(3, "other", None))
    wait_until(lambda: len(heard) == 3)
    assert [(each.number, each.key, len(each.row.failures)) for each in heard] == [
        (1, "k", 0), (2, "k", 1), (3, "other", 0),
    ]  # fmt: skip
    peer = BreakerStore(tmp_path)
    peer.step("k", time.time(), Forced(7))
    wait_until(lambda: len(heard) == 4)
    assert (heard[3].key, heard[3].number, heard[3].row.standing) == ("k", 3, Standing.OPEN)
    desk.tell(ForgetBreaker("k"))
    desk.tell(TellBreaker(4, "other", None))
    peer.step("k", time.time(), Reset())
    peer.step("other", time.time(), Forced(7))
    wait_until(lambda: heard[-1].row.standing is Standing.OPEN and heard[-1].key == "other")
    desk.close()
    peer.close()
    assert [each.key for each in heard[4:] if each.key == "k"] == []
    assert errors == []


def test_a_store_that_cannot_be_read_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)
    with pytest.raises(CasemateError, match=r"state\.db"):
        Once(tmp_path).rows()
    heard: list[BreakerMoved] = []
    errors: list[CasemateError] = []
    desk = BreakerDesk(tmp_path, heard.append, errors.append)
    desk.tell(TellBreaker(1, "k", None))
    desk.close()
    assert heard == []
    assert len(errors) == 1


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    Once(tmp_path).step("k", 1.0, Forced(7))
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(UsageError, match="version 9, expected 1"):
        Once(tmp_path).row("k")


def test_how_a_row_stands_is_told_in_plain_data(tmp_path: Path) -> None:
    row = Once(tmp_path).step("k", 1.0, Forced(7))
    assert msgspec.to_builtins(standing_of("k", row, 3.0)) == {
        "key": "k", "state": "open", "failures": 0, "open_for": 7.0, "opening": 1,
        "retry_in": 5.0, "probe": None,
    }  # fmt: skip
    assert standing_of("k", Row(), 3.0).retry_in is None
