"""An overlay at /workspace: a task changes what it likes, and all of it lands in its own layer."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from casemate.protocol.errors import SetupRefused
from casemate.sandbox.plan import MOST_LAYERS
from casemate.sandbox.probe import overlay_works
from casemate.sandbox.spec import FIRST_RESERVED_ID, SLOTS, Bind, LayerSpec
from sealed import FASHIONS, House, Outcome

# Whose the layers are on disk, under a root supervisor. Not an id that a sandbox gets.
KEEPER = FIRST_RESERVED_ID + SLOTS


@pytest.fixture(scope="module", params=FASHIONS)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    with House(request.param) as made:
        yield made


@dataclass
class Place:
    """A base, and a folder of layers as the supervisor keeps them."""

    house: House
    root: Path
    lower: list[str] = field(default_factory=list)  # the topmost first

    def __post_init__(self) -> None:
        self.base.mkdir()
        self.layers.mkdir()

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    def upper(self, name: str) -> Path:
        return self.layers / name / "upper"

    def make(self, name: str) -> Path:
        for part in ("upper", "work"):
            (self.layers / name / part).mkdir(parents=True)
            if self.house.probe.privileged:
                os.chown(self.layers / name / part, KEEPER, KEEPER)
        return self.upper(name)

    def spec(self, name: str) -> LayerSpec:
        self.make(name)
        return LayerSpec(
            base=str(self.base), folder=str(self.layers), lower=tuple(self.lower), upper=name
        )

    def shell(self, name: str, text: str, **fields: Any) -> Outcome:
        """In a new layer, which the next one then lies upon."""
        outcome = self.house.shell(f"set -e; {text}", layer=self.spec(name), **fields)
        self.lower.insert(0, name)
        return outcome

    def python(self, name: str, code: str, *arguments: str) -> Outcome:
        outcome = self.house.python(code, *arguments, layer=self.spec(name))
        self.lower.insert(0, name)
        return outcome


@pytest.fixture
def place(house: House, tmp_path: Path) -> Place:
    made = Place(house, tmp_path)
    (made.base / "kept").write_text("base\n")
    (made.base / "private").write_text("secret of the base\n")
    (made.base / "private").chmod(0o600)
    (made.base / "folder" / "deep").mkdir(parents=True)
    (made.base / "folder" / "deep" / "file").write_text("deep\n")
    return made


def fingerprint(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that could be seen to have changed below a folder."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        link = str(path.readlink()) if path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (
            status.st_mode,
            status.st_uid,
            status.st_mtime_ns,
            content,
            link,
        )
    return found


EVERYTHING = """
echo new > new
echo more >> kept
rm folder/deep/file
rm private
rm -r folder
mkdir folder
echo again > folder/file
mv kept moved
ln -s moved link
ln moved second
chmod 600 new
mkdir -p a/b/c
echo c > a/b/c/file
mv a/b/c a/c
mkfifo pipe
truncate -s 60M sparse
head -c 20000000 /dev/zero > large
touch -d 2001-01-01 new
"""


def test_a_task_may_do_to_its_files_what_it_likes(place: Place) -> None:
    before = fingerprint(place.base)
    outcome = place.shell("one.1", EVERYTHING + "find . | sort; cat moved second folder/file")
    assert outcome.code == 0, outcome
    assert outcome.stdout.split() == [
        ".", "./a", "./a/b", "./a/c", "./a/c/file", "./folder", "./folder/file", "./large",
        "./link", "./moved", "./new", "./pipe", "./second", "./sparse",
        "base", "more", "base", "more", "again",
    ]  # fmt: skip
    assert fingerprint(place.base) == before
    upper = place.upper("one.1")
    assert (upper / "moved").read_text() == "base\nmore\n"
    assert (upper / "moved").samefile(upper / "second")
    assert (upper / "link").readlink() == Path("moved")
    assert stat.S_IMODE((upper / "new").stat().st_mode) == 0o600
    assert (upper / "large").stat().st_size == 20_000_000
    sparse = (upper / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks) == (60 << 20, 0)
    for gone in ("kept", "private"):
        status = (upper / gone).lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == 0
    assert os.getxattr(upper / "folder", "user.overlay.opaque") == b"y"


def test_nothing_is_written_outside_the_upper_and_its_work_folder(place: Place) -> None:
    place.shell("below.1", EVERYTHING)
    spec = place.spec("own.1")
    before = fingerprint(place.root)
    assert place.house.shell("rm -r *; echo new > new", layer=spec).code == 0
    after = fingerprint(place.root)
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert "layers/own.1/upper/new" in changed
    assert {path.split("/")[2] for path in changed} == {"upper", "work"}
    assert {path.split("/")[1] for path in changed} == {"own.1"}


def test_files_of_a_layer_belong_to_its_owner_on_disk(place: Place) -> None:
    assert place.shell("one.1", EVERYTHING).code == 0
    layer = place.layers / "one.1"
    ours = KEEPER if place.house.probe.privileged else os.geteuid()
    paths = [layer / "upper", layer / "work", *(layer / "upper").rglob("*")]
    assert len(paths) > 12
    assert {path.lstat().st_uid for path in paths} == {ours}
    work = subprocess.run(["find", layer / "work", "-uid", str(ours)], capture_output=True)
    every = subprocess.run(["find", layer / "work"], capture_output=True)
    assert work.stdout == every.stdout != b""


def test_all_files_look_like_the_tasks_own(place: Place) -> None:
    place.shell("one.1", "echo x > mine")
    seen = place.shell("two.1", "stat -c '%u %g' . kept private mine folder; cat private")
    assert seen.stdout == "1000 1000\n" * 5 + "secret of the base\n", seen


def test_each_layer_lies_over_those_before_it(place: Place) -> None:
    assert place.shell("a.1", "echo a > kept; echo a > a; rm -r folder").code == 0
    assert place.shell("b.1", "cat a; echo b > kept; mkdir folder; echo b > folder/b").code == 0
    third = place.shell("c.1", "cat kept a folder/b; ls; ls folder; rm a")
    assert third.stdout.split() == ["b", "a", "b", "a", "folder", "kept", "private", "b"], third
    assert place.shell("d.1", "ls").stdout.split() == ["folder", "kept", "private"]
    assert sorted(os.listdir(place.upper("d.1"))) == [], "who only looks leaves nothing"


def test_which_layers_are_below_is_for_the_caller_to_say(place: Place) -> None:
    place.shell("a.1", "echo a > which")
    place.shell("b.1", "echo b > which")
    place.lower = ["a.1", "b.1"]
    assert place.shell("c.1", "cat which").stdout == "a\n"
    place.lower = ["b.1"]
    assert place.shell("d.1", "cat which").stdout == "b\n"
    place.lower = []
    assert place.shell("e.1", "test -e which").code == 1


def test_neighbours_over_the_same_layers_do_not_see_each_other(place: Place) -> None:
    place.shell("below.1", "echo shared > shared")
    first, second = place.spec("x.1"), place.spec("y.1")
    assert place.house.shell("echo x > shared", layer=first).code == 0
    assert place.house.shell("cat shared", layer=second).stdout == "shared\n"


def test_as_many_layers_as_are_allowed_can_be_mounted(place: Place) -> None:
    name = "n" * 64
    for number in range(MOST_LAYERS):
        upper = place.make(f"{name}.{number}")
        (upper / "top").write_text(str(number))
        (upper / f"of-{number}").touch()
        place.lower.insert(0, f"{name}.{number}")
    seen = place.shell("last.1", "cat top; ls | wc -l")
    assert seen.stdout == f"{MOST_LAYERS - 1}{MOST_LAYERS + 4}\n", seen
    with pytest.raises(Exception, match=f"at most {MOST_LAYERS}"):
        place.shell("more.1", "true")


def test_a_layer_takes_attributes_of_the_user(place: Place) -> None:
    code = (
        "import os\n"
        "os.setxattr('kept', 'user.note', b'mine')\n"
        "os.setxattr('folder', 'user.note', b'mine too')\n"
        "print(os.listxattr('kept'), os.listxattr('folder'), os.getxattr('kept', 'user.note'))"
    )
    outcome = place.python("one.1", code)
    assert outcome.stdout == "['user.note'] ['user.note'] b'mine'\n", outcome
    assert os.getxattr(place.upper("one.1") / "kept", "user.note") == b"mine"
    assert os.listxattr(place.base / "kept") == []


def test_a_moved_folder_of_a_lower_layer_is_refused_as_across_file_systems(place: Place) -> None:
    code = (
        "import errno, os, shutil\n"
        "try:\n"
        "    os.rename('folder', 'other')\n"
        "except OSError as error:\n"
        "    print(errno.errorcode[error.errno])\n"
        "shutil.move('folder', 'other')\n"
        "print(open('other/deep/file').read(), os.path.exists('folder'))"
    )
    assert place.python("one.1", code).stdout == "EXDEV\ndeep\n False\n"


def test_a_bind_may_lie_inside_the_workspace(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "seen").write_text("other")
    bind = Bind(str(other), "/workspace/folder")
    outcome = place.shell("one.1", "cat folder/seen kept", binds=(bind,))
    assert outcome.stdout == "otherbase\n", outcome
    missing = place.shell("two.1", "true", binds=(Bind(str(other), "/workspace/none"),))
    assert missing.failed is not None
    assert missing.failed.step == "mounts"


def test_the_walls_say_how_the_workspace_is_held(place: Place) -> None:
    def held(**fields: Any) -> object:
        return place.house.plan(place.house.spec(argv=("true",), **fields)).walls.get("workspace")

    assert held(layer=place.spec("a.1")) == "overlay, a read-only base"
    place.lower = ["a.1"]
    assert held(layer=place.spec("b.1")) == "overlay, 1 layer over a read-only base"
    place.lower = ["b.1", "a.1"]
    assert held(layer=place.spec("c.1")) == "overlay, 2 layers over a read-only base"
    assert held(workspace=str(place.base)) == "folder, read-only"
    assert held(workspace=str(place.base), workspace_writable=True) == "folder, writable"
    assert held() is None


# --- hostile ------------------------------------------------------------------------------------


def test_nothing_of_the_layers_folder_is_reachable_but_through_the_overlay(place: Place) -> None:
    place.shell("ancestor.1", "echo x > x")
    code = """
