"""The guest's disk: a Debian of its own release, kernel and Python, with what the tests run.

mmdebstrap makes a tar of it, in a mount namespace of its own: as root it would mount /proc and more
where it is, so it is started in one; else it has a user namespace. mke2fs makes a file system
of the tar without mounting anything; kernel and initramfs are taken out of it. An image is kept
under a name that hashes all it is made of, so that it is made once; what a run writes to it goes to
a temporary file (qemu's `snapshot=on`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MARKER", "USER", "Image", "make_image", "missing_programs"]

MIRROR = "http://deb.debian.org/debian"

# The ordinary user of the guest.
USER = "agent"

# By this file a program knows that it runs in a guest of ours, which nobody minds losing.
MARKER = "/etc/casemate-test-vm"

# Sparse: 1.6 GiB of it are used.
DISK_SIZE = "6G"

# The programs that tests/sandbox run inside sandboxes are here, so that they are not passed over.
PACKAGES = (
    *("linux-image-cloud-amd64", "systemd", "systemd-sysv", "dbus", "dbus-user-session"),
    *("libpam-systemd", "python3", "python3-venv", "procps", "kmod", "netbase", "bash", "tar"),
    *("perl", "git", "gcc", "libc6-dev", "make", "nodejs", "default-jdk-headless", "ripgrep"),
    *("sqlite3", "curl"),
)

# Not the manual: the JDK cannot be configured without its folder.
UNNEEDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")

# Everything comes on the second disk; everything goes onto the third.
UNIT = """
[Unit]
Description=the suites of casemate
After=multi-user.target systemd-user-sessions.service user@1000.service dbus.service
Wants=user@1000.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=exec
Environment=HOME=/root LANG=C.UTF-8
ExecStartPre=/bin/mkdir -p /srv/job
ExecStartPre=/bin/tar -x --no-same-owner -f /dev/vdb -C /srv/job
ExecStart=/usr/bin/python3 -B /srv/job/tests/vm/inside.py
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStopSec=5

[Install]
WantedBy=graphical.target
"""

# Run by mmdebstrap with the guest's root as $1.
CUSTOMIZE = f"""
set -e
echo casemate > "$1{MARKER}"
echo casemate-vm > "$1/etc/hostname"
echo '127.0.0.1 localhost casemate-vm' > "$1/etc/hosts"
echo '/dev/vda / ext4 defaults 0 1' > "$1/etc/fstab"
chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash {USER}
mkdir -p "$1/var/lib/systemd/linger"
touch "$1/var/lib/systemd/linger/{USER}"
cat > "$1/etc/systemd/system/casemate-test-vm.service" <<'END'
{UNIT}
END
chroot "$1" systemctl enable casemate-test-vm.service
chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer serial-getty@ttyS0.service
chroot "$1" apt-get clean
rm -rf "$1"/var/lib/apt/lists/*
"""


@dataclass(frozen=True, slots=True)
class Image:
    """Files of the host."""

    disk: Path
    kernel: Path
    initramfs: Path
    python: str  # the guest's own version: "3.13"


def missing_programs() -> dict[str, str]:
    """{program: Debian package} of what this host lacks."""
    needed = {
        "qemu-system-x86_64": "qemu-system-x86",
        "mmdebstrap": "mmdebstrap",
        "mke2fs": "e2fsprogs",
        "tar": "tar",
        "unshare": "util-linux",
    }
    if os.geteuid() != 0:
        needed |= {"fakeroot": "fakeroot", "newuidmap": "uidmap"}
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return {name: package for name, package in needed.items() if not shutil.which(name, path=path)}


def make_image(folder: Path, release: str) -> Image:
    """The image of this release; made if it is not in the folder yet, which takes minutes."""
    made_of = "\n".join((release, MIRROR, DISK_SIZE, CUSTOMIZE, *PACKAGES, *UNNEEDED))
    own = folder / f"{release}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    if not own.exists():
        draft = own.with_name(own.name + ".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _make(draft, release)
        draft.rename(own)
    return Image(
        disk=own / "disk",
        kernel=own / "kernel",
        initramfs=own / "initramfs",
        python=(own / "python").read_text(),
    )


def _make(folder: Path, release: str) -> None:
    tar = folder / "root.tar"
    # A root's mmdebstrap mounts /proc, /sys and /dev where it is; those here die with it.
    apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNNEEDED]
    _run(
        *(apart if os.geteuid() == 0 else ()),
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        "--variant=minbase",
        '--aptopt=Acquire::Languages "none"',
        *excluded,
        f"--include={','.join(PACKAGES)}",
        f"--customize-hook={CUSTOMIZE}",
        release,
        str(tar),
        MIRROR,
        temporary=folder,
    )
    with tarfile.open(tar) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if re.fullmatch(r"boot/vmlinuz-.*", name):
                _extract(archive, member, folder / "kernel")
            elif re.fullmatch(r"boot/initrd\.img-.*", name):
                _extract(archive, member, folder / "initramfs")
            elif name == "usr/bin/python3":
                (folder / "python").write_text(member.linkname.removeprefix("python"))
    # Owners are kept by root, or pretended by fakeroot. What is in /dev the guest makes itself.
    unpack_and_make = (
        'mkdir "$1/root" && tar -x -p --exclude=./dev/* -f "$1/root.tar" -C "$1/root" && '
        f'PATH="$PATH:/usr/sbin:/sbin" mke2fs -q -t ext4 -d "$1/root" "$1/disk" {DISK_SIZE}'
    )
    pretend = [] if os.geteuid() == 0 else ["fakeroot"]
    _run(*pretend, "sh", "-ec", unpack_and_make, "sh", str(folder), temporary=folder)
    shutil.rmtree(folder / "root")
    tar.unlink()


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member)
    assert source is not None, member.name
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _run(*command: str, temporary: Path) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-20:])
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{last}")
