"""A patch is right when `git apply` makes the run's tree of the base, and the base of it again.

Real git, in a folder that is no repository: there the attributes and hooks of none have a say.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from casemate.supervisor.layers import Resolved
from casemate.supervisor.linediff import Effort, changed_blocks
from casemate.supervisor.patch import (
    PATH_SIZE,
    TEXT_SIZE,
    Summary,
    quoted,
    summary_lines,
    write_patch,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trees import File, Folder, Link, Node, Tree, build, changes_between, read_tree


class Place:
    """A base and a run's layer beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / "base"
        self.layers = root / "layers"

    def patch(self, before: Tree, after: Tree) -> tuple[bytes, Summary]:
        for folder in (self.base, self.layers):
            if folder.exists():
                shutil.rmtree(folder)
        build(self.base, before)
        return self.patch_of(changes_between(before, after, self.layers))

    def patch_of(self, changes: list[Resolved]) -> tuple[bytes, Summary]:
        self.layers.mkdir(exist_ok=True)
        out = io.BytesIO()
        summary = write_patch(self.base, self.layers, changes, out)
        return out.getvalue(), summary

    def apply(self, patch: bytes, *options: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(self.root),
            "LC_ALL": "C",
        }
        done = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", *options],
            input=patch, cwd=self.base, env=environment, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, (done.stderr, patch)


def as_git_sees(tree: Tree) -> Tree:
    """Without folders, and modes but for whether a file may be executed."""
    seen: Tree = {}
    for path, node in tree.items():
        if isinstance(node, File):
            seen[path] = File(node.content, 0o755 if node.mode & 0o100 else 0o644)
        elif isinstance(node, Link):
            seen[path] = node
    return seen


def is_misread(base: Path, before: Tree, after: Tree) -> bool:
    """git looks for a link above what a patch makes by the paths that stand there now, so also
    through a link that the patch takes away; what it finds there is not what will be above, and it
    refuses its own patches for it (2.39). `base` holds `before`."""
    parents = (parent for path in after for parent in Path(path).parents)
    return any((base / parent).is_symlink() and str(parent) not in before for parent in parents)


def assert_round_trip(place: Place, before: Tree, after: Tree) -> tuple[bytes, Summary]:
    patch, summary = place.patch(before, after)
    if as_git_sees(before) == as_git_sees(after):
        assert patch == b""
        return patch, summary
    if is_misread(place.base, before, after):
        return patch, summary
    place.apply(patch, "--check")
    place.apply(patch)
    assert as_git_sees(read_tree(place.base)) == as_git_sees(after)
    if is_misread(place.base, after, before):
        return patch, summary
    place.apply(patch, "--reverse", "--check")
    place.apply(patch, "--reverse")
    assert as_git_sees(read_tree(place.base)) == as_git_sees(before)
    return patch, summary


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def lines(*numbers: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in numbers)


TEXT = lines(*range(100))
BINARY = bytes(range(256)) * 20


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": File(TEXT)}, {"a": File(TEXT.replace(b"line 7\n", b"seven\n"))}),
        ({"a": File(TEXT)}, {"a": File(lines(*range(3), *range(50, 99)))}),
        ({"a": File(TEXT)}, {"a": File(b"")}),
        ({"a": File(b"")}, {"a": File(TEXT)}),
        ({}, {"a": File(b"")}),
        ({"a": File(b"")}, {}),
        ({}, {"new/deep/a": File(TEXT)}),
        ({"old/deep/a": File(TEXT)}, {}),
        ({"a": File(b"x\ny")}, {"a": File(b"x\ny\n")}),
        ({"a": File(b"x\ny\n")}, {"a": File(b"x\ny")}),
        ({"a": File(b"x\ny")}, {"a": File(b"z\ny")}),
        ({"a": File(b"one\r\ntwo\r\n")}, {"a": File(b"one\r\n2\r\nthree\n\r")}),
        ({"a": File(b"caf\xe9\n")}, {"a": File(b"caf\xe9s\n")}),
        ({"a": File(b"\x0cx\x85\x1c\n\xe2\x80\xa8")}, {"a": File(b"\x0cy\x85\x1c\n\xe2\x80\xa8")}),
        ({"a": File(BINARY)}, {"a": File(BINARY + b"!")}),
        ({}, {"a": File(BINARY)}),
        ({"a": File(BINARY)}, {}),
        ({"a": File(BINARY)}, {"a": File(b"text\n")}),
        ({"a": File(b"\0")}, {"a": File(b"")}),
        ({"a": File(TEXT, 0o644)}, {"a": File(TEXT, 0o755)}),
        ({"a": File(TEXT, 0o755)}, {"a": File(TEXT + b"!", 0o644)}),
        ({"a": File(BINARY, 0o644)}, {"a": File(b"", 0o755)}),
        ({"a": File(TEXT)}, {"a": Link("b")}),
        ({"a": Link("b")}, {"a": File(TEXT)}),
        ({"a": Link("b")}, {"a": Link("c\nd")}),
        ({"a": File(b"b")}, {"a": Link("b")}),
        ({"a": File(TEXT)}, {"a/b": File(TEXT), "a/c/d": File(b"")}),
        ({"a/b": File(TEXT), "a/c/d": File(b"")}, {"a": File(TEXT)}),
        ({"a/b": File(TEXT)}, {"a": Link("c")}),
        ({"a": Link("c"), "c/b": File(b"1")}, {"a/b": File(TEXT), "c/b": File(b"1")}),
        ({"a-": File(b"1"), "a/b": File(b"2")}, {"a": File(b"3"), "a-": File(b"4")}),
    ],
)  # fmt: skip
def test_git_makes_the_runs_tree_of_the_base_and_back(
    place: Place, before: Tree, after: Tree
) -> None:
    assert_round_trip(place, before, after)


