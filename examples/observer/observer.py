"""Watch a run from outside: pyzmq and msgspec, and the README's wire section. Nothing of casemate.

python observer.py STATE_DIR RUN      RUN: an id, a unique prefix, or `last`
"""

import json
import sys
from pathlib import Path

import zmq
from msgspec.msgpack import decode, encode

record = json.loads(next((Path(sys.argv[1]) / "supervisors").glob("*.json")).read_text())
context = zmq.Context()
events, control = context.socket(zmq.SUB), context.socket(zmq.REQ)
events.connect(record["events"])
events.subscribe(b"")
control.connect(record["control"])
run, seen, last, kind = sys.argv[2], 0, 0, ""

while kind not in ("run.completed", "run.failed", "run.cancelled"):
    frames = [events.recv_multipart()] if seen >= last else []
    # Behind; a heartbeat (the first comes when we are subscribed); or a hole: fetch what we lack.
    if not frames or frames[0][0] == b"hb." or decode(frames[0][1])["seq"] > seen + 1:
        control.send(encode({"verb": "replay", "version": 1, "id": 1, "run": run, "since": seen}))
        page = decode(control.recv())
        # A refusal: the run has not begun yet. The next heartbeat is a second away.
        run, frames = page.get("run", run), page.get("events", [])
        last = page.get("last_seq", last)
    for topic, header, payload in frames:
        event = decode(header)
        if topic.startswith(b"ev." + run.encode()) and event["seq"] > seen:
            assert event["seq"] == seen + 1, f"a hole: {seen} -> {event['seq']}"
            seen, kind = event["seq"], event["kind"]
            print(seen, topic.decode().split(".")[2] or "-", kind, decode(payload), flush=True)
