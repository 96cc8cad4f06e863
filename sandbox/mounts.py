"""What a sandbox sees of files.

The *template* is a mount namespace made once by a helper of the zygote: a tmpfs as root, in it
read-only clones of /usr and the interpreter, a few device nodes, a synthetic /etc and empty mount
points. Nothing of the host is in it that is not listed here, so there is nothing to hide later.

A spawn makes what is its own while the host's tree is still in view (clones of bound paths, a
fresh /proc, one tmpfs), as mounts attached nowhere; then enters a copy of the template and attaches
them. The kernel copies about fifteen mounts instead of the host's hundred, and pivot_root is never
needed again. One tmpfs carries /tmp, /dev/shm and the outbox, so that one size caps them all.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from . import packets, syscalls
from .etc import fill_etc
from .namespaces import reap
from .syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_PRIVATE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
)

__all__ = [
    "Template",
    "attach",
    "attach_scratch",
    "clone_layer",
    "clone_tree",
    "ensure_mount_point",
    "fresh_proc",
    "fresh_tmpfs",
    "is_below",
    "is_folder",
    "make_parents",
    "make_template",
    "place",
    "scratch",
    "seal_scratch",
]

# Where a sandbox's own tmpfs shows: what is bound below these cannot be part of the template.
SCRATCH = ("/tmp", "/dev/shm", "/casemate")
MOUNT_POINTS = ("proc", "tmp", "dev", "dev/shm", "workspace", "sources", "casemate", "etc")
DEVICES = ("null", "zero", "full", "random", "urandom")
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")

# The template is a few hundred small files; this bounds what mount points of later binds can add.
TEMPLATE_OPTIONS = {"mode": "0755", "size": "16m", "nr_inodes": "16k"}


@dataclass(frozen=True, slots=True)
class Template:
    """`namespace`: the fd to enter. `root`: its root, writable through this fd alone. `late`:
    folders to bind at each spawn, since they lie where a sandbox's own tmpfs goes."""

    namespace: int
    root: int
    bound: tuple[str, ...]
    late: tuple[str, ...]


def is_folder(tree: int) -> bool:
    return stat.S_ISDIR(os.fstat(tree).st_mode)


