"""One boot of an image: two disks beside its own, no network, its console in a file.

The second disk is a tar that the guest unpacks, the third a space that it writes a tar to, so that
neither host nor guest mounts anything of the other's. The guest powers itself off; one that has not
at its deadline is killed. A line that it prints after `vm: ` is told while it runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from vm.image import Image

__all__ = ["RESULTS_SIZE", "TOLD", "boot", "read_results"]

TOLD = "vm: "
MEMORY = "4096"  # MiB: the engine's own budget is a part of it, and four attempts fill that
CPUS = 2
RESULTS_SIZE = 256 * 1024 * 1024

# It runs nobody's secrets, so nothing is to be kept from the processor's speculation.
APPENDED = "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off systemd.show_status=0"

# How often the console is looked at: only for the eye.
INTERVAL = 0.2


def boot(image: Image, folder: Path, payload: Path, deadline: float) -> str | None:
    """None once the guest has powered itself off; else what became of it. Leaves
    `<folder>/console` and `<folder>/results`."""
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        trouble = _boot(image, folder, payload, deadline, accelerated=True)
        if trouble != KVM_FAILED:
            return trouble
    print("KVM is not to be had here: the guest is emulated, which is ten times slower", flush=True)
    return _boot(image, folder, payload, deadline, accelerated=False)


# What stands behind /dev/kvm may still be unable to run a Debian kernel: a host that is itself a
# guest. qemu then says so and either ends or stops the machine.
KVM_FAILED = "KVM cannot run this guest"
KVM_COMPLAINTS = ("KVM internal error", "kvm_buf_set_msrs", "failed to initialize kvm")


def _boot(
    image: Image, folder: Path, payload: Path, deadline: float, *, accelerated: bool
) -> str | None:
    results, console = folder / "results", folder / "console"
    results.write_bytes(b"")
    os.truncate(results, RESULTS_SIZE)
    console.write_bytes(b"")
    command = [
        *("nice", "qemu-system-x86_64"),
        *("-machine", "q35", "-accel", "kvm" if accelerated else "tcg,thread=single,tb-size=512"),
        # Five levels of page tables are one more for each walk that is emulated.
        *("-cpu", "host" if accelerated else "max,la57=off"),
        # One when emulated: with a thread for each the kernel's patching of its own code goes wrong
        # (qemu 7.2, an int3 that another one meets), and in one thread a second only costs.
        *("-smp", str(CPUS if accelerated else 1), "-m", MEMORY),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"),
        *("-serial", f"file:{console}"),
        *("-device", "virtio-rng-pci"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", APPENDED),
        *_drive(image.disk, "snapshot=on"),
        *_drive(payload, "readonly=on"),
        *_drive(results),
    ]
    # What the guest writes to its own disk: in our folder, not in the host's /tmp.
    environment = {**os.environ, "TMPDIR": str(folder)}
    started = time.monotonic()
    complaints = folder / "qemu"
    with complaints.open("wb") as said:
        machine = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
        )
    try:
        told = 0
        while True:
            is_over = _ends_within(machine, INTERVAL)
            told = _tell(console, told)
            complaint = complaints.read_text(errors="replace")
            if accelerated and any(word in complaint for word in KVM_COMPLAINTS):
                return KVM_FAILED
            if is_over:
                break
            if time.monotonic() - started > deadline:
                return f"it had not powered off after {deadline:.0f} s"
    finally:
        machine.kill()
        machine.wait()
    if machine.returncode != 0:
        return f"qemu ended with {machine.returncode}: {complaint}"
    return None


def _drive(file: Path, *options: str) -> tuple[str, str]:
    named = str(file).replace(",", ",,")
    return "-drive", ",".join((f"file={named}", "format=raw", "if=virtio", *options))


def _ends_within(machine: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        machine.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _tell(console: Path, told: int) -> int:
    """Whole lines from there on; where to go on."""
    with console.open("rb") as file:
        file.seek(told)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        if line.startswith(TOLD):
            sys.stdout.write(line.removeprefix(TOLD).rstrip() + "\n")
    sys.stdout.flush()
    return told + len(whole)


def read_results(folder: Path) -> dict[str, bytes]:
    """{name: content} of what the guest left; empty where it came to leave nothing."""
    found = {}
    try:
        with tarfile.open(folder / "results", "r:") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    found[member.name] = file.read()
    except tarfile.ReadError:
        return {}
    return found
