#!/bin/sh
# Watch a run from a shell: the command line and jq. STATE_DIR RUN, as its siblings take them.
casemate events "$2" --state "$1" --follow --json |
  jq --raw-output --unbuffered '"\(.seq) \(.task // "-") \(.kind) \(.data | tojson)"'
