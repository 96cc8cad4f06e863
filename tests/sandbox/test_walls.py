"""What a task finds when it looks and pushes: each wall, from the inside."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from casemate.protocol.pipeline import FileEntry, Network
from casemate.sandbox.process import Stdio
from casemate.sandbox.spec import FIRST_RESERVED_ID, Bind, ProcView, Ready
from casemate.sandbox.zygote import package_folders
from sealed import FASHIONS, PATIENCE, House, SealedGuest, python

SECRET = "casemate-test-secret-6f1c"


@pytest.fixture(scope="module", params=FASHIONS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    os.environ["CASEMATE_TEST_SECRET"] = SECRET
    with House(request.param) as made:
        yield made
    del os.environ["CASEMATE_TEST_SECRET"]


STATUS = """
import json, os, threading
started, over = threading.Barrier(4), threading.Event()
def stay():
    started.wait()
    over.wait()
threads = [threading.Thread(target=stay) for _ in range(3)]
for thread in threads:
    thread.start()
started.wait()
found = []
for task in os.listdir('/proc/self/task'):
    lines = open(f'/proc/self/task/{task}/status').read().splitlines()
    found.append({k: v.split() for k, v in (line.split(':', 1) for line in lines)})
over.set()
print(json.dumps(found))
"""


def test_every_thread_is_uid_1000_without_capabilities_and_behind_the_filter(house: House) -> None:
    threads = house.python(STATUS).json()
    assert len(threads) == 4
    for thread in threads:
        assert thread["Uid"] == ["1000"] * 4
        assert thread["Gid"] == ["1000"] * 4
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert thread[name] == ["0000000000000000"]
        assert thread["NoNewPrivs"] == ["1"]
        assert thread["Seccomp"] == ["2"]


def test_supplementary_groups_are_gone(house: House) -> None:
    groups = house.python("import json, os; print(json.dumps(os.getgroups()))").json()
    if house.probe.privileged:
        assert groups == []
    else:  # an ordinary user cannot leave groups: what they give access to is out of view
        assert set(groups) <= {1000, 65534}


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/etc/ssh", "/etc/machine-id", "/root/.bashrc", "/root/.ssh", "/run", "/sys",
     "/boot", "/var/log", "/proc/sys", "/proc/kcore", "/proc/sysrq-trigger", "/proc/1", "/dev/tty",
     "/dev/mem", "/dev/kmsg", "/dev/pts", "/dev/ptmx", "/sys/fs/cgroup"],
)  # fmt: skip
def test_what_is_not_given_does_not_exist(house: House, path: str) -> None:
    found = house.python("import os, sys; print(int(os.path.lexists(sys.argv[1])))", path)
    assert (found.code, found.stdout) == (0, "0\n")


def test_beside_the_system_only_the_interpreter_and_casemate_show(house: House) -> None:
    code = """
import json, os, sys
given = sys.argv[1:]
found = []
for folder, folders, files in os.walk('/'):
    folders[:] = [f for f in folders if os.path.join(folder, f) not in given]
    found += [os.path.join(folder, file) for file in files]
