#!/bin/sh
# The demo: a simulated archive, served on loopback, from recipe to evaluated model.
# Called by `make demo`, with terrashard on the PATH. Running it again resumes.
set -eu
ARCHIVE=${ARCHIVE:-data/simulated-archive}
ROOT=${ROOT:-data/demo}

if [ ! -f "$ARCHIVE/archive.json" ]; then
  terrashard simulate "$ARCHIVE"
fi

terrashard serve "$ARCHIVE" &
SERVER=$!
trap 'kill "$SERVER" 2>/dev/null || true' EXIT INT TERM

terrashard run demo --root "$ROOT"
terrashard status demo --root "$ROOT"
terrashard verify demo --root "$ROOT" --share 0.05