@pytest.mark.parametrize(
    "name",
    [
        "a b", " a", "a ", "a b ", '"', 'a"b', "\\", "a\\n", "a\nb", "\n", "\t", "a\tb",
        "é", "日本",
        os.fsdecode(b"\xff\xfe"), "-n", "--reverse", "b", "a", "dev/null", "a/ b/ c", "\x7f",
        "\x1b[31m",
        "x b/x", "z /a", "a /b /c", "x b/x b/x", "a => b",
        "{a}", "*", "n" * 255, ".gitignore", "git", ".gi t",
    ],
)  # fmt: skip
def test_any_name_is_said_so_that_git_understands(place: Place, name: str) -> None:
    assert_round_trip(place, {}, {name: File(b"1\n")})
    assert_round_trip(place, {name: File(b"1\n")}, {name: File(b"2\n")})
    assert_round_trip(place, {name: File(b"")}, {name: File(b"", 0o755)})
    assert_round_trip(place, {name: File(b"\0")}, {name: File(b"\1\0")})
    assert_round_trip(place, {name: File(b"")}, {name: Link("x")})
    patch, _ = assert_round_trip(place, {name: File(b"")}, {})
    assert all(byte >= 0x20 or byte == 0x0A for byte in patch)


NAMES = st.sampled_from(
    ["a", "b", "c d", "é", "-x", 'q"', "n\nl", os.fsdecode(b"\xff"), "a.b", "z "]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENT = st.one_of(
    st.lists(st.sampled_from([b"x\n", b"y\n", b"z\r\n", b"\n", b"last"]), max_size=30).map(
        b"".join
    ),
    st.binary(max_size=200),
)
NODES = st.one_of(
    st.builds(File, CONTENT, st.sampled_from([0o644, 0o755, 0o600])),
    st.builds(Link, st.sampled_from(["b", "c d", "no where", "x\ny"])),
)
TREES = st.dictionaries(PATHS, NODES, max_size=8).map(lambda nodes: without_collisions(nodes))


def without_collisions(nodes: Mapping[str, Node]) -> Tree:
    """Nothing below what is a file or a link; no links in a circle, which git stops at."""
    return {
        path: node
        for path, node in nodes.items()
        if not any(path.startswith(f"{other}/") for other in nodes)
        and not (isinstance(node, Link) and path.rpartition("/")[2] in ("b", "c d"))
    }


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=TREES, after=TREES)
@example({}, {"z /a": File(b"")})
@example({"a": Link("b"), "b/c": File(b"")}, {"a/c": File(b"1"), "b/c": File(b"1")})
@example({"a/a/a": Link("b")}, {"a": Link("b"), "b/a": Link("b")})
def test_any_tree_becomes_any_other(place: Place, before: Tree, after: Tree) -> None:
    assert_round_trip(place, before, after)


def test_a_line_diff_says_little_for_a_little_change(place: Place) -> None:
    patch, _ = place.patch({"a": File(TEXT)}, {"a": File(TEXT.replace(b"line 7\n", b"seven\n"))})
    assert patch.splitlines()[2:] == [
        b"--- a/a", b"+++ b/a", b"@@ -5,7 +5,7 @@",
        b" line 4", b" line 5", b" line 6", b"-line 7", b"+seven",
        b" line 8", b" line 9", b" line 10",
    ]  # fmt: skip


