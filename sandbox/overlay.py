"""The workspace of layers: an overlay over a read-only base, as a sandbox mounts it.

    upper               this attempt's own layer, the only place that is written to
    lower, lower, ...   layers of attempts before it, the topmost first
    base                the folder that nobody writes to

Base and layers folder are cloned while the host's tree is in view (`clone`), attached for a moment
at two places in the sandbox's own mount namespace (overlayfs clones layers out of mounts, and until
about Linux 6.15 only out of attached ones), and detached again once the overlay stands: it keeps
private copies, and from then on nothing else leads to them. Overlayfs is given numbered links, not
the layers' names: its options show in /proc/self/mountinfo, and one page (4095 bytes) holds them.

Whatever the overlay does below, it does as who mounted it. Under a root supervisor that is the
sandbox's reserved host id with the few capabilities this takes (`acting_as`), and both folders are
mapped to that id from their owners on disk: a file in a layer can belong to nobody else. As an
ordinary user it is ourselves, by the rights of the zygote's user namespace. `userxattr` in both
cases, for one format on disk; it switches redirect_dir and metacopy off, so a layer can be read
without the ones below it. `volatile`: who keeps a layer syncs it once, at the end.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import mounts, namespaces, syscalls
from .spec import FIRST_RESERVED_ID

__all__ = ["UPPER", "WORK", "Trees", "clone", "mount_overlay", "remove_trial", "try_overlay"]

UPPER = "upper"
WORK = "work"

# What overlayfs does in a task's name that the task's own rights would not do: copy up files of
# another owner or without permission to read, remove its own working files.
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID = range(5)
CAP_SYS_ADMIN = 21  # to mount
MOUNTING = sum(
    1 << capability
    for capability in (
        CAP_CHOWN,
        CAP_DAC_OVERRIDE,
        CAP_DAC_READ_SEARCH,
        CAP_FOWNER,
        CAP_FSETID,
        CAP_SYS_ADMIN,
    )
)

OPTIONS = "upperdir=u,workdir=w,userxattr,volatile,index=off"


@dataclass(frozen=True, slots=True)
class Trees:
    """Clones of the two folders, attached nowhere."""

    base: int
    layers: int


def clone(base: str, folder: str, *, base_idmap: int | None, idmap: int | None) -> Trees:
    return Trees(
        base=mounts.clone_layer(base, writable=False, idmap=base_idmap),
        layers=mounts.clone_layer(folder, writable=True, idmap=idmap),
    )


def mount_overlay(
    trees: Trees, *, lower: Sequence[str], upper: str, place: str, target: str, owner: int | None
) -> None:
    """Mount on `target`. `place`: a writable folder of ours, left as it was. `owner`: the host id
    to act as, under root. The trees' descriptors are closed."""
    links = {str(number): f"l/{name}/{UPPER}" for number, name in enumerate(lower)}
    stack = ":".join((*links, "b"))
    links |= {"u": f"l/{upper}/{UPPER}", "w": f"l/{upper}/{WORK}"}
    os.chdir(place)
    for name, tree in (("b", trees.base), ("l", trees.layers)):
        os.mkdir(name, 0o755)
        with mounts.place(name) as at:
            mounts.attach(tree, at)
    for name, leads_to in links.items():
        os.symlink(leads_to, name)
    with acting_as(owner):
        try:
            syscalls.mount(
                b"overlay",
                os.fsencode(target),
                b"overlay",
                syscalls.MS_NOSUID | syscalls.MS_NODEV,
                f"lowerdir={stack},{OPTIONS}".encode(),
            )
        except OSError as error:
            raise OSError(error.errno, f"overlay: {reason(error)}") from None
    for name in links:
        os.unlink(name)
    for name in ("b", "l"):
        syscalls.umount2(name.encode(), syscalls.MNT_DETACH)
        os.rmdir(name)
    os.chdir("/")


