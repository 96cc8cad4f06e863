"""The engine's hold on sandboxes: one zygote, one cgroup manager, the reserved uids.

`spawn` gives a `Lease` at once: a sandbox under way, its cgroup, its slot, its meter. Its pidfd
comes with the zygote's answer, for which the zygote's descriptor is watched. When the zygote dies
its sandboxes die with it, what it had not made yet has failed, and `restart` gets a new one; until
then nothing can be spawned.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass

from msgspec import structs

from ..protocol.errors import SetupRefused
from ..protocol.events import ErrorKind, Usage
from ..sandbox import cgroup as cgroups
from ..sandbox.cgroup import Backing, Cgroup, CgroupManager, Measured
from ..sandbox.plan import check_host, look_at, make_plan
from ..sandbox.probe import Probe, probe
from ..sandbox.process import Sandbox, Stdio, Zygote
from ..sandbox.spec import SandboxSpec
from .slots import Slots
from .usage import Meter, exceeded

__all__ = ["Account", "Lease", "Sandboxes"]

# Importing pyzmq and preparing the template takes 0.2 s on an idle 2-core VM (Python 3.11); this
# leaves a hundredfold for load.
ZYGOTE_DEADLINE = 20.0

# How the facade and the builder know that they run inside.
SEALED = {"CASEMATE_SANDBOX": "1"}


@dataclass(frozen=True, slots=True)
class Account:
    """What an attempt used, read once after its end."""

    usage: Usage
    out_of_memory: bool
    pids_refused: bool | None  # None: no cgroup counts it


class Lease:
    """One sandbox and all that goes with it."""

    def __init__(
        self, spec: SandboxSpec, sandbox: Sandbox, cgroup: Cgroup, backing: dict[str, Backing]
    ) -> None:
        self.spec = spec
        self.sandbox = sandbox
        self.cgroup = cgroup
        self._backing = backing
        self._meter: Meter | None = None

    @property
    def is_sampled(self) -> bool:
        """Some limit is held by looking, not by a cgroup."""
        return Backing.SAMPLED in self._backing.values()

    @property
    def oom_fd(self) -> int | None:
        """Readable when the group ran out of memory, where the kernel would kill only a part."""
        return self.cgroup.oom_fd

    @property
    def counts_pids(self) -> bool:
        return self._backing.get("pids") is Backing.CGROUP

    def measure(self) -> Measured:
        if self._meter is None:
            pid = self.sandbox.host_pid
            if pid is None:
                return self.cgroup.usage()
            self._meter = Meter(pid, self.cgroup, self.spec.limits)
        return self._meter.sample()

    def exceeded(self, measured: Measured) -> ErrorKind | None:
        """A limit that only sampling holds, and that is passed."""
        return exceeded(measured, self.spec.limits, self._backing)


class Sandboxes:
    """Not to be used after `close`. Everything here is for one thread, which must outlive it: the
    kernel ties the parent-death signal to the thread that forked."""

    def __init__(
        self,
        degrade: tuple[str, ...] = (),
        strict: tuple[str, ...] = (),
        *,
        alone: bool = False,
    ) -> None:
        """Blocks for a moment: looks at the host, starts the zygote. `degrade` and `strict` count
        for every spec, beside its own. `alone`: see `probe`. Raises SetupRefused."""
        self._degrade = degrade
        self._strict = strict
        try:
            self.probe: Probe = probe(alone=alone)
            check_host(self.probe)
            self._slots = Slots(shared=self.probe.privileged)
            cgroups.sweep(self.probe.cgroup)
            self._cgroups = CgroupManager(self.probe.cgroup)
            self._zygote = Zygote.start(self.probe)
        except OSError as error:
            # A host that hides even what we look at it with: another sandbox's /proc, say.
            raise SetupRefused(
                f"no sandbox can be built here: {error}; `casemate doctor` says what is missing"
            ) from error
        self._problem = "the zygote died, and there is no new one yet"
        self._names = itertools.count(1)

    def fileno(self) -> int:
        """The zygote's: when readable, call `receive`. Another one after each death of a zygote."""
        return self._zygote.fileno()

    def wait_ready(self) -> None:
        """Blocks until sandboxes can be had. Raises SetupRefused, which says why not."""
        self._zygote.wait_ready(ZYGOTE_DEADLINE)

    @property
    def is_ready(self) -> bool:
        return self._zygote.is_ready and not self._zygote.is_dead

    @property
    def has_died(self) -> bool:
        return self._zygote.is_dead

    def receive(self) -> list[Sandbox]:
        """Sandboxes the zygote has answered for, those that failed with it among them."""
        try:
            return self._zygote.receive_nowait()
        except SetupRefused as error:  # a new one that could not start
            self._problem = str(error)
            return self._zygote.receive_nowait()

    def restart(self) -> Zygote:
        """A new zygote in place of a dead one, which is for the caller to close: that waits for its
        end. Raises OSError where no process can be had, and then nothing has changed."""
        new = Zygote.start(self.probe)
        old, self._zygote = self._zygote, new
        return old

    def spawn(self, spec: SandboxSpec, stdio: Stdio, link: int | None = None) -> Lease:
        """Ask for a sandbox. Raises SetupRefused, or OSError where its cgroup cannot be made."""
        if self._zygote.is_dead:
            raise SetupRefused(self._problem)
        slot = self._slots.take()
        cgroup: Cgroup | None = None
        try:
            spec = structs.replace(
                spec,
                slot=slot,
                degrade=spec.degrade + self._degrade,
                strict=spec.strict + self._strict,
                env=spec.env | SEALED,
            )
            backing = self._cgroups.backing(spec.limits)
            plan = make_plan(spec, self.probe, look_at(spec), backing)
            try:
                cgroup = self._cgroups.create(f"a{next(self._names)}", spec.limits)
            except OSError as error:
                raise SetupRefused(f"its cgroup cannot be made: {error}") from error
            sandbox = self._zygote.spawn_nowait(plan, stdio, link=link, cgroup=cgroup)
        except BaseException:
            if cgroup is not None:
                self._cgroups.discard(cgroup)
            self._slots.give_back(slot)
            raise
        return Lease(spec, sandbox, cgroup, backing)

    def release(self, lease: Lease) -> Account:
        """Give everything back. The sandbox must be dead. Does not fail: what cannot be read any
        more (no descriptor to read it with) is not known, and the rest is given back all the same.
        """
        try:
            measured = lease.measure()
            return Account(
                usage=Usage(
                    memory=measured.memory_peak,
                    cpu=measured.cpu,
                    pids=measured.pids_peak,
                    disk=None,
                ),
                out_of_memory=lease.cgroup.oom_killed(),
                pids_refused=lease.cgroup.pids_hit() if lease.counts_pids else None,
            )
        except OSError:
            return Account(usage=Usage(), out_of_memory=False, pids_refused=None)
        finally:
            lease.sandbox.close()
            self._slots.give_back(lease.spec.slot)
            with contextlib.suppress(OSError):  # `close` tries again
                self._cgroups.discard(lease.cgroup)
                self._cgroups.collect()

    def close(self) -> None:
        """End the zygote and with it whatever still lives; leave no cgroup behind."""
        self._zygote.close()
        self._slots.close()
        left = self._cgroups.close()
        if left:
            os.write(2, f"casemate: cgroups could not be removed: {left}\n".encode())