print(json.dumps(found))
"""
    given = ("/usr", "/etc", "/proc", "/dev", *house.probe.prefixes, *package_folders())
    assert house.python(code, *given).json() == []


def test_the_engines_secrets_are_nowhere(house: House) -> None:
    code = (
        "import glob, json, os, sys\n"
        "seen = [dict(os.environ)]\n"
        "for name in ('environ', 'cmdline'):\n"
        "    for path in glob.glob('/proc/[0-9]*/' + name):\n"
        "        try: seen.append(open(path, 'rb').read().decode())\n"
        "        except OSError: pass\n"
        "print(json.dumps(seen))"
    )
    outcome = house.python(code)
    assert outcome.code == 0
    assert SECRET not in outcome.stdout


def test_the_environment_is_what_was_given_and_the_base(house: House) -> None:
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    environment = house.python(code, env={"ANSWER": "42"}).json()
    environment.pop("LC_CTYPE", None)  # set by Python itself
    assert environment == {
        "ANSWER": "42",
        "PATH": f"{house.probe.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def test_only_the_sandboxs_own_processes_show(house: House) -> None:
    code = (
        "import json, os\n"
        "print(json.dumps([os.getpid(), [int(n) for n in os.listdir('/proc') if n.isdigit()]]))"
    )
    pid, shown = house.python(code).json()
    assert pid == 2
    assert shown == [2]


def test_all_of_proc_shows_read_only_where_it_was_asked_for(house: House) -> None:
    code = (
        "import json, os\n"
        "print(json.dumps([os.path.exists('/proc/cpuinfo'), os.access('/proc/sys', os.W_OK),"
        " [n for n in os.listdir('/proc') if n.isdigit()]]))"
    )
    has_cpuinfo, can_write, pids = house.python(code, proc=ProcView.READONLY).json()
    assert has_cpuinfo
    assert not can_write
    assert pids == ["2"]
    attempt = "open('/proc/self/comm', 'w').write('x')"
    assert "Read-only" in house.python(attempt, proc=ProcView.READONLY).stderr


# Called with arguments that would work, or that would say EFAULT or EBADF had they got through.
REFUSED = {
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
    "umount": "libc.umount2(b'/proc', 2)",
    "pivot_root": "syscall('pivot_root', b'/tmp', b'/tmp')",
    "fsopen": "syscall('fsopen', b'tmpfs', 0)",
    "open_tree": "syscall('open_tree', -100, b'/', 1)",
    "unshare a user namespace": "libc.unshare(0x10000000)",
    "unshare a mount namespace": "libc.unshare(0x00020000)",
    "enter a namespace": "libc.setns(os.open('/proc/self/ns/mnt', os.O_RDONLY), 0)",
    "ptrace init": "libc.ptrace(16, 1, 0, 0)",
    "be traced": "libc.ptrace(0, 0, 0, 0)",
    "chroot": "libc.chroot(b'/tmp')",
    "sethostname": "libc.sethostname(b'x', 1)",
    "setgroups": "libc.setgroups(0, None)",
    "mknod": "libc.mknod(b'/tmp/device', 0o020666, os.makedev(1, 1))",
    "io_uring": "syscall('io_uring_setup', 1, None)",
    "bpf": "syscall('bpf', 0, None, 0)",
    "userfaultfd": "syscall('userfaultfd', 0)",
    "keyring": "syscall('add_key', b'user', b'x', b'y', 1, -3)",
    "write init's memory": "syscall('process_vm_writev', 1, None, 0, None, 0, 0)",
}

ATTEMPT = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
numbers = json.loads(sys.argv[2])
def syscall(name, *rest):
    return libc.syscall(numbers[name], *rest)
result = eval(sys.argv[1])
print(json.dumps([result, ctypes.get_errno()]))
"""


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_power_over_the_kernel_is_refused(house: House, what: str) -> None:
    from casemate.sandbox import syscalls

    numbers = json.dumps(syscalls.ARCH.numbers)
    result, errno = house.python(ATTEMPT, REFUSED[what], numbers).json()
    assert result == -1
    assert os.strerror(errno) in (os.strerror(1), os.strerror(38)), os.strerror(errno)


def test_there_is_no_other_user_to_become(house: House) -> None:
    outcome = house.python("import os; os.setresuid(0, 0, 0)")
    assert "OSError" in outcome.stderr or "PermissionError" in outcome.stderr


def test_nothing_is_reachable_but_loopback(house: House) -> None:
    code = """
import errno, json, socket
found = {}
for family, address in ((socket.AF_INET, '1.1.1.1'), (socket.AF_INET, '169.254.169.254'),
                        (socket.AF_INET6, '2606:4700:4700::1111')):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        found[address] = errno.errorcode[s.connect_ex((address, 53))]
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(b'x', (address, 53))
        except OSError as error:
            found['udp ' + address] = errno.errorcode[error.errno]
with socket.create_server(('127.0.0.1', 0)) as server:
    with socket.create_connection(server.getsockname()) as client:
        found['loopback'] = 'up'
print(json.dumps(found))
"""
    found = house.python(code).json()
    assert found.pop("loopback") == "up"
    assert len(found) == 6
    assert set(found.values()) == {"ENETUNREACH"}, found


def test_a_server_of_the_host_is_out_of_reach(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import errno, socket, sys\n"
            "s = socket.socket()\n"
            "print(errno.errorcode.get(s.connect_ex(('127.0.0.1', int(sys.argv[1])))))"
        )
        assert house.python(code, str(port)).stdout == "ECONNREFUSED\n"
        with_host = house.python(code, str(port), network=Network.HOST)
        assert with_host.stdout == "None\n", "the host's network, where the operator gives it"


