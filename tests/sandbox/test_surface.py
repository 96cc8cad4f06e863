"""Everything a task can ask of the kernel, asked: inside a real sandbox, by a program that holds
what a task holds. Each answer is the one of the filter's lists, or shows that the kernel was
reached on purpose."""

from __future__ import annotations

import errno
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bpf
import pytest
import surface
from casemate.sandbox import seccomp
from casemate.sandbox.spec import Bind
from casemate.sandbox.syscalls import AARCH64, ARCH, X86_64, Arch
from casemate.sandbox.zygote import package_folders
from sealed import FASHIONS, House, python

PROGRAM = bpf.decode(seccomp.build(ARCH).code)
BAD = -1


@pytest.fixture(scope="module", params=FASHIONS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    with House(request.param) as made:
        yield made


def says(call: str | int, *arguments: int) -> int | None:
    """The filter's errno; None: it lets the call through."""
    number = ARCH.numbers[call] if isinstance(call, str) else call
    given = bpf.evaluate(PROGRAM, ARCH.audit, number, arguments)
    return None if given.value == bpf.ALLOW else given.errno


# --- the page -----------------------------------------------------------------------------------


@pytest.mark.tree
def test_the_page_is_up_to_date(request: pytest.FixtureRequest) -> None:
    page = Path(__file__).parents[2] / "sandbox" / "SYSCALLS.md"
    if request.config.getoption("--regenerate", default=False):
        page.write_text(surface.render())
    assert page.read_text() == surface.render()


@pytest.mark.parametrize("arch", [X86_64, AARCH64], ids=lambda arch: arch.name)
def test_the_page_says_what_the_filter_does(arch: Arch) -> None:
    program = bpf.decode(seccomp.build(arch).code)
    for number, entry in surface.entries(arch).items():
        given = bpf.evaluate(program, arch.audit, number, (BAD,) * 6)
        if entry.outcome == "allowed":
            assert given.value == bpf.ALLOW, entry
        elif entry.outcome != "checked":
            assert given.errno == getattr(errno, entry.outcome), entry


def test_every_check_says_why() -> None:
    assert seccomp.WHY_CHECKED.keys() == seccomp.CHECKED.keys()


# --- every system call --------------------------------------------------------------------------

CALLS = """
import ctypes, json, os, select, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def ask(number, arguments):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        mine = os.getpid()
        result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        answer = ctypes.get_errno() if result == -1 else 0
        if os.getpid() == mine:  # not a child of fork's or vfork's
            os.write(writer, b'%d' % answer)
        os._exit(0)
    os.close(writer)
    came = select.select([reader], [], [], 0.5)[0]
    text = os.read(reader, 16) if came else b''
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(reader)
    if text:
        return int(text)
    return 'blocked' if not came else 'ended'
print(json.dumps({number: ask(int(number), arguments)
                  for number, arguments in json.loads(sys.argv[1]).items()}))
"""

# Where six bad arguments would be answered EPERM or ENOSYS by the kernel itself, others that show
# who answered.
TELLING: dict[str, tuple[int, ...]] = {
    "futex": (BAD, 1, 0, 0, 0, 0),  # an operation that exists: EINVAL for the address
    "setpgid": (0x7FFF_FFFF, 0),  # ESRCH
}

# What the kernel answers to everyone in the position of a task, whatever is asked.
KERNELS_OWN = {
    "setgroups": errno.EPERM,  # only its user namespace's root may
}


def outside(arguments: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The same program without a sandbox."""
    done = subprocess.run(
        python(CALLS, json.dumps(arguments)), capture_output=True, check=True, timeout=60
    )
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_every_number_is_answered_as_the_table_says(house: House) -> None:
    names = {number: name for name, number in ARCH.numbers.items()}
    asked = {
        str(number): TELLING.get(names.get(number, ""), (BAD,) * 6)
        for number in range(surface.HIGHEST + 1)
    }
    # Not filtered by any filter since Linux 6.14, whose trampolines they are (seccomp.py).
    for name in ("uprobe", "uretprobe"):
        asked.pop(str(ARCH.numbers.get(name, BAD)), None)
    answers: dict[str, Any] = house.python(CALLS, json.dumps(asked)).json()
    assert answers.keys() == asked.keys()
    wrong, unknown = {}, {}
    for number, answer in answers.items():
        name = names.get(int(number), number)
        expected = says(int(number), *asked[number])
        if name in seccomp.UNOWNED and "memory" not in house.probe.cgroup.controllers:
            expected = errno.ENOSYS
        if expected is not None:
            if answer != expected:
                wrong[name] = answer
        elif answer == errno.ENOSYS:
            unknown[number] = asked[number]  # a kernel without it, or a filter that is wrong
        elif answer == errno.EPERM and KERNELS_OWN.get(name) != answer:
            wrong[name] = answer
    assert wrong == {}
    assert dict.fromkeys(unknown, errno.ENOSYS) == (outside(unknown) if unknown else {})


# --- sockets ------------------------------------------------------------------------------------

SOCKETS = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
found = []
for family, kind, protocol in json.loads(sys.argv[1]):
    fd = libc.socket(family, kind, protocol)
    found.append(0 if fd >= 0 else ctypes.get_errno())
    if fd >= 0:
        libc.close(fd)
print(json.dumps(found))
"""

FAMILIES = range(47)
KINDS = {"STREAM": 1, "DGRAM": 2, "RAW": 3, "RDM": 4, "SEQPACKET": 5, "DCCP": 6, "PACKET": 10}
TO_BE_HAD = {
    ("AF_UNIX", "STREAM"),
    ("AF_UNIX", "DGRAM"),
    ("AF_UNIX", "SEQPACKET"),
    ("AF_INET", "STREAM"),
    ("AF_INET", "DGRAM"),
    ("AF_INET6", "STREAM"),
    ("AF_INET6", "DGRAM"),
}
OURS = {1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6"}


def test_sockets_of_three_families_can_be_made_and_no_other(house: House) -> None:
    asked = [(family, kind, 0) for family in FAMILIES for kind in KINDS.values()]
    answers: list[int] = house.python(SOCKETS, json.dumps(asked)).json()
    words = {number: word for word, number in KINDS.items()}
    had = set()
    for (family, kind, _protocol), answer in zip(asked, answers, strict=True):
        if answer == 0:
            had.add((OURS.get(family, str(family)), words[kind]))
        elif family in OURS:
            assert answer == errno.EPERM, (family, kind, errno.errorcode[answer])
        else:
            assert answer == errno.EAFNOSUPPORT, (family, kind, errno.errorcode[answer])
    assert had == TO_BE_HAD


def test_of_the_internet_only_tcp_and_udp(house: House) -> None:
    asked = [(2, kind, protocol) for kind in (1, 2) for protocol in range(264)]
    answers: list[int] = house.python(SOCKETS, json.dumps(asked)).json()
    had = {(kind, number) for (_, kind, number), a in zip(asked, answers, strict=True) if a == 0}
    assert had == {(1, 0), (1, 6), (2, 0), (2, 17)}
    assert set(answers) == {0, errno.EPROTONOSUPPORT}


OPTIONS = """
import errno, json, socket
def attempt(sock, level, name, value):
    try:
        sock.setsockopt(level, name, value)
        return 0
    except OSError as error:
        return error.errno
tcp, udp, unix = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socketpair()[0]
program = b'\\0' * 16
print(json.dumps({
    'classic filter': attempt(tcp, 1, 26, program),
    'bpf': attempt(udp, 1, 50, 3),
    'reuseport, classic': attempt(udp, 1, 51, program),
    'reuseport, ebpf': attempt(udp, 1, 52, 3),
    'tls': attempt(tcp, 6, 31, b'tls'),
    'smc': attempt(tcp, 6, 31, b'smc'),
    'ipsec': attempt(udp, 17, 100, 2),
    'l2tp': attempt(udp, 17, 100, 3),
    'iptables': attempt(tcp, 0, 64, program),
    'ip6tables': attempt(tcp, 41, 64, program),
    'xfrm policy': attempt(udp, 0, 17, program),
    'forced buffer': attempt(udp, 1, 32, 1 << 30),
    'mark': attempt(udp, 1, 36, 1),
    'repair': attempt(tcp, 6, 19, 1),
    'transparent': attempt(udp, 0, 19, 1),
    'nodelay': attempt(tcp, 6, 1, 1),
    'reuse': attempt(udp, 1, 2, 1),
    'keepalive': attempt(tcp, 1, 9, 1),
    'segments': attempt(udp, 17, 103, 1000),
    'credentials': attempt(unix, 1, 16, 1),
}))
"""


def test_options_that_bring_programs_or_protocols_are_refused(house: House) -> None:
    answers: dict[str, int] = house.python(OPTIONS).json()
    honest = {"nodelay", "reuse", "keepalive", "segments", "credentials"}
    assert {name for name, answer in answers.items() if answer == 0} == honest
    filtered = {"tls", "smc", "ipsec", "l2tp"}
    assert {answers[name] for name in filtered} == {errno.ENOPROTOOPT}
    programs = {"classic filter", "bpf", "reuseport, classic", "reuseport, ebpf"}
    assert {answers[name] for name in programs} == {errno.EPERM}


# --- ioctl --------------------------------------------------------------------------------------

IOCTLS = """
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
asked = json.loads(sys.argv[1])
open('/tmp/file', 'w').close()
flags = os.O_RDONLY
fds = {
    'stdin': 0, 'stdout': 1, 'stderr': 2,
    **{name: os.open('/dev/' + name, os.O_RDWR) for name in
       ('null', 'zero', 'full', 'random', 'urandom')},
    'tmpfs file': os.open('/tmp/file', os.O_RDWR), 'tmpfs folder': os.open('/tmp', flags),
    'shared memory': os.open('/dev/shm', flags),
    'given file': os.open('/data/given/file', os.O_RDWR),
    'given folder': os.open('/data/given', flags),
    'root': os.open('/', flags), 'system': os.open('/usr', flags),
    'proc': os.open('/proc/self/maps', flags), 'pagemap': os.open('/proc/self/pagemap', flags),
    'user namespace': os.open('/proc/self/ns/user', flags),
    'pid namespace': os.open('/proc/self/ns/pid', flags),
    'unix': socket.socketpair()[0].detach(), 'tcp': socket.socket().detach(),
    'udp': socket.socket(type=socket.SOCK_DGRAM).detach(),
    'tcp6': socket.socket(socket.AF_INET6).detach(),
    'event': os.eventfd(0), 'pid': os.pidfd_open(os.getpid()),
    'epoll': libc.epoll_create1(0), 'timer': libc.timerfd_create(1, 0),
    'inotify': libc.inotify_init1(0),
}
try:
    fds['memory'] = os.memfd_create('m')
except OSError:  # where no cgroup would count it
    pass
assert min(fds.values()) >= 0, fds
found = {}
for what, fd in fds.items():
    answers = []
    for request in asked:
        ctypes.set_errno(0)
        answers.append(ctypes.get_errno() if libc.ioctl(fd, request, None) == -1 else 0)
    found[what] = answers
print(json.dumps({what: [[n, a] for n, a in zip(asked, answers) if a != 25]
                  for what, answers in found.items()}))
"""

# By hand, from the kernel's headers: what could be asked of the kinds of files a task can open.
DANGEROUS = {
    "FIBMAP": 0x1,
    "FIFREEZE": 0xC0045877,
    "FITHAW": 0xC0045878,
    "FITRIM": 0xC0185879,
    "FS_IOC_SETFLAGS": 0x40086602,
    "FS_IOC_FSSETXATTR": 0x401C5820,
    "FS_IOC_SETVERSION": 0x40087602,
    "FS_IOC_FIEMAP": 0xC020660B,
    "FIDEDUPERANGE": 0xC0189436,
    "FS_IOC_ENABLE_VERITY": 0x40806685,
    "FS_IOC_SET_ENCRYPTION_POLICY": 0x800C6613,
    "FS_IOC_ADD_ENCRYPTION_KEY": 0xC0506617,
    "FS_IOC_REMOVE_ENCRYPTION_KEY": 0xC0406618,
    "EXT4_IOC_MOVE_EXT": 0xC028660F,
    "EXT4_IOC_RESIZE_FS": 0x40086610,
    "EXT4_IOC_SWAP_BOOT": 0x6611,
    "EXT4_IOC_MIGRATE": 0x6609,
    "EXT4_IOC_SHUTDOWN": 0x8004587D,
    "BTRFS_IOC_SUBVOL_CREATE": 0x5000940E,
    "BTRFS_IOC_SNAP_CREATE": 0x50009401,
    "BTRFS_IOC_DEFRAG": 0x50009402,
    "XFS_IOC_OPEN_BY_HANDLE": 0x4038586B,
    "XFS_IOC_EXCHANGE_RANGE": 0x40285881,
    "PAGEMAP_SCAN": 0xC0606610,
    "PROCMAP_QUERY": 0xC0686611,
    "NS_GET_USERNS": 0xB701,
    "NS_GET_PARENT": 0xB702,
    "NS_GET_PID_FROM_PIDNS": 0x8004B706,
    "PIDFD_GET_USER_NAMESPACE": 0xFF09,
    "RNDADDENTROPY": 0x40085203,
    "RNDADDTOENTCNT": 0x40045201,
    "RNDCLEARPOOL": 0x5206,
    "RNDRESEEDCRNG": 0x5207,
    "EPIOCSPARAMS": 0x40088A01,
    "TFD_IOC_SET_TICKS": 0x40085400,
    "TIOCSTI": 0x5412,
    "TIOCLINUX": 0x541C,
    "TIOCCONS": 0x541D,
    "TIOCSETD": 0x5423,
    "TIOCSSERIAL": 0x541F,
    "KDSKBENT": 0x4B47,
    "VT_ACTIVATE": 0x5606,
    "SIOCADDRT": 0x890B,
    "SIOCSIFFLAGS": 0x8914,
    "SIOCSIFADDR": 0x8916,
    "SIOCGIFBR": 0x8940,
    "SIOCSIFBR": 0x8941,
    "SIOCGIFVLAN": 0x8982,
    "SIOCSIFVLAN": 0x8983,
    "SIOCBRADDBR": 0x89A0,
    "SIOCBONDENSLAVE": 0x8990,
    "SIOCETHTOOL": 0x8946,
    "SIOCGMIIREG": 0x8948,
    "SIOCSHWTSTAMP": 0x89B0,
    "SIOCGIWNAME": 0x8B01,
    "SIOCSARP": 0x8955,
    "SIOCDEVPRIVATE": 0x89F0,
    "SIOCUNIXFILE": 0x89E0,
    "BLKDISCARD": 0x1277,
    "LOOP_SET_FD": 0x4C00,
    "TUNSETIFF": 0x400454CA,
    "VHOST_SET_OWNER": 0xAF01,
    "KVM_CREATE_VM": 0xAE01,
    "UFFDIO_API": 0xC018AA3F,
    "PERF_EVENT_IOC_SET_BPF": 0x40042408,
    "SECCOMP_IOCTL_NOTIF_ADDFD": 0x40182103,
    "BINDER_WRITE_READ": 0xC0306201,
    "FUSE_DEV_IOC_CLONE": 0x8004E500,
    "SG_IO": 0x2285,
    "SCSI_IOCTL_SEND_COMMAND": 0x1,
    "FS_IOC_GETLBMD_CAP": 0xC0481502,
    "NS_MNT_GET_NEXT": 0x8010B70B,
}


def is_allowed(request: int) -> bool:
    return says("ioctl", 0, request) is None


def asked_of_all(house: House, folder: Path, requests: list[int]) -> dict[str, list[list[int]]]:
    (folder / "file").touch()
    folder.chmod(0o777)
    (folder / "file").chmod(0o666)
    bind = Bind(str(folder), "/data/given", writable=True)
    found: dict[str, list[list[int]]] = house.python(
        IOCTLS, json.dumps(requests), binds=(bind,)
    ).json()
    return found


def test_dangerous_requests_reach_no_descriptor(house: House, tmp_path: Path) -> None:
    allowed = [name for name, request in DANGEROUS.items() if is_allowed(request)]
    assert allowed == []
    expected = [
        [request, says("ioctl", 0, request)]
        for request in set(DANGEROUS.values())
        if says("ioctl", 0, request) != errno.ENOTTY
    ]
    for what, answers in asked_of_all(house, tmp_path, sorted(set(DANGEROUS.values()))).items():
        assert answers == sorted(expected), what


def test_of_the_short_requests_only_those_listed_reach_the_kernel(
    house: House, tmp_path: Path
) -> None:
    """All 65 536 numbers that are older than the scheme with directions and sizes."""
    chosen = [request for request in range(0x10000) if not is_allowed(request)]
    code = IOCTLS.replace("json.loads(sys.argv[1])", "eval(sys.argv[1])")
    code = code.replace("in fds.items():", "in [(w, fds[w]) for w in ('tmpfs file', 'tcp')]:")
    listed = [pair for each in seccomp.IOCTLS for pair in each.ranges if each.outcome == bpf.ALLOW]
    text = f"[n for n in range(0x10000) if not any(a <= n <= b for a, b in {listed})]"
    (tmp_path / "file").touch(mode=0o666)
    tmp_path.chmod(0o777)
    bind = Bind(str(tmp_path), "/data/given", writable=True)
    found = house.python(code, text, binds=(bind,)).json()
    refused = [[n, says("ioctl", 0, n)] for n in chosen if says("ioctl", 0, n) != errno.ENOTTY]
    for what, answers in found.items():
        assert answers == refused, what


HONEST_REQUESTS = """
import array, fcntl, json, os, socket, struct, termios
reader, writer = os.pipe()
os.write(writer, b'four')
size = array.array('i', [0])
fcntl.ioctl(reader, termios.FIONREAD, size)
fcntl.ioctl(reader, termios.FIONBIO, array.array('i', [1]))
fcntl.ioctl(reader, termios.FIOCLEX)
inet = socket.socket(type=socket.SOCK_DGRAM)
name = struct.pack('16sh22x', b'lo', 0)
flags = struct.unpack('16sh22x', fcntl.ioctl(inet, 0x8913, name))[1]
address = fcntl.ioctl(inet, 0x8915, name)[20:24]
entropy = array.array('i', [0])
fcntl.ioctl(os.open('/dev/random', os.O_RDONLY), 0x80045200, entropy)
print(json.dumps([size[0], os.get_blocking(reader), flags & 1, list(address), entropy[0] > 0,
                  os.isatty(0)]))
"""


def test_honest_requests_are_answered(house: House) -> None:
    found = house.python(HONEST_REQUESTS).json()
    assert found == [4, False, 1, [127, 0, 0, 1], True, False]


# --- files --------------------------------------------------------------------------------------

WALK = """
import json, os, stat, sys
interpreter = json.loads(sys.argv[1])
found = {}
def note(path):
    try:
        status = os.lstat(path)
    except FileNotFoundError:  # the descriptor of a listing
        return False
    kind = stat.S_IFMT(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        found[path] = 'link'
        return False
    rights = ''
    for letter, flags in (('r', os.O_RDONLY), ('w', os.O_WRONLY)):
        if stat.S_ISDIR(kind) and letter == 'w':
            try:
                os.close(os.open(path + '/casemate-attempt', os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.unlink(path + '/casemate-attempt')
                rights += 'w'
            except OSError:
                pass
            continue
        try:
            os.close(os.open(path, flags | os.O_NONBLOCK))
            rights += letter
        except OSError:
            pass
    found[path] = rights
    return stat.S_ISDIR(kind)
def walk(path):
    if note(path) and path not in interpreter:
        for name in os.listdir(path) if 'r' in found[path] else ():
            walk(os.path.join(path, name))
walk('/')
print(json.dumps(found))
"""

# What can be seen beside the system's and the interpreter's folders, and what may be done with it.
SEEN = [
    (r"/", "r"),
    (r"/(bin|sbin|lib|lib32|lib64|libx32)", "link|r"),
    (r"/usr", "r"),
    (r"/etc", "r"),
    (r"/etc/(passwd|group|hosts|hostname|nsswitch\.conf|resolv\.conf)", "r"),
    (r"/etc/(ld\.so\.(cache|conf)|ld\.so\.conf\.d(/.+)?|alternatives(/.+)?)", "r|link"),
    (r"/etc/(ssl|ssl/openssl\.cnf|ssl/certs(/.+)?|ca-certificates\.conf)", "r|link"),
    (r"/etc/(pki|pki/tls|pki/tls/certs(/.+)?|java-.+)", "r|link"),
    (r"/etc/(localtime|timezone|mime\.types|os-release)", "r|link"),
    (r"/tmp", "rw"),
    (r"/dev", "r"),
    (r"/dev/shm", "rw"),
    (r"/dev/(null|zero|full|random|urandom)", "rw"),
    (r"/dev/(fd|stdin|stdout|stderr)", "link"),
    (r"/casemate|/casemate/(tmp|shm)", "r"),  # the same two folders, once more
    (r"/casemate/out", "rw"),
    (r"/workspace|/sources", "r"),
    (r"/data(/given)?", "r"),  # where neighbours were given something: empty
    (r"/proc", "r"),
    (r"/proc/(self|thread-self)", "link"),
    (r"/proc/\d+", "r"),
    (r"/proc/\d+/(task/\d+/)?(cwd|root|exe|fd/\d+|ns/[a-z_]+|map_files/.*)", "link"),
    # Nothing below /proc can be written to: no oom_score_adj, no uid_map, no mem, no comm.
    (r"/proc/\d+/.+", "r|"),
]  # fmt: skip


def test_what_can_be_seen_and_written_is_known(house: House) -> None:
    interpreter = sorted({"/usr", *house.probe.prefixes, *package_folders()})
    ancestors = {str(p) for folder in interpreter for p in Path(folder).parents}
    found: dict[str, str] = house.python(WALK, json.dumps(interpreter)).json()
    assert len(found) > 100
    strange = {}
    for path, rights in found.items():
        if path in interpreter or any(path.startswith(f + "/") for f in interpreter):
            assert rights in ("r", "link"), (path, rights)
            continue
        seen_from = path.removeprefix("/casemate")
        if seen_from in ancestors and rights == ("rw" if path.startswith("/tmp/") else "r"):
            continue  # on the way to the interpreter, and nothing else beside it
        if seen_from in interpreter and rights == "r":
            continue  # a mount point as the other view of /tmp shows it, empty
        matching = [allowed for pattern, allowed in SEEN if re.fullmatch(pattern, path)]
        if not matching or rights not in matching[0].split("|"):
            strange[path] = rights
    assert strange == {}
    assert not any(path.startswith(("/sys", "/run", "/var", "/proc/sys")) for path in found)