def is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def outermost(paths: Iterable[str]) -> list[str]:
    """Without those that another one already contains."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(is_below(path, folder) for folder in kept):
            kept.append(path)
    return kept


def clone_tree(
    path: str, *, writable: bool, idmap: int | None = None, dev: bool = False, follow: bool = True
) -> int:
    """The mounts at and below `path`, copied and attached nowhere; nosuid always. `follow`: links
    on the way.

    Recursive, because the mounts of a host are locked together for a user namespace: taking one
    without those below it would uncover what they hide, and is refused (EINVAL).
    """
    tree = cloned(path, AT_RECURSIVE, writable=writable, dev=dev, follow=follow)
    if idmap is not None:
        try:
            map_owners(tree, path, idmap, AT_RECURSIVE, "make it readable by everyone, or ")
        except OSError:
            if writable or not world_readable(tree):
                os.close(tree)
                raise
    return tree


def clone_layer(path: str, *, writable: bool, idmap: int | None) -> int:
    """The same for a layer of an overlay, which shows one mount and nothing mounted below it, and
    whose owner must be mapped: what is copied up takes its owner along. `idmap` is None without
    privilege, where the mounts below are locked and cannot be left out: then the overlay is
    refused."""
    below = AT_RECURSIVE if idmap is None else 0
    tree = cloned(path, below, writable=writable, dev=False)
    if idmap is not None:
        try:
            map_owners(tree, path, idmap, below)
        except OSError:
            os.close(tree)
            raise
    return tree


def cloned(path: str, below: int, *, writable: bool, dev: bool, follow: bool = True) -> int:
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | below
    try:
        if follow:
            tree = syscalls.open_tree(AT_FDCWD, os.fsencode(path), flags)
        else:
            with place(path) as found:
                tree = syscalls.open_tree(found, b"", flags | AT_EMPTY_PATH)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None
    try:
        attributes = MOUNT_ATTR_NOSUID
        if not dev:
            attributes |= MOUNT_ATTR_NODEV
        if not writable:
            attributes |= MOUNT_ATTR_RDONLY
        syscalls.mount_setattr(
            tree, b"", AT_EMPTY_PATH | below, attr_set=attributes, propagation=MS_PRIVATE
        )
    except OSError:
        os.close(tree)
        raise
    return tree


def map_owners(tree: int, path: str, idmap: int, below: int, advice: str = "") -> None:
    try:
        syscalls.mount_setattr(
            tree, b"", AT_EMPTY_PATH | below, attr_set=MOUNT_ATTR_IDMAP, userns_fd=idmap
        )
    except OSError as error:
        message = (
            f"{path}: its file system cannot map owners (idmapped mount: "
            f"{os.strerror(error.errno or 0)}): {advice}move it to ext4, xfs, btrfs or tmpfs"
        )
        raise OSError(error.errno, message) from None


def world_readable(tree: int) -> bool:
    mode = os.fstat(tree).st_mode
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & needed == needed


def attach(tree: int, target: int) -> None:
    """Attach what clone_tree and the fresh_… functions made; the fd is closed."""
    syscalls.move_mount(tree, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH, to_fd=target)
    os.close(tree)


@contextmanager
def place(path: str, root: int = AT_FDCWD) -> Iterator[int]:
    """The existing `path` as a place to attach to. No symbolic link is followed: a folder bound
    earlier may hold links that its last user made."""
    resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    fd = syscalls.openat2(root, os.fsencode(path), os.O_PATH, resolve=resolve)
    try:
        yield fd
    finally:
        os.close(fd)


def make_file_system(kind: str, options: dict[str, str | None], attributes: int) -> int:
    context = syscalls.fsopen(kind.encode())
    try:
        for key, value in options.items():
            command = syscalls.FSCONFIG_SET_FLAG if value is None else syscalls.FSCONFIG_SET_STRING
            text = None if value is None else value.encode()
            syscalls.fsconfig(context, command, key.encode(), text)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def fresh_proc(*, only_pids: bool) -> int:
    """A /proc of the pid namespace we are in. Made before the host's goes out of view: the kernel
    gives a user namespace no /proc unless it already sees one whole."""
    # Not "invisible": that one shows all to members of group 0 (Linux 5.8 and later have both).
    options: dict[str, str | None] = {"hidepid": "ptraceable"}
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    if only_pids:
        options["subset"] = "pid"
    else:
        attributes |= MOUNT_ATTR_RDONLY
    return make_file_system("proc", options, attributes)


def fresh_tmpfs(options: dict[str, str]) -> int:
    return make_file_system("tmpfs", {**options}, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)


# What a sandbox's tmpfs shows where, with its mode. World-writable and sticky like everywhere.
SCRATCH_FOLDERS = {"tmp": ("/tmp", 0o1777), "shm": ("/dev/shm", 0o1777), "out": ("", 0o700)}


def scratch(*, size: int, inodes: int, owner: int | None) -> int:
    """The sandbox's tmpfs, not yet attached; `owner` is the host id of the task, if not ours."""
    tree = fresh_tmpfs({"mode": "0755", "size": str(size), "nr_inodes": str(inodes)})
    for name, (_target, mode) in SCRATCH_FOLDERS.items():
        os.mkdir(name, dir_fd=tree)
        os.chmod(name, mode, dir_fd=tree)  # mkdir's mode went through the umask
        if owner is not None:
            os.chown(name, owner, owner, dir_fd=tree)
    return tree


