// Watch a run from Node: zeromq and @msgpack/msgpack (npm install here), and the README's wire section.
//
// node observer.mjs STATE_DIR RUN      RUN: an id, a unique prefix, or `last`

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { decode, encode } from "@msgpack/msgpack";
import { Request, Subscriber } from "zeromq";

const [state, wanted] = process.argv.slice(2);
const folder = join(state, "supervisors");
const name = readdirSync(folder).find((each) => each.endsWith(".json"));
const record = JSON.parse(readFileSync(join(folder, name), "utf8"));
const events = new Subscriber();
const control = new Request();
events.connect(record.events);
events.subscribe();
control.connect(record.control);

let run = wanted, seen = 0, last = 0, kind = "";
while (!["run.completed", "run.failed", "run.cancelled"].includes(kind)) {
  let frames = seen >= last ? [await events.receive()] : [];
  // Behind; a heartbeat (the first comes when we are subscribed); or a hole: fetch what we lack.
  if (!frames.length || String(frames[0][0]) === "hb." || decode(frames[0][1]).seq > seen + 1) {
    await control.send(encode({ verb: "replay", version: 1, id: 1, run, since: seen }));
    const page = decode((await control.receive())[0]);
    // A refusal: the run has not begun yet. The next heartbeat is a second away.
    run = page.run ?? run;
    frames = page.events ?? [];
    last = page.last_seq ?? last;
  }
  for (const [topic, header, payload] of frames) {
    const event = decode(header);
    const [prefix, id, task] = Buffer.from(topic).toString().split(".");
    if (prefix !== "ev" || !id.startsWith(run) || event.seq <= seen) continue;
    if (event.seq !== seen + 1) throw new Error(`a hole: ${seen} -> ${event.seq}`);
    seen = event.seq;
    kind = event.kind;
    console.log(seen, task || "-", kind, JSON.stringify(decode(payload)));
  }
}
events.close();
control.close();
