"""The names of the walls, as attacks give them: whatever could have stopped one, the nearest first.

The first group are walls of the sandbox by the names that `casemate doctor` and `task.started` use;
the second is what the supervisor does about a sandbox from outside.
"""

from __future__ import annotations

__all__ = ["WALLS"]

WALLS = {
    "user": "an own user namespace that owns nothing, and under root a host uid of its own",
    "pid": "an own pid namespace",
    "mount": "an own mount namespace: a read-only root that has only what a task may see",
    "net": "an own network namespace with nothing but lo",
    "ipc": "an own ipc namespace",
    "uts": "an own host name",
    "cgroup": "an own cgroup namespace, and no cgroup file system",
    "proc": "a /proc that shows the sandbox's own processes and nothing of the kernel's",
    "seccomp": "the filter of system calls",
    "landlock": "Landlock's rules on files and scopes",
    "capabilities": "no capability in any set",
    "no_new_privs": "no program that is run gains anything",
    "descriptors": "no open file but stdio and the link",
    "dumpable": "the supervisor's own processes in a sandbox cannot be traced",
    "session": "no controlling terminal",
    "environment": "a clean environment",
    "rlimits": "limits of each process",
    "limits": "limits of the whole tree: a cgroup's, or sampled",
    "scratch": "/tmp and /dev/shm of bounded size, without devices and setuid",
    "layer": "what is written to the workspace lands in a layer of the attempt's own",
    "clocks": "the timeouts",
    "kill": "the whole tree is killed, and proved dead, before the verdict",
    "link": "the rules of the link: one frame, one message, in turn, each of bounded size",
    "values": "what an output, an item or an error may be",
    "outbox": "what is taken back is a regular file with one name, beneath its folder",
    "output": "caps on output, logs and events, and a count of what was dropped",
    "state": "a state directory that is checked, and in no sandbox's sight",
    "plan": "a sandbox that cannot be built as planned is not built",
    "posture": "what is in force is read back from the kernel before a task's code runs",
    "apply": "what runs on the host by itself is marked, and written back only by name",
    "sockets": "the supervisor's sockets, in a folder that nobody else may enter",
}
