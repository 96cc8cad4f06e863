"""What a host gives: every refusal says why and what to do. Hosts are pretended, and this one is
looked at."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.errors import SetupRefused
from casemate.sandbox import probe as probing
from casemate.sandbox import syscalls
from casemate.sandbox.cgroup import CgroupFacts, Hierarchy
from casemate.sandbox.plan import make_plan
from casemate.sandbox.probe import (
    TRIAL,
    Container,
    Host,
    Probe,
    Tried,
    has_reserved_ids,
    judge,
)
from casemate.sandbox.spec import FIRST_RESERVED_ID, Mode, SandboxSpec
from sealed import LIMITS, this_host

WORKED = {name: Tried() for name in TRIAL}
DENIED = Tried(errno.EPERM, "unshare: Operation not permitted")
NO_CGROUPS = CgroupFacts(Hierarchy.V2, (), ("controllers not to be had",), "Delegate them.")


def judged(cgroups: CgroupFacts = NO_CGROUPS, **fields: Any) -> Probe:
    host = {
        "kernel": (6, 1),
        "euid": 1000,
        "reserved_ids": False,
        "tried": WORKED,
        "sysctls": {},
        "landlock_abi": 4,
        **fields,
    }
    return judge(Host(**host), prefix="/usr", prefixes=("/usr",), cgroups=cgroups)


def failed(*names: str, **more: Tried) -> dict[str, Tried]:
    return {**WORKED, **dict.fromkeys(names, DENIED), **more}


def test_this_host_gives_every_wall() -> None:
    facts = this_host().facts
    missing = [
        f"{fact.name}: {fact.detail}. {fact.remedy}"
        for fact in facts.values()
        if not fact.present and fact.name != "reserved ids" and not fact.name.endswith("limit")
    ]
    assert missing == [], "the tests of the walls need all of them"


def test_looking_changes_nothing_here() -> None:
    names = ("mnt", "net", "pid", "user")
    before = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    probing.probe()
    assert [os.readlink(f"/proc/self/ns/{name}") for name in names] == before


def test_whoever_is_root_over_the_hosts_ids_hands_out_uids() -> None:
    assert this_host().privileged == (os.geteuid() == 0)


@pytest.mark.parametrize(
    ("uid_map", "expected"),
    [
        ("         0          0 4294967295\n", True),
        ("         0     100000      65536\n", False),
        ("      1000       1000          1\n", False),
        (f"  0 0 1000\n {FIRST_RESERVED_ID} {FIRST_RESERVED_ID} 100000\n", True),
        ("", False),
    ],
)
def test_reserved_ids_must_exist_in_our_user_namespace(uid_map: str, expected: bool) -> None:
    assert has_reserved_ids(uid_map) == expected


def test_all_is_well_where_all_is_given() -> None:
    facts = judged(euid=0, reserved_ids=True).facts
    walls = [name for name in facts if not name.endswith("limit")]
    assert all(facts[name].present for name in walls)


def test_every_absence_has_a_reason_and_a_remedy() -> None:
    nothing = judged(
        kernel=(5, 4),
        tried=failed(*TRIAL),
        landlock_abi=0,
        landlock_errno=errno.ENOSYS,
        seccomp_errno=errno.EINVAL,
        unreadable="/root/python/lib",
    )
    for fact in nothing.facts.values():
        assert not fact.present
        assert fact.detail
    remedies = [fact.remedy for fact in nothing.facts.values()]
    assert sum(1 for remedy in remedies if not remedy) == 0


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"sysctls": {"kernel/apparmor_restrict_unprivileged_userns": "1"}}, "AppArmor"),
        ({"sysctls": {"kernel/unprivileged_userns_clone": "0"}}, "unprivileged_userns_clone=1"),
        ({"sysctls": {"user/max_user_namespaces": "0"}}, "max_user_namespaces=10000"),
        ({"container": Container.DOCKER}, "--security-opt"),
        ({}, "CONFIG_USER_NS"),
    ],
)
def test_the_remedy_for_missing_user_namespaces_fits_the_host(
    fields: dict[str, Any], word: str
) -> None:
    fact = judged(tried={"user": DENIED}, **fields).facts["user"]
    assert not fact.present
    assert "Operation not permitted" in fact.detail
    assert word in fact.remedy


def test_ubuntus_apparmor_lets_the_namespace_be_made_and_takes_the_power_away() -> None:
    sysctls = {"kernel/apparmor_restrict_unprivileged_userns": "1"}
    facts = judged(tried={"user": Tried(), "pid": DENIED}, sysctls=sysctls).facts
    assert "AppArmor" in facts["pid"].remedy
    assert not facts["mount"].present, "what could not be tried is not there"
    assert "pid wall failed before it" in facts["mount"].detail
    assert "AppArmor" in facts["mount"].remedy


def test_masked_proc_of_a_container_is_explained() -> None:
    fact = judged(tried=failed("proc"), container=Container.DOCKER).facts["proc"]
    assert "systempaths=unconfined" in fact.remedy
    bare = judged(tried=failed("proc")).facts["proc"]
    assert "/proc" in bare.remedy


def test_layers_that_cannot_be_had_are_said_to_be_copied_instead() -> None:
    fact = judged(tried=failed("overlay"), container=Container.DOCKER).facts["overlay"]
    assert not fact.present
    assert "copied" in fact.remedy
    assert "volume" in fact.remedy
    assert "Linux 5.13" in fact.remedy
    assert (
        "Linux 5.19" in judged(tried=failed("overlay"), reserved_ids=True).facts["overlay"].remedy
    )


def test_a_kernel_before_landlock_is_too_old() -> None:
    assert not judged(kernel=(5, 12)).facts["kernel"].present
    assert judged(kernel=(5, 13)).facts["kernel"].present


def test_an_interpreter_that_strangers_cannot_read_is_named() -> None:
    fact = judged(euid=0, reserved_ids=True, unreadable="/root/py/bin/python3").facts["python"]
    assert "/root/py/bin/python3" in fact.detail
    assert "chmod" in fact.remedy


def test_limits_say_what_holds_them() -> None:
    facts = judged().facts
    assert facts["memory limit"].detail.startswith("sampled")
    assert facts["cpu limit"].detail.startswith("not held")
    assert facts["memory limit"].remedy == "Delegate them."


@pytest.mark.parametrize(("release", "version"), [("6.18.44-fc", (6, 18)), ("5.13", (5, 13))])
def test_kernel_versions_are_read(release: str, version: tuple[int, int]) -> None:
    assert probing.kernel_version(release) == version


def test_a_release_that_is_none_is_refused() -> None:
    with pytest.raises(SetupRefused, match="mainline"):
        probing.kernel_version("mainline")


def test_a_trial_that_breaks_off_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "TRIAL_PROGRAM", "raise SystemExit('no luck')")
    with pytest.raises(SetupRefused, match="no luck"):
        probing.run_trial(unprivileged=True)


# --- what can be told apart ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "detail", "remedy"),
    [
        (errno.ENOSYS, "this kernel has no Landlock", "CONFIG_SECURITY_LANDLOCK"),
        (errno.EOPNOTSUPP, "not switched on", "lsm=landlock"),
        (errno.EPERM, r"refused \(EPERM\), by a filter", "outside of that sandbox"),
    ],
)
def test_landlock_is_not_built_in_not_switched_on_or_refused(
    answer: int, detail: str, remedy: str
) -> None:
    fact = judged(landlock_abi=0, landlock_errno=answer).facts["landlock"]
    assert not fact.present
    assert re.search(detail, fact.detail)
    assert remedy in fact.remedy


@pytest.mark.parametrize("version", range(1, 9))
def test_what_an_old_abi_cannot_refuse_is_said(version: int) -> None:
    fact = judged(landlock_abi=version).facts["landlock"]
    assert fact.present
    assert fact.detail.startswith(f"ABI {version}")
    assert ("truncating" in fact.detail) == (version < 3)
    assert ("requests to devices" in fact.detail) == (version < 5)
    assert ("abstract sockets" in fact.detail) == (version < 6)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (errno.ENOSYS, "no seccomp filters"),
        (errno.EINVAL, "no seccomp filters"),
        (errno.EPERM, r"refused \(EPERM\)"),
        (errno.EACCES, r"refused \(EACCES\)"),
    ],
)
def test_seccomp_is_not_built_in_or_refused(answer: int, detail: str) -> None:
    fact = judged(seccomp_errno=answer).facts["seccomp"]
    assert not fact.present
    assert re.search(detail, fact.detail)
    assert fact.remedy


@pytest.mark.parametrize(
    ("container", "word"),
    [
        (Container.DOCKER, "systempaths=unconfined"),
        (Container.PODMAN, "unmask=ALL"),
        (Container.KUBERNETES, "procMount: Unmasked"),
        (Container.ANOTHER, "the whole of /proc"),
    ],
)
def test_each_container_has_words_of_its_own(container: Container, word: str) -> None:
    for name in ("user", "pid", "proc"):
        assert word in judged(tried=failed(name), container=container).facts[name].remedy
    refused = judged(landlock_abi=0, landlock_errno=errno.EPERM, container=container)
    assert word in refused.facts["landlock"].remedy


@pytest.mark.parametrize(
    ("mark", "text", "container"),
    [
        (".dockerenv", "", Container.DOCKER),
        ("run/.containerenv", "", Container.PODMAN),
        ("run/secrets/kubernetes.io/x", "", Container.KUBERNETES),
        ("run/systemd/container", "podman\n", Container.PODMAN),
        ("run/systemd/container", "lxc\n", Container.ANOTHER),
        ("etc/hostname", "plain\n", None),
    ],
)
def test_a_container_is_known_by_its_marks(
    tmp_path: Path, mark: str, text: str, container: Container | None
) -> None:
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).write_text(text)
    assert probing.find_container(tmp_path) is container


MASKED = """\
25 1 0:5 / /proc rw,nosuid - proc proc rw
31 25 0:6 /null /proc/kcore rw - devtmpfs devtmpfs rw
32 25 0:7 / /proc/acpi ro - tmpfs tmpfs ro
33 25 0:5 /sys /proc/sys ro - proc proc rw
"""


def test_what_covers_parts_of_proc_is_named() -> None:
    over = probing.mounted_over_proc(MASKED)
    assert over == ("/proc/acpi", "/proc/kcore", "/proc/sys")
    fact = judged(tried=failed("proc"), over_proc=over).facts["proc"]
    assert "/proc/acpi, /proc/kcore, /proc/sys" in fact.remedy


def test_without_proc_or_with_half_of_it_the_refusal_says_so(tmp_path: Path) -> None:
    with pytest.raises(SetupRefused, match=r"not mounted.*Remedy: mount -t proc"):
        probing.check_proc(tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").touch()
    with pytest.raises(SetupRefused, match=r"subset=pid.*Remedy"):
        probing.check_proc(tmp_path)
    (tmp_path / "sys/kernel").mkdir(parents=True)
    probing.check_proc(tmp_path)


@pytest.mark.parametrize(
    ("platform", "machine", "bits", "words"),
    [
        ("linux", "riscv64", 64, "riscv64"),
        ("linux", "i686", 32, "i686"),
        ("linux", "x86_64", 32, "64-bit Python"),
        ("darwin", "arm64", 64, "Linux"),
    ],
)
def test_another_architecture_is_refused_by_name(
    platform: str, machine: str, bits: int, words: str
) -> None:
    with pytest.raises(SetupRefused, match=words):
        syscalls.detect(platform, machine, bits)


@pytest.mark.parametrize("container", [None, Container.DOCKER])
@pytest.mark.parametrize(
    ("name", "number", "word"),
    [
        ("net", errno.EINVAL, "CONFIG_NET_NS"),
        ("cgroup", errno.EINVAL, "CONFIG_CGROUPS"),
        ("user", errno.EINVAL, "CONFIG_USER_NS"),
        ("net", errno.ENOSPC, "user.max_net_namespaces"),
        ("user", errno.ENOSPC, "user.max_user_namespaces"),
        ("mount", errno.ENOSPC, "user.max_mnt_namespaces"),
    ],
)
def test_a_kernel_without_or_with_too_few_is_no_matter_of_the_container(
    container: Container | None, name: str, number: int, word: str
) -> None:
    tried = failed(**{name: Tried(number, "unshare: no")})
    assert word in judged(tried=tried, container=container).facts[name].remedy


def test_a_filter_that_refuses_clone3_is_told_from_an_old_kernel() -> None:
    tried = failed(pid=Tried(errno.ENOSYS, "clone3: Function not implemented"))
    assert "filter of system calls" in judged(tried=tried).facts["pid"].remedy
    docker = judged(tried=tried, container=Container.DOCKER).facts["pid"]
    assert "seccomp=unconfined" in docker.remedy


@pytest.mark.parametrize(
    ("fields", "wall", "detail", "remedy"),
    [
        ({"tried": failed("user")}, "user", "Operation not permitted", "CONFIG_USER_NS"),
        (
            {
                "tried": {"user": Tried(), "pid": DENIED},
                "sysctls": {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            },
            "pid", "Operation not permitted", "AppArmor",
        ),
        (
            {"landlock_abi": 0, "landlock_errno": errno.ENOSYS},
            "landlock", "has no Landlock", "CONFIG_SECURITY_LANDLOCK",
        ),
        ({"seccomp_errno": errno.EINVAL}, "seccomp", "no seccomp filters", "CONFIG_SECCOMP_FILTER"),
        (
            {"tried": failed("user"), "container": Container.DOCKER},
            "user", "Operation not permitted", "--security-opt",
        ),
        (
            {"tried": failed("proc"), "container": Container.PODMAN},
            "proc", "Operation not permitted", "unmask=ALL",
        ),
        (
            {"tried": failed("proc"), "over_proc": ("/proc/acpi", "/proc/kcore")},
            "proc", "Operation not permitted", "/proc/acpi, /proc/kcore",
        ),
        ({"kernel": (5, 12)}, "kernel", "5.12", "5.13"),
        (
            {"euid": 0, "reserved_ids": True, "unreadable": "/root/py/bin/python3"},
            "python", "/root/py/bin/python3", "chmod",
        ),
    ],
)  # fmt: skip
def test_a_host_that_lacks_a_wall_is_refused_with_its_own_words(
    fields: dict[str, Any], wall: str, detail: str, remedy: str
) -> None:
    asked = SandboxSpec(mode=Mode.EXEC, argv=("true",), limits=LIMITS)
    with pytest.raises(SetupRefused) as refused:
        make_plan(asked, judged(**fields), {}, {})
    words = str(refused.value)
    assert words.startswith(f"the {wall} wall cannot be built: ")
    assert detail in words and remedy in words