def test_only_tmp_and_shared_memory_can_be_written(house: House) -> None:
    code = """
import json, os
found = []
for line in open('/proc/self/mountinfo'):
    top = line.split()[4]
    for folder, folders, files in os.walk(top):
        folders[:] = [] if folder.count('/') > 3 else folders
        for name in ('casemate-attempt',):
            try:
                os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                os.unlink(os.path.join(folder, name))
                found.append(folder)
            except OSError:
                pass
print(json.dumps(sorted(set(found))))
"""
    found = house.python(code).json()
    own = ("/casemate/out", "/dev/shm", "/tmp")
    assert set(own) <= set(found)
    assert [folder for folder in found if not folder.startswith(own)] == []


def test_no_mount_honours_setuid_or_devices_but_the_five_devices(house: House) -> None:
    mounts = house.shell("cat /proc/self/mountinfo").stdout.splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    assert all("nosuid" in each for each in options.values())
    devices = {path for path, each in options.items() if "nodev" not in each}
    assert devices == {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}


def test_tmp_and_shared_memory_are_capped_together(house: House) -> None:
    code = """
import errno, json, os
def fill(path):
    written = 0
    with open(path, 'wb', buffering=0) as file:
        try:
            while True:
                written += file.write(b'x' * (1 << 16))
        except OSError as error:
            return [written, errno.errorcode[error.errno]]
first, second = fill('/tmp/a'), fill('/dev/shm/b')
made = 0
os.unlink('/tmp/a')
os.unlink('/dev/shm/b')
try:
    while True:
        os.close(os.open(f'/tmp/{made}', os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    print(json.dumps([first, second, made, errno.errorcode[error.errno]]))
"""
    first, second, made, error = house.python(code).json()
    size = house.spec().limits.tmp
    assert first == [size, "ENOSPC"]
    assert second == [0, "ENOSPC"]
    assert error == "ENOSPC"
    assert made < size // 4096


def test_a_command_holds_three_descriptors(house: House) -> None:
    code = (
        "import json, os\n"
        "found = []\n"
        "for fd in range(1024):\n"
        "    try: os.fstat(fd); found.append(fd)\n"
        "    except OSError: pass\n"
        "print(json.dumps(found))"
    )
    assert house.python(code).json() == [0, 1, 2]


def test_signals_to_everyone_stay_inside(house: House) -> None:
    bystander = house.spawn("/bin/sleep", "1000")
    code = """
import os, signal, sys
if os.fork() == 0:
    signal.pause()
os.kill(int(sys.argv[1]), signal.SIGKILL)
print('on')
"""
    # Everyone it may signal; init; its own process group.
    assert house.python(code, "-1").stdout == "on\n"
    assert house.python(code, "1").stdout == "on\n"
    assert house.python(code, "0").ending.signal == signal.SIGKILL
    assert house.python("print('served')").stdout == "served\n"
    assert not bystander.is_dead()


def test_no_core_is_dumped_and_the_oom_killer_is_invited(house: House) -> None:
    code = (
        "import json, resource\n"
        "print(json.dumps([resource.getrlimit(resource.RLIMIT_CORE)[1],"
        " open('/proc/self/oom_score_adj').read().strip()]))"
    )
    assert house.python(code).json() == [1, "1000"]


NAMESPACES = """
import json, os, sys, time
folder = '/proc/self/ns/'
print(json.dumps({name: os.readlink(folder + name) for name in os.listdir(folder)}), flush=True)
time.sleep(float(sys.argv[1]))
"""


def test_the_namespaces_are_its_own(house: House) -> None:
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    # It lives on: the kernel gives the numbers of dead namespaces to new ones.
    neighbour = house.spawn(*python(NAMESPACES, "1000"), stdio=Stdio(null, writer, null))
    os.close(writer)
    os.close(null)
    with os.fdopen(reader) as lines:
        first = json.loads(lines.readline())
    second = house.python(NAMESPACES, "0").json()
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        ours = os.readlink(f"/proc/self/ns/{name}")
        assert len({first[name], second[name], ours}) == 3, name
    house.bury(neighbour)