def reason(error: OSError) -> str:
    """The kernel's own words go to its log; these are what the number means for us."""
    said = os.strerror(error.errno or 0)
    meaning = {
        errno.ENODEV: "this kernel has no overlayfs (modprobe overlay)",
        errno.EINVAL: "the file system cannot hold layers, something is mounted below the base, "
        "the work folder was used before, or the kernel is too old",
        errno.ELOOP: "the base and the layers lie inside one another",
        errno.EOVERFLOW: "a layer belongs to somebody else than its owner",
        errno.EACCES: "the layers' folder is not open to their owner",
        errno.ENOENT: "a layer is not there",
    }.get(error.errno or 0)
    return f"{said}: {meaning}" if meaning else said


@contextmanager
def acting_as(owner: int | None) -> Iterator[None]:
    """Make and own files as `owner` (a host id; None: no change), with no more capabilities than
    an overlay needs: it remembers both from its mounting on."""
    if owner is None:
        yield
        return
    effective, permitted, inheritable = syscalls.capget()
    try:
        for call in ("setfsgid", "setfsuid"):
            syscalls.syscall(call, owner)
            if syscalls.syscall(call, -1) != owner:  # they never fail, and never say so
                raise OSError(errno.EPERM, f"{call}({owner}) was refused")
        syscalls.capset(permitted & MOUNTING, permitted, inheritable)
        yield
    finally:
        syscalls.syscall("setfsuid", os.geteuid())
        syscalls.syscall("setfsgid", os.getegid())
        syscalls.capset(effective, permitted, inheritable)


# --- trying ------------------------------------------------------------------------------------


def try_overlay(folder: str, base: str | None, *, privileged: bool) -> None:
    """Do in `folder` (empty, and ours) all that layers ask of its file system, over `base` if there
    is one; OSError says what failed. Changes this process for good."""
    trial = Path(folder)
    made, below, own = trial / "base", trial / "layers" / "1", trial / "layers" / "2"
    for path in (made, below / UPPER / "folder", own / UPPER, own / WORK, trial / "place" / "seen"):
        path.mkdir(parents=True)
    for name in ("file", "folder/file"):
        (below / UPPER / name).write_text("below")
    lower = Path(base) if base is not None else made
    idmap = base_idmap = owner = None
    if privileged:
        on_disk, owner = (FIRST_RESERVED_ID, FIRST_RESERVED_ID), FIRST_RESERVED_ID + 1
        trial.chmod(0o711)
        for path in (own / UPPER, own / WORK, *(below / UPPER).rglob("*"), below / UPPER):
            os.chown(path, *on_disk)
        status = lower.stat()
        idmap = namespaces.make_idmap(on_disk, owner)
        base_idmap = namespaces.make_idmap((status.st_uid, status.st_gid), owner)
    else:
        namespaces.enter_zygote_user()
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    trees = clone(str(lower), str(trial / "layers"), base_idmap=base_idmap, idmap=idmap)
    seen = trial / "place" / "seen"
    mount_overlay(
        trees,
        lower=("1",),
        upper="2",
        place=str(trial / "place"),
        target=str(seen),
        owner=owner,
    )
    with acting_as(owner):
        (seen / "new").write_text("new")
        with (seen / "file").open("a") as file:
            file.write(" and above")
        (seen / "folder" / "file").unlink()
        (seen / "folder").rmdir()
        (seen / "folder").mkdir()  # opaque: fails where user.* attributes cannot be kept
        os.setxattr(seen / "new", "user.casemate", b"kept")
        left = sorted(os.listdir(seen / "folder"))
    written = os.stat(own / UPPER / "file")
    if left or (seen / "file").read_text() != "below and above":
        raise OSError(errno.EIO, "the overlay does not show what was written to it")
    if privileged and written.st_uid != FIRST_RESERVED_ID:
        raise OSError(errno.EIO, f"a file of the layer belongs to uid {written.st_uid}")


def remove_trial(folder: str) -> None:
    """What `try_overlay` left: overlayfs makes folders that nobody may enter."""
    for path, folders, files in os.walk(folder, topdown=True):
        for name in folders:
            below = os.path.join(path, name)
            if not stat.S_ISLNK(os.lstat(below).st_mode):
                os.chmod(below, 0o700)
        for name in files:
            os.unlink(os.path.join(path, name))
    for path, _folders, _files in os.walk(folder, topdown=False):
        os.rmdir(path)
