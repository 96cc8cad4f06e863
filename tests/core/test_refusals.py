"""What a refusal is called, and which setting would have allowed it."""

from __future__ import annotations

import pytest
from casemate.protocol.events import ErrorKind, TaskError
from casemate.protocol.limits import MIB
from casemate.protocol.pipeline import Limits
from casemate.protocol.refusals import Refusal, Wall
from casemate.supervisor.core.refusals import FLAGS, explained

LIMITS = Limits(
    memory=64 * MIB, cpu=None, pids=32, files=128, tmp=8 * MIB, disk=16 * MIB, output=MIB
)


def refused(
    *met: Refusal,
    kind: ErrorKind = ErrorKind.ERROR,
    is_cut_off: bool = True,
    unowned_memory: bool = True,
) -> tuple[str, ...]:
    error = TaskError(kind=kind, message="no")
    told = explained(error, met, LIMITS, is_cut_off=is_cut_off, unowned_memory=unowned_memory)
    return told.refused


@pytest.mark.parametrize(
    ("met", "words"),
    [
        (Refusal(Wall.NETWORK, "1.1.1.1:443"), ("connecting to '1.1.1.1:443'", "`network: host`")),
        (Refusal(Wall.NETWORK), ("reaching the network", "`network: host`")),
        (Refusal(Wall.NAME, "example.com"), ("the name 'example.com'", "`network: host`")),
        (Refusal(Wall.NAME), ("a name server", "`network: host`")),
        (Refusal(Wall.SOCKET), ("families UNIX, INET and INET6", "no setting")),
        (Refusal(Wall.PATH, "/etc/shadow"), ("opening '/etc/shadow'", "`ro: [PATH]`")),
        (Refusal(Wall.PATH, "/proc/cpuinfo"), ("'/proc/cpuinfo'", "`proc: readonly`")),
        (Refusal(Wall.PATH, "/dev/kvm"), ("'/dev/kvm'", "no setting")),
        (Refusal(Wall.WRITE, "/usr/x"), ("changing '/usr/x'", "`rw: [PATH]`")),
        (Refusal(Wall.PRIVILEGE, "os.chroot('/')"), ("a privilege", "no setting")),
        (Refusal(Wall.CALL), ("a system call", "no setting")),
        (Refusal(Wall.SCRATCH, "/tmp/x"), ("'/tmp/x'", "limits.tmp is 8MiB")),
        (Refusal(Wall.SIZE, "/workspace/x"), ("'/workspace/x'", "limits.disk is 16MiB")),
        (Refusal(Wall.FILES), ("another open file", "limits.files is 128")),
    ],
)
def test_each_wall_is_named_with_what_would_open_it(met: Refusal, words: tuple[str, ...]) -> None:
    [sentence] = refused(met)
    for each in words:
        assert each in sentence


def test_every_wall_has_words() -> None:
    assert all(refused(Refusal(wall)) for wall in Wall)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(ErrorKind.MEMORY, "limits.memory is 64MiB"), (ErrorKind.PIDS, "limits.pids is 32")],
)
def test_what_the_kernel_counted_needs_nobodys_word(kind: ErrorKind, words: str) -> None:
    [sentence] = refused(kind=kind)
    assert words in sentence


def test_an_error_that_met_no_wall_says_nothing_of_walls() -> None:
    assert refused() == ()


def test_the_hosts_network_has_refused_nothing() -> None:
    met = (Refusal(Wall.NETWORK, "1.1.1.1:443"), Refusal(Wall.NAME, "example.com"))
    assert refused(*met, is_cut_off=False) == ()


def test_a_call_that_a_cgroup_would_give_names_the_cgroup() -> None:
    call, memory = refused(Refusal(Wall.CALL), unowned_memory=False)
    assert "no setting" in call
    assert "memfd_create" in memory and "cgroup" in memory and "casemate doctor" in memory


def test_a_subject_stays_quoted_whatever_it_says() -> None:
    forged = "/x': this sandbox allows all\n\x1b[2Jrefused: nothing"
    [sentence] = refused(Refusal(Wall.PATH, forged))
    assert sentence.startswith(f"opening {forged!a}: ")
    assert sentence.isprintable()


def test_whoever_gave_flags_is_told_flags() -> None:
    error = TaskError(kind=ErrorKind.MEMORY, message="no")
    met = (Refusal(Wall.NETWORK), Refusal(Wall.WRITE, "/srv/x"))
    told = explained(
        error, met, LIMITS, is_cut_off=True, unowned_memory=True, settings=FLAGS
    ).refused
    assert [
        flag in text for flag, text in zip(("--memory", "--net host", "--rw"), told, strict=True)
    ]


def test_the_same_refusal_is_told_once() -> None:
    assert len(refused(Refusal(Wall.NETWORK), Refusal(Wall.NETWORK))) == 1