def test_the_name_of_the_host_is_the_one_given(house: House) -> None:
    assert house.shell("uname -n", hostname="keep").stdout == "keep\n"


def test_who_am_i_has_an_answer(house: House) -> None:
    assert house.shell("id -un; id -gn; echo ~").stdout == "sandbox\nsandbox\n/tmp\n"


# --- what is bound ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "given"
    made.mkdir()
    (made / "public").write_text("for all")
    (made / "private").write_text("for the owner")
    (made / "private").chmod(0o600)
    return made


def test_the_workspace_is_readable_like_ones_own_and_not_writable(
    house: House, folder: Path
) -> None:
    outcome = house.shell("pwd; cat public private; stat -c %u private", workspace=str(folder))
    assert outcome.stdout == "/workspace\nfor allfor the owner1000\n", outcome.stderr
    refused = house.shell("echo x > public", workspace=str(folder))
    assert refused.code != 0
    assert "Read-only" in refused.stderr
    assert (folder / "public").read_text() == "for all"


def test_sources_and_input_are_where_they_should_be(house: House, folder: Path) -> None:
    outcome = house.shell(
        "cat /sources/public /casemate/input; echo x > /casemate/input",
        sources=str(folder),
        input_file=str(folder / "private"),
    )
    assert outcome.stdout == "for allfor the owner"
    assert "Read-only" in outcome.stderr


def test_a_folder_may_be_given_to_write_to(house: House, folder: Path) -> None:
    bind = Bind(str(folder), str(folder), writable=True)
    script = f"cd {folder} && echo done > result && chmod 755 result && ! chmod 4755 result"
    outcome = house.shell(script, binds=(bind,))
    assert outcome.code == 0, outcome.stderr
    status = (folder / "result").stat()
    assert status.st_mode & 0o7777 == 0o755, "a setuid file would be the owner's"
    assert (folder / "result").read_text() == "done\n"
    assert (status.st_uid, status.st_gid) == (folder.stat().st_uid, folder.stat().st_gid)