def test_ids_are_those_of_git(place: Place) -> None:
    patch, _ = place.patch({"a": File(b"hello\n")}, {"a": File(b"")})
    [ids] = [line for line in patch.splitlines() if line.startswith(b"index ")]
    assert ids == (
        b"index ce013625030ba8dba906f756967f9e9ca394464a"
        b"..e69de29bb2d1d6434b8b29ae775ad8c2e48c5391 100644"
    )


def test_a_large_file_is_binary_and_the_summary_says_so(place: Place) -> None:
    large = random.Random(1).randbytes(TEXT_SIZE).replace(b"\0", b"\1") + b"!!"
    _, summary = assert_round_trip(place, {"a": File(large)}, {"a": File(large[1:] + b"?")})
    assert summary.binary == {"a": "larger than 2 MiB"}


def test_what_differs_in_nothing_is_not_mentioned(place: Place) -> None:
    """Copied up and written as it was."""
    build(place.base, {"a": File(TEXT), "hook": File(b"", 0o755), "l": Link("/etc")})
    build(place.layers / "t.1/upper", {"a": File(TEXT), "hook": File(b"", 0o755)})
    patch, summary = place.patch_of(
        [
            Resolved("a", "file", 0o644, "t.1", None),
            Resolved("hook", "file", 0o755, "t.1", None),
            Resolved("l", "link", 0o777, "t.1", "/etc"),
            Resolved("never there", "absent", 0, None, None),
        ]
    )
    assert (patch, summary) == (b"", Summary(0, 0, 0, {}, {}, {}))


def test_the_order_of_changes_does_not_matter(place: Place) -> None:
    after: Tree = {f"f{number}": File(b"%d" % number) for number in range(20)}
    build(place.base, {})
    changes = changes_between({}, after, place.layers)
    first, _ = place.patch_of(changes)
    second, _ = place.patch_of(changes[::-1])
    assert first == second


def test_what_a_patch_cannot_say_is_told(place: Place) -> None:
    before: Tree = {
        "gone empty": Folder(), "open": Folder(0o755), "open/x": File(b""), "left/f": File(b"1"),
        "private": File(b"1", 0o644),
    }  # fmt: skip
    after: Tree = {
        "new empty": Folder(), "open": Folder(0o700), "open/x": File(b""), "left": Folder(),
        "private": File(b"1", 0o600),
    }  # fmt: skip
    patch, summary = place.patch(before, after)
    assert summary.left_out == {
        "gone empty": "an empty folder that is removed",
        "left": "is left empty, and git removes it then",
        "new empty": "an empty folder",
        "open": "a folder's mode, 0755 → 0700",
        "private": "its mode, 0644 → 0600",
    }
    assert b"private" not in patch
    assert summary_lines(summary)[:2] == [
        "1 file: 1 deleted",
        "not in the patch: gone empty (an empty folder that is removed)",
    ]


@pytest.mark.parametrize(
    ("path", "node"),
    [
        (".git/hooks/pre-commit", File(b"")),
        (".git/config", File(b"")),
        ("sub/.git/config", File(b"")),
        (".GIT/config", File(b"")),
        ("GIT~1/config", File(b"")),
        (".git. /config", File(b"")),
        (".g\u200cit/config", File(b"")),
        (".git:x/config", File(b"")),
        (".git", File(b"gitdir: elsewhere")),
        (".envrc", File(b"")),
        ("sub/.envrc", File(b"")),
        (".gitattributes", File(b"")),
        (".GitModules", File(b"")),
        (".github/workflows/ci.yml", File(b"")),
        (".gitlab-ci.yml", File(b"")),
        (".circleci/config.yml", File(b"")),
        ("Jenkinsfile", File(b"")),
        ("azure-pipelines.yml", File(b"")),
        (".travis.yml", File(b"")),
        (".buildkite/pipeline.yml", File(b"")),
        (".pre-commit-config.yaml", File(b"")),
        ("run.sh", File(b"", 0o755)),
        ("bare/HEAD", File(b"")),
        ("out", Link("/etc/passwd")),
        ("out", Link("../x")),
        ("sub/out", Link("../../x")),
        ("sub/out", Link("a/../../x")),
        ("in", Link(".git/hooks")),
    ],
)
def test_what_wants_a_second_look_is_marked(place: Place, path: str, node: File | Link) -> None:
    _, summary = place.patch({}, {path: node})
    assert path in summary.risky
    _, summary = place.patch({path: node}, {})
    assert (path in summary.risky) == (path not in ("run.sh", "bare/HEAD", "out", "sub/out", "in"))


