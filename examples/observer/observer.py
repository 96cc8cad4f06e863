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
run, seen, ended = sys.argv[2], 0, False


def show(topic: bytes, header: bytes, payload: bytes) -> None:
    global seen, ended
    event = decode(header)
    if topic.startswith(b"ev." + run.encode()) and event["seq"] > seen:
        assert event["seq"] == seen + 1, f"a hole: {seen} -> {event['seq']}"
        seen, ended = event["seq"], event["kind"] in ("run.completed", "run.failed")
        print(seen, topic.decode().split(".")[2] or "-", event["kind"], decode(payload), flush=True)


while not ended:
    topic, header, payload = events.recv_multipart()
    # A heartbeat (the first comes when we are subscribed), or a hole: fetch what we lack.
    if topic == b"hb." or decode(header)["seq"] > seen + 1:
        while True:
            request = {"verb": "replay", "version": 1, "id": 1, "run": run, "since": seen}
            control.send(encode(request))
            page = decode(control.recv())
            run = page["run"]
            for frame in page["events"]:
                show(*frame)
            if seen >= page["last_seq"]:
                break
    else:
        show(topic, header, payload)