def test_binds_nest_and_lie_at_any_path(house: House, folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    other = folder.parent / "other"
    other.mkdir()
    (other / "seen").write_text("other")
    binds = (Bind(str(folder), "/data/given"), Bind(str(other), "/data/given/inner"))
    outcome = house.shell("cat /data/given/public /data/given/inner/seen", binds=binds)
    assert outcome.stdout == "for allother", outcome.stderr
    assert house.shell("ls /data/given").stdout == "", "another sandbox sees an empty folder"


def test_a_file_can_be_bound(house: House, folder: Path) -> None:
    bind = Bind(str(folder / "public"), "/data/one")
    assert house.shell("cat /data/one", binds=(bind,)).stdout == "for all"


def test_a_link_in_a_bound_folder_does_not_lead_a_later_bind_astray(
    house: House, folder: Path
) -> None:
    (folder / "astray").symlink_to("/etc")
    binds = (Bind(str(folder), "/data/links"), Bind(str(folder), "/data/links/astray"))
    outcome = house.shell("true", binds=binds)
    assert outcome.failed is not None
    assert outcome.failed.step == "mounts"


def test_what_is_mounted_below_a_bound_folder_is_bound_with_it(house: House) -> None:
    outcome = house.shell("ls /data/dev/pts | head -1; ls /data/dev/null", binds=(
        Bind("/dev", "/data/dev"),
    ))  # fmt: skip
    assert "/data/dev/null" in outcome.stdout, outcome
    opened = house.shell("echo x > /data/dev/null", binds=(Bind("/dev", "/data/dev"),))
    assert opened.code != 0, "devices of a bound folder do not open"


def test_neighbours_do_not_see_each_others_files(house: House) -> None:
    assert house.shell("echo mine > /tmp/a; echo mine > /dev/shm/b").code == 0
    assert house.shell("cat /tmp/a /dev/shm/b").stdout == ""


def test_outside_a_sandbox_is_a_stranger_or_ourselves(house: House) -> None:
    uids = []
    for _ in range(2):
        sandbox = house.spawn("/bin/sleep", "1000")
        assert isinstance(sandbox.wait_record(PATIENCE), Ready)
        status = Path(f"/proc/{sandbox.host_pid}/status").read_text()
        uids.append(int(status.split("Uid:")[1].split()[0]))
    if house.probe.privileged:
        assert len(set(uids)) == 2, "no two live sandboxes share a host uid"
        assert all(uid >= FIRST_RESERVED_ID for uid in uids)
    else:
        assert uids == [os.geteuid()] * 2


def test_honest_programs_find_what_they_need(house: House) -> None:
    code = (
        "import hashlib, multiprocessing.pool, os, sqlite3, ssl, subprocess, tempfile, zoneinfo\n"
        "print(sqlite3.connect(':memory:').execute('select 1').fetchone()[0],"
        " subprocess.run(['sh', '-c', 'echo $0'], capture_output=True).stdout,"
        " multiprocessing.pool.ThreadPool(3).map(abs, [-1, -2]),"
        " open('/dev/stdin').read(), len(os.urandom(3)), len(open('/dev/urandom','rb').read(3)))"
    )
    outcome = house.run(*python(code), stdin=b"given")
    assert outcome.stdout == "1 b'sh\\n' [1, 2] given 3 3\n", outcome.stderr


def test_the_interpreter_of_the_tests_is_the_python_on_the_path(house: House) -> None:
    code = "import sys; print(sys.prefix)"
    assert house.shell(f'python -c "{code}"').stdout == f"{sys.prefix}\n"


def test_files_of_the_interpreter_are_not_writable_by_the_task(house: House) -> None:
    code = "import os; print(os.access(os.__file__, os.W_OK), os.access('/usr/bin', os.W_OK))"
    assert house.python(code).stdout == "False False\n"
    assert stat.S_ISREG(Path(os.__file__).stat().st_mode)


# --- the guest ----------------------------------------------------------------------------------

POSTURES = """
import os

def postures(input, ctx):
    found = []
    for task in sorted(os.listdir('/proc/self/task'), key=int):
        with open(f'/proc/self/task/{task}/status') as lines:
            found.append(dict(line.strip().split(':', 1) for line in lines))
    return found

def descriptors(input, ctx):
    found = {}
    for fd in range(256):
        try:
            found[str(fd)] = os.readlink(f'/proc/self/fd/{fd}').split(':')[0]
        except OSError:
            pass
    return found

def surroundings(input, ctx):
    import casemate
    from casemate import Pipeline
    return {'cwd': os.getcwd(), 'env': dict(os.environ), 'pid': os.getpid(),
            'pipeline': Pipeline.__name__, 'exit': callable(exit)}
"""


@pytest.fixture
def sources(tmp_path: Path) -> str:
    (tmp_path / "task.py").write_text(POSTURES)
    return str(tmp_path)


def test_every_thread_of_a_guest_is_walled_in_libzmqs_too(house: House, sources: str) -> None:
    with SealedGuest(house, sources=sources) as guest:
        threads = guest.output(FileEntry("task.py", "postures"))
    assert len(threads) >= 3, "the main thread, and libzmq's two"
    for thread in threads:
        assert thread["Uid"].split() == ["1000"] * 4
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(thread[name], 16) == 0
        assert (int(thread["NoNewPrivs"]), int(thread["Seccomp"])) == (1, 2)


def test_a_guest_holds_stdio_its_link_and_libzmqs_own(house: House, sources: str) -> None:
    with SealedGuest(house, sources=sources) as guest:
        found = guest.output(FileEntry("task.py", "descriptors"))
    assert {found.pop(fd) for fd in ("0", "1", "2")} == {"/dev/null"}
    assert set(found.values()) <= {"socket", "anon_inode"}
    sockets = [fd for fd, target in found.items() if target == "socket"]
    assert len(sockets) == 2, f"the listener and the one connection: {found}"


def test_a_task_finds_its_place(house: House, sources: str) -> None:
    env = {"CASEMATE_RUN": "r1"}
    with SealedGuest(house, sources=sources, workspace=sources, env=env) as guest:
        found = guest.output(FileEntry("task.py", "surroundings"))
    assert found["cwd"] == "/workspace"
    assert found["pid"] == 2
    assert found["pipeline"] == "Pipeline", "the facade can be imported inside"
    assert found["exit"]
    assert found["env"]["CASEMATE_RUN"] == "r1"
    assert SECRET not in found["env"].values()
    assert set(found["env"]) <= {
        "CASEMATE_RUN", "PATH", "LANG", "HOME", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "LC_CTYPE",
    }  # fmt: skip
