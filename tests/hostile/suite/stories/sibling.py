"""See, signal or reach another attempt that runs at the same time.

Source: our own; tasks of one run that share a /tmp, a loopback or a pid namespace elsewhere.
"""

from __future__ import annotations

import json

from ..require import require
from ..stage import Stage

WALLS = ("pid", "net", "ipc", "scratch", "user", "mount")

# A stream edge has both run at once: the one that is looked for says the time for a while, and the
# other believes what it found only when it has heard a time from after its search.
HIDE = """
import os, socket, time
open("/tmp/mark", "w").close()
open("/dev/shm/mark", "w").close()
ours = socket.socket(socket.AF_UNIX)
ours.bind("\\0casemate-sibling")
ours.listen()
tcp = socket.socket()
tcp.bind(("127.0.0.1", 7777))
tcp.listen()
for _ in range(200):
    os.write(int(os.environ["CASEMATE_EVENTS_FD"]), b'{"emit": %f}\\n' % time.monotonic())
    time.sleep(0.02)
"""
SEEK = """
import json, os, socket, time
stream = open(os.environ["CASEMATE_STREAM_HIDE"])
stream.readline()
found = [path for path in ("/tmp/mark", "/dev/shm/mark") if os.path.exists(path)]
for family, address in ((1, "\\0casemate-sibling"), (2, ("127.0.0.1", 7777))):
    try:
        socket.socket(family).connect(address)
        found.append(repr(address))
    except OSError:
        pass
pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
commands = [open(f"/proc/{pid}/cmdline").read() for pid in pids if pid != os.getpid()]
found += [command for command in commands if "range(200)" in command]
searched = time.monotonic()
while json.loads(stream.readline()) < searched:
    pass
os.write(int(os.environ["CASEMATE_EVENTS_FD"]), json.dumps({"output": found}).encode() + b"\\n")
"""


def attack(stage: Stage) -> str:
    tasks = {
        "hide": {"command": ["python3", "-c", HIDE]},
        "seek": {"command": ["python3", "-c", SEEK]},
    }
    edges = [{"from": "hide", "to": "seek", "stream": True}]
    document = {"name": "siblings", "tasks": tasks, "edges": edges}
    stage.succeed("run", stage.write("siblings.json", json.dumps(document)))
    found = json.loads(stage.succeed("output", "last", "seek"))
    require(found == [], f"found: {found}")
    return "found nothing"