def attach_scratch(tree: int, files: Iterable[str]) -> None:
    """To /casemate, and its folders to /tmp and /dev/shm. `files`: empty files there to bind
    over. Then /casemate itself turns read-only, so that only those folders can be written."""
    for name in files:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=tree))
    with place("/casemate") as target:
        attach(tree, target)
    for name, (target_path, _mode) in SCRATCH_FOLDERS.items():
        path = f"/casemate/{name}"
        clone = syscalls.open_tree(AT_FDCWD, path.encode(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        with place(target_path or path) as target:
            attach(clone, target)


def seal_scratch() -> None:
    syscalls.mount_setattr(AT_FDCWD, b"/casemate", 0, attr_set=MOUNT_ATTR_RDONLY)


def make_parents(root: int, path: str, *, folder: bool, owner: int | None = None) -> None:
    """Empty folders (and a file, if the last is one) from `root` down, to attach a mount to.
    `owner`: of what is made, if not us."""
    parts = [part for part in path.split("/") if part]
    current = os.dup(root)
    try:
        for index, part in enumerate(parts):
            if index == len(parts) - 1 and not folder:
                with suppress(FileExistsError):
                    os.close(
                        os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444, dir_fd=current)
                    )
                return
            try:
                os.mkdir(part, 0o755, dir_fd=current)
                if owner is not None:
                    os.chown(part, owner, owner, dir_fd=current)
            except FileExistsError:
                pass
            below = os.open(
                part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current
            )
            current, done = below, current
            os.close(done)
    finally:
        os.close(current)


def ensure_mount_point(template: Template, path: str, *, folder: bool) -> None:
    """In the template, for all sandboxes to come: an empty folder is all the others see of it."""
    if any(is_below(path, bound) for bound in template.bound):
        return  # it must exist in what is bound there
    make_parents(template.root, path, folder=folder)


def make_template(folders: Iterable[str]) -> Template:
    """`folders`: of the interpreter and of casemate, each seen at its own path."""
    wanted = [folder for folder in folders if Path(folder).is_dir()]
    for folder in wanted:
        if folder in ("/", "/etc", "/home", "/root", "/proc", "/dev", str(Path.home())):
            message = f"the interpreter's folder {folder} would show too much: use a virtualenv"
            raise OSError(errno.EPERM, message)
    late = outermost(f for f in wanted if any(is_below(f, own) for own in SCRATCH))
    bound = outermost(["/usr", *(f for f in wanted if f not in late)])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            root = build_template(bound)
            seal_template()
            packets.send(theirs, struct.pack("i", 0), [namespace, root])
            code = 0
        except OSError as error:
            theirs.send(struct.pack("i", error.errno or errno.EIO) + str(error).encode())
        finally:
            os._exit(code)
    theirs.close()
    with ours:
        answer, fds, _ = packets.receive(ours, 4096, 2)
        reap(pid)
    if len(fds) != 2:
        number = struct.unpack_from("i", answer)[0] if len(answer) >= 4 else errno.EIO
        raise OSError(number, f"template root: {answer[4:].decode(errors='replace')}")
    return Template(fds[0], fds[1], tuple(bound), tuple(late))


def build_template(bound: list[str]) -> int:
    """In a helper, in a mount namespace of its own; returns the writable handle of the root."""
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    trees = {folder: clone_tree(folder, writable=False) for folder in bound}
    for name in SYSTEM_FOLDERS:
        path = Path("/", name)
        if path.is_dir() and not path.is_symlink():
            trees[str(path)] = clone_tree(str(path), writable=False)
    devices = {name: clone_tree(f"/dev/{name}", writable=True, dev=True) for name in DEVICES}
    root = fresh_tmpfs(TEMPLATE_OPTIONS)
    for name in MOUNT_POINTS:
        make_parents(root, name, folder=True)
    for folder in trees:
        make_parents(root, folder, folder=True)
    for name in SYSTEM_FOLDERS:
        link = Path("/", name)
        if link.is_symlink():
            os.symlink(link.readlink(), name, dir_fd=root)
    for name, link_target in DEVICE_LINKS.items():
        os.symlink(link_target, f"dev/{name}", dir_fd=root)
    for name in DEVICES:
        make_parents(root, f"dev/{name}", folder=False)
    fill_etc(root)

    # Any folder will do to attach the new root to before it is the root. /proc is always there.
    with place("/proc") as target:
        attach(os.dup(root), target)
    os.chdir("/proc")
    handle = syscalls.open_tree(AT_FDCWD, b"/proc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    for folder, tree in trees.items():
        with place(folder.lstrip("/")) as target:
            attach(tree, target)
    for name, tree in devices.items():
        with place(f"dev/{name}") as target:
            attach(tree, target)
    return handle


def seal_template() -> None:
    """The folder we stand in becomes the root, the host's tree goes, and writing ends."""
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir("/")
    syscalls.mount_setattr(AT_FDCWD, b"/", 0, attr_set=MOUNT_ATTR_RDONLY)