@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("src/git", File(b"")),
        (".gitignore", File(b"")),
        (".github/ISSUE_TEMPLATE.md", File(b"")),
        ("workflows/ci.yml", File(b"")),
        ("my.envrc", File(b"")),
        ("digit/config", File(b"")),
        ("in", Link("sub/x")),
        ("sub/in", Link("../x")),
        ("sub/in", Link("./../x/./y")),
    ],
)
def test_what_does_not_is_not(place: Place, path: str, node: File | Link) -> None:
    _, summary = place.patch({}, {path: node})
    assert summary.risky == {}


def test_a_file_turned_executable_is_marked_and_one_that_was_is_not(place: Place) -> None:
    _, summary = place.patch(
        {"a": File(b"", 0o644), "b": File(b"", 0o755)},
        {"a": File(b"", 0o755), "b": File(b"changed", 0o755)},
    )
    assert summary.risky == {"a": "becomes executable"}
    assert summary.left_out == {}


@pytest.mark.parametrize(
    ("path", "node"),
    [
        (".git/hooks/x", File(b"")),
        ("a/.gIT/x", File(b"")),
        ("git~1/x", File(b"")),
        (".git ./x", File(b"")),
        ("a\\.git\\x", File(b"")),
        (".gitmodules", Link("x")),
        (".gitmodules ", Link("x")),
        ("gitmod~1", Link("x")),
        ("gi7eba~1", Link("x")),
        ("~1000000", Link("x")),
    ],
)
def test_a_name_that_git_refuses_does_not_spoil_the_patch(
    place: Place, path: str, node: Node
) -> None:
    patch, summary = place.patch({}, {path: node, "good": File(b"1")})
    assert summary.left_out == {path: "git apply refuses such a name"}
    place.apply(patch)
    assert as_git_sees(read_tree(place.base)) == {"good": File(b"1")}