import json, os, sys
mounts = [line.split() for line in open('/proc/self/mountinfo')]
fds = {}
for fd in os.listdir('/proc/self/fd'):
    try: fds[fd] = os.readlink('/proc/self/fd/' + fd)
    except OSError: pass
print(json.dumps({
    'casemate': sorted(os.listdir('/casemate')),
    'workspace': [line[6:] for line in mounts if line[4].startswith('/workspace')],
    'text': open('/proc/self/mountinfo').read(),
    'places': [line[4] for line in mounts if line[4].startswith('/casemate')],
    'open': [path for path in sys.argv[1:] if os.path.lexists(path)],
    'fds': fds,
    'cwd': os.getcwd(),
}))
"""
    inside = [f"/casemate/{name}" for name in ("l", "b", "u", "w", "0")]
    outcome = place.python("own.1", code, str(place.root), str(place.layers), *inside)
    found = outcome.json()
    assert found["casemate"] == ["out", "shm", "tmp"]
    assert sorted(found["places"]) == ["/casemate", "/casemate/out"]
    assert found["open"] == []
    assert found["cwd"] == "/workspace"
    (workspace,) = found["workspace"]
    assert workspace[1] == "overlay"
    for name in ("ancestor.1", "own.1", str(place.root)):
        assert name not in found["text"], "not even their names"
    assert not any(str(place.root) in target for target in found["fds"].values())


def test_links_in_layers_lead_nowhere_outside(place: Place, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    for upper in (place.make("bad.1"), place.base):
        (upper / f"absolute-{upper.name}").symlink_to(secret)
        (upper / f"upwards-{upper.name}").symlink_to("../../../../../../../.." + str(secret))
        (upper / f"out-{upper.name}").symlink_to("/tmp")
        (upper / f"next-{upper.name}").symlink_to("../secret")
    place.lower = ["bad.1"]
    code = (
        "import os\n"
        "for name in sorted(os.listdir('.')):\n"
        "    if name.startswith(('absolute', 'upwards', 'next')):\n"
        "        print(name, os.path.exists(name))\n"
        "open('out-upper/written', 'w').write('x')\n"
        "print(os.path.exists('/tmp/written'))"
    )
    outcome = place.python("own.1", code)
    assert outcome.code == 0, outcome
    assert sorted(set(outcome.stdout.split()[1:-1:2])) == ["False"], outcome.stdout
    assert outcome.stdout.endswith("True\n"), "its own /tmp is where that link leads"
    assert os.listdir(place.upper("own.1")) == []
    assert not Path("/tmp/written").exists()


def test_a_layer_that_is_a_link_to_elsewhere_is_not_followed_out(place: Place) -> None:
    """Whoever could write into the layers' folder: a link there leads to the sandbox's own root."""
    place.layers.joinpath("bad.1").mkdir()
    place.upper("bad.1").symlink_to("/etc")
    place.lower = ["bad.1"]
    outcome = place.shell("own.1", "ls; cat shadow; cat hostname")
    assert "shadow" not in outcome.stdout


DEVICES = """
import errno, os, stat
for mode, device in ((stat.S_IFCHR, (0, 0)), (stat.S_IFCHR, (1, 3)), (stat.S_IFBLK, (254, 0))):
    try:
        os.mknod('device', mode | 0o666, os.makedev(*device))
        print('made')
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_no_device_can_be_made_in_a_layer_and_no_whiteout(place: Place) -> None:
    outcome = place.python("one.1", DEVICES)
    assert outcome.stdout == "EPERM\n" * 3, outcome
    assert os.listdir(place.upper("one.1")) == []


