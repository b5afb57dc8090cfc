#!/usr/bin/env bash
# The whole of it in a minute, with nothing but Rust: builds cnse, serves the built-in backend, streams one prompt
# through it, prints the percentiles of a small run, and stops.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/build.sh
log=$(mktemp)
cnse=target/release/cnse
# A free port, and the pace of a real model on a small machine.
"$cnse" serve --port 0 --sim-ttft lognormal:60ms,0.3 --sim-itl lognormal:15ms,0.3 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$log"' EXIT
port=
for _ in $(seq 100); do
    port=$(sed -n 's/.*listening on [^ ]*:\([0-9]*\) .*/\1/p' "$log")
    [ -z "$port" ] || break
    kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.05
done
cat "$log"
echo
echo "\$ cnse client --port $port --prompt \"Explain quantum computing\" --n_predict 48"
"$cnse" client --port "$port" --prompt "Explain quantum computing" --n_predict 48
echo
echo "\$ cnse client --port $port --prompt \"What is AI?\" --iters 200 --concurrency 20 --n_predict 32"
"$cnse" client --port "$port" --prompt "What is AI?" --iters 200 --concurrency 20 --n_predict 32