def test_nor_does_a_path_too_long_for_git(place: Place) -> None:
    deep = "/".join(["d" * 200] * 30)
    build(place.base, {})
    upper = place.layers / "t.1/upper"
    build(upper, {"good": File(b"1")})
    here = os.open(upper, os.O_PATH)
    for name in deep.split("/"):
        os.mkdir(name, dir_fd=here)
        above, here = here, os.open(name, os.O_PATH, dir_fd=here)
        os.close(above)
    os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    assert len(deep) > PATH_SIZE
    patch, summary = place.patch_of(
        [
            Resolved(f"{deep}/f", "file", 0o644, "t.1", None),
            Resolved("good", "file", 0o644, "t.1", None),
        ]
    )
    assert summary.left_out == {f"{deep}/f": "its path is too long for git"}
    place.apply(patch)


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def plant_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def plant_magic_link(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


def plant_folder(path: Path) -> None:
    path.mkdir()


PLANTS = [plant_fifo, plant_socket, plant_link, plant_magic_link, plant_folder]


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_in_a_layer_is_told_and_not_read(
    place: Place, plant: Callable[[Path], None]
) -> None:
    build(place.base, {"a": File(b"1")})
    build(place.layers / "t.1/upper", {"good": File(b"1")})
    plant(place.layers / "t.1/upper/a")
    patch, summary = place.patch_of(
        [
            Resolved("a", "file", 0o644, "t.1", None),
            Resolved("good", "file", 0o644, "t.1", None),
        ]
    )
    assert list(summary.left_out) == ["a"] and "not a regular file" in summary.left_out["a"]
    assert patch.count(b"diff --git") == 1 and b"root" not in patch


@pytest.mark.parametrize("plant", [plant_fifo, plant_socket])
def test_what_is_odd_in_the_workspace_is_told_and_not_opened(
    place: Place, plant: Callable[[Path], None]
) -> None:
    build(place.base, {})
    plant(place.base / "a")
    build(place.layers / "t.1/upper", {"a": File(b"1")})
    patch, summary = place.patch_of([Resolved("a", "file", 0o644, "t.1", None)])
    assert patch == b"" and list(summary.left_out) == ["a"]
    patch, summary = place.patch_of([Resolved("a", "absent", 0, None, None)])
    assert patch == b"" and list(summary.left_out) == ["a"]


def test_nothing_is_read_through_a_link_in_a_path(place: Place) -> None:
    build(place.root / "outside", {"secret": File(b"secret\n")})
    build(place.base, {"a": Link("../outside")})
    build(place.layers / "t.1/upper", {"b": Link("../../../outside"), "a/secret": File(b"1\n")})
    patch, summary = place.patch_of(
        [
            Resolved("a", "folder", 0o755, "t.1", None),
            Resolved("a/secret", "file", 0o644, "t.1", None),
            Resolved("b/secret", "file", 0o644, "t.1", None),
        ]
    )
    assert b"secret\n" not in patch.replace(b"a/secret\n", b"")
    assert list(summary.left_out) == ["b/secret"]
    place.apply(patch)
    assert (place.root / "outside/secret").read_bytes() == b"secret\n"


def test_what_may_not_be_read_is_told(place: Place) -> None:
    """Root may read everything, and anybody what a task of theirs closed. A workspace is not opened
    to be looked at."""
    build(place.base, {"a": File(b"0", 0)})
    build(place.layers / "t.1/upper", {"a": File(b"1"), "b": File(b"1", 0)})
    patch, summary = place.patch_of(
        [
            Resolved("a", "file", 0o644, "t.1", None),
            Resolved("b", "file", 0, "t.1", None),
        ]
    )
    assert b"b/b" in patch
    if os.geteuid() == 0:
        assert patch.count(b"diff --git") == 2
    else:
        assert patch.count(b"diff --git") == 1
        assert "Permission denied" in summary.left_out["a"]
    (place.base / "a").chmod(0o600)


def test_a_sparse_giant_is_left_out_without_being_read(place: Place) -> None:
    build(place.base, {"a": File(b"1")})
    build(place.layers / "t.1/upper", {})
    with (place.layers / "t.1/upper/a").open("wb") as file:
        file.truncate(1 << 42)
    patch, summary = place.patch_of([Resolved("a", "file", 0o644, "t.1", None)])
    assert patch == b"" and "512 MiB" in summary.left_out["a"]


def test_names_reach_a_terminal_as_letters_only() -> None:
    hostile = "\x1b[2J\u202e\x9b" + os.fsdecode(b"\xff")
    summary = Summary(0, 0, 0, {}, {}, {f"{hostile}{number}": "x" for number in range(50)})
    told = summary_lines(summary)
    assert len(told) == 22 and told[-1] == "risky: and 30 more"
    assert all(line.isascii() and line.isprintable() for line in told)
    assert quoted("plain name") == "plain name"


# --- lines ---------------------------------------------------------------------------------------


def patched(old: list[bytes], new: list[bytes], effort: Effort) -> list[bytes]:
    """`old` with the blocks replaced; what is between them must be equal."""
    result: list[bytes] = []
    at = 0
    for old_from, old_to, new_from, new_to in changed_blocks(old, new, effort):
        assert old_from >= at and (old_from < old_to or new_from < new_to)
        result += old[at:old_from]
        assert len(result) == new_from
        result += new[new_from:new_to]
        at = old_to
    return result + old[at:]


LINES = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=40)


@given(LINES, LINES, st.sampled_from([1, 30, 300, 100_000]))
def test_blocks_turn_one_text_into_the_other_whatever_the_effort(
    old: list[bytes], new: list[bytes], steps: int
) -> None:
    assert patched(old, new, Effort(each=steps)) == new


@given(LINES, LINES)
def test_as_many_lines_as_can_be_are_kept(old: list[bytes], new: list[bytes]) -> None:
    longest = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for x, one in enumerate(old):
        for y, other in enumerate(new):
            longest[x + 1][y + 1] = (
                longest[x][y] + 1 if one == other else max(longest[x][y + 1], longest[x + 1][y])
            )
    changed = sum(block[1] - block[0] for block in changed_blocks(old, new, Effort()))
    assert len(old) - changed == longest[-1][-1]


def test_lines_that_occur_once_hold_together_what_has_too_many_edits_to_be_followed() -> None:
    old = [b"%d" % number if number % 3 else b"" for number in range(3000)]
    new = [line if line else b"changed" for line in old]
    assert patched(old, new, Effort()) == new
    assert len(changed_blocks(old, new, Effort())) == 1000


def test_texts_made_to_be_hard_cost_a_bounded_time() -> None:
    """Cubic or quadratic algorithms take minutes to hours for these."""
    source = random.Random(5)
    old = [source.choice([b"a", b"b"]) for _ in range(300_000)]
    new = [source.choice([b"a", b"b"]) for _ in range(300_000)]
    effort = Effort()
    begun = time.process_time()
    for _ in range(3):
        assert patched(old, new, effort) == new
    assert time.process_time() - begun < 60