def test_a_device_in_a_layer_does_not_open(place: Place) -> None:
    if os.geteuid() != 0:
        with pytest.raises(PermissionError):  # nobody there could have made one
            os.mknod(place.base / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        return
    for upper in (place.base, place.make("bad.1")):
        os.mknod(upper / f"null-{upper.name}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        if place.house.probe.privileged and upper != place.base:
            os.chown(upper / f"null-{upper.name}", KEEPER, KEEPER)
    place.lower = ["bad.1"]
    outcome = place.shell("one.1", "set +e; echo x > null-base; echo x > null-upper; true")
    assert outcome.stderr.count("Permission denied") == 2, outcome


SETUID = """
import os, shutil, subprocess, sys
shutil.copy(sys.argv[1], 'own')
os.chmod('own', 0o6755)
os.chmod('given', 0o6755)
for program in ('./given-as-is', './given', './own'):
    print(subprocess.run([program, '-ru'], capture_output=True, text=True).stdout.strip(),
          subprocess.run([program, '-u'], capture_output=True, text=True).stdout.strip())
"""


def test_a_setuid_bit_has_no_effect(place: Place) -> None:
    program = Path("/usr/bin/id")
    for name in ("given", "given-as-is"):
        (place.base / name).write_bytes(program.read_bytes())
        (place.base / name).chmod(0o6755)
    outcome = place.python("one.1", SETUID, str(program))
    assert outcome.stdout == "1000 1000\n" * 3, outcome
    for name in ("own", "given"):
        status = (place.upper("one.1") / name).stat()
        assert status.st_uid == (KEEPER if place.house.probe.privileged else os.geteuid())


MARKS = """
import errno, os
for name in ('opaque', 'whiteout', 'redirect', 'metacopy', 'origin', 'impure', 'uuid'):
    for prefix in ('user.overlay.', 'trusted.overlay.'):
        for path in ('kept', 'folder'):
            try:
                os.setxattr(path, prefix + name, b'y')
            except OSError as error:
                pass
print(sorted(os.listdir('folder')), open('kept').read())
print([name for path in ('kept', 'folder') for name in os.listxattr(path)
       if not name.startswith('user.overlay.')])
"""


def test_a_task_cannot_mark_its_own_whiteouts_and_opaque_folders(place: Place) -> None:
    assert place.python("one.1", MARKS).stdout == "['deep'] base\n\n[]\n"
    marks = ("opaque", "whiteout", "redirect", "metacopy")
    for path in (place.upper("one.1"), *place.upper("one.1").rglob("*")):
        for kind in ("user", "trusted"):
            assert not {f"{kind}.overlay.{mark}" for mark in marks} & set(os.listxattr(path))
    seen = place.shell("two.1", "cat kept folder/deep/file; ls")
    assert seen.stdout.split() == ["base", "deep", "folder", "kept", "private"]


def test_a_task_cannot_give_files_away_or_break_into_others(place: Place) -> None:
    if not place.house.probe.privileged:
        return  # as an ordinary user nobody else's files can be in a base
    (place.base / "roots").write_text("not for the task")
    (place.base / "roots").chmod(0o600)
    os.chown(place.base / "kept", 12345, 12345)
    os.chown(place.base / "roots", 12345, 12345)
    outcome = place.shell("one.1", "set +e; cat kept; cat roots; echo x >> kept; echo x > roots")
    assert outcome.stdout == "base\n"
    assert outcome.stderr.count("Permission denied") >= 2, outcome
    assert (place.base / "kept").read_text() == "base\n"
    given = place.python("two.1", "import os; open('n', 'w'); os.chown('n', 0, 0)")
    assert given.code != 0
    assert (place.upper("two.1") / "n").stat().st_uid == KEEPER


def test_the_same_upper_is_not_mounted_twice(place: Place) -> None:
    spec = place.spec("one.1")
    assert place.house.shell("echo first > file", layer=spec).code == 0
    second = place.house.shell("echo second > file", layer=spec)
    assert second.failed is not None
    assert second.failed.step == "mounts"
    assert "overlay" in second.failed.message
    assert (place.upper("one.1") / "file").read_text() == "first\n"


def test_the_host_sees_none_of_it(place: Place) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    place.shell("one.1", "true")
    assert Path("/proc/self/mountinfo").read_text() == before


# --- refused before anything is built -----------------------------------------------------------


def test_what_is_not_there_is_refused_by_name(place: Place) -> None:
    place.lower = ["gone.1"]
    with pytest.raises(SetupRefused, match=r"gone\.1/upper.*is not a folder"):
        place.shell("one.1", "true")


def test_layers_cannot_lie_inside_their_base(place: Place) -> None:
    inside = Place(place.house, place.base / "folder")
    spec = inside.spec("one.1")
    around = LayerSpec(base=str(place.base), folder=spec.folder, lower=(), upper="one.1")
    with pytest.raises(SetupRefused, match="lie inside the base"):
        place.house.shell("true", layer=around)


def test_a_layer_on_disk_is_never_roots(place: Place) -> None:
    spec = place.spec("one.1")
    if not place.house.probe.privileged:  # whoever we are, a file there is ours already
        assert place.house.shell("true", layer=spec).code == 0
        return
    os.chown(place.upper("one.1"), 0, KEEPER)
    with pytest.raises(SetupRefused, match="belongs to root"):
        place.house.shell("true", layer=spec)


def test_a_folder_closed_to_the_layers_owner_is_refused(place: Place) -> None:
    spec = place.spec("one.1")
    place.layers.chmod(0o700)
    if not place.house.probe.privileged:  # the owner is ourselves
        assert place.house.shell("true", layer=spec).code == 0
        return
    with pytest.raises(SetupRefused, match=r"chmod o\+x"):
        place.house.shell("true", layer=spec)
    os.chown(place.layers, KEEPER, KEEPER)
    assert place.house.shell("true", layer=spec).code == 0, "unless it is the owner's own"


# --- whether it can be had here -----------------------------------------------------------------


@pytest.mark.parametrize("alone", [False, True])
def test_overlay_works_says_so_and_leaves_nothing(tmp_path: Path, alone: bool) -> None:
    base = tmp_path / "base"
    base.mkdir()
    state = tmp_path / "state"
    state.mkdir()
    before = Path("/proc/self/mountinfo").read_text()
    namespaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "user")]
    assert overlay_works_here(state, None, alone) is None
    assert overlay_works_here(state, base, alone) is None
    assert os.listdir(state) == os.listdir(base) == []
    assert Path("/proc/self/mountinfo").read_text() == before
    assert [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "user")] == namespaces


def overlay_works_here(folder: Path, base: Path | None, alone: bool) -> str | None:
    """`alone` forks, which is for a process without threads: the tests' may have some."""
    if not alone:
        return overlay_works(folder, base)
    code = (
        "import sys; from pathlib import Path; from casemate.sandbox.probe import overlay_works\n"
        "base = Path(sys.argv[2]) if sys.argv[2] else None\n"
        "print(overlay_works(Path(sys.argv[1]), base, alone=True))"
    )
    command = [sys.executable, "-c", code, str(folder), str(base or "")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None if said == "None" else said


def test_overlay_works_says_why_not(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    around = overlay_works(state, tmp_path)
    assert around is not None
    assert "inside one another" in around
    assert os.listdir(state) == []
    assert "gone" in (overlay_works(tmp_path / "gone") or "")
    missing = overlay_works(state, tmp_path / "no-base")
    assert missing is not None
    assert "no-base" in missing
    assert os.listdir(state) == []
