"""What a service manager is told (`supervisor/notify.py`)."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import pytest
from casemate.supervisor.notify import Notifier


def listen(address: str) -> socket.socket:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
    manager.settimeout(60)
    return manager


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@casemate-{uuid.uuid4().hex}" if request.param == "abstract" else f"{tmp_path}/notify"


def test_it_is_told_where_it_listens_and_what_we_start_is_not_told_where(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with listen(address) as manager:
        notifier = Notifier()
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
        assert notifier.watchdog == 1.5
        notifier.ready("serving /var/lib/casemate")
        notifier.stopping("about to end", 90)
        assert manager.recv(1000).decode().split("\n") == [
            "READY=1",
            "STATUS=serving /var/lib/casemate",
        ]
        assert manager.recv(1000).decode().split("\n") == [
            "STOPPING=1",
            "STATUS=about to end",
            "EXTEND_TIMEOUT_USEC=90000000",
        ]


def test_a_manager_that_is_gone_or_reads_nothing_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{tmp_path}/notify"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier()
    notifier.ready("nobody is there")
    with listen(address):
        for _ in range(10_000):  # more than a socket holds
            notifier.tell(WATCHDOG=1)


def test_without_a_manager_nothing_is_told_and_another_ones_watchdog_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1500000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    notifier = Notifier()
    notifier.ready("nobody asked")
    assert notifier.watchdog is None
