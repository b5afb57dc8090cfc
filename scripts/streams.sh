#!/usr/bin/env bash
# Many at once: streams of 5 tokens a second on a connection each, then idle connections. Prints errors, and resident
# memory, descriptors and requests of the gateway before, during and after.
#
#   scripts/streams.sh [STREAMS] [IDLE]     10000 and 18000 by default; needs python3 for the idle connections
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
streams=${1:-10000} idle=${2:-18000}
cnse=target/release/cnse
[ -x "$cnse" ] || scripts/build.sh >&2
ulimit -n "$(ulimit -Hn)"

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
serve() {
    "$cnse" serve --port 5181 --sim-model words --sim-itl 200ms --log error --max-connections 40000 &
    server=$!
    sleep 1
    "$cnse" client --port 5181 --prompt warm --iters 100 --concurrency 10 --n_predict 1 >/dev/null
    base=$(kib)
    state "base"
}

kib() { awk '/VmRSS/ { print $2 }' "/proc/$server/status"; }
state() {
    local kib fds
    kib=$(kib)
    fds=$(ls "/proc/$server/fd" | wc -l)
    active=$(curl --silent http://127.0.0.1:5181/metrics | sed -nE 's/^cnse_requests_active ([0-9]+)/\1/p')
    echo "$1: $kib KiB resident, $fds descriptors, $active requests"
}

serve
"$cnse" client --port 5181 --prompt "many at once" --iters "$streams" --concurrency "$streams" --connections "$streams" \
    --n_predict 75 --source 127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.4 >"/tmp/streams.$$" &
client=$!
sleep 9
state "$streams streams"
during=$(kib)
wait "$client" || true
cat "/tmp/streams.$$"
rm -f "/tmp/streams.$$"
sleep 1
state "after"
awk "BEGIN { printf \"%.2f KiB a stream\n\", ($during - $base) / $streams }"

kill "$server" && wait "$server" || true
serve
python3 - "$idle" <<'PY' &
import socket, sys, time
count, open_ = int(sys.argv[1]), []
for i in range(count):
    s = socket.socket()
    s.bind((f"127.0.0.{2 + i % 4}", 0))
    s.connect(("127.0.0.1", 5181))
    s.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
    open_.append(s)
for s in open_:
    assert s.recv(4096).startswith(b"HTTP/1.1 200 OK"), "refused"
print(f"{count} connections answered", flush=True)
time.sleep(4)
PY
client=$!
sleep 1
while [ "$(ls "/proc/$server/fd" | wc -l)" -lt "$idle" ]; do kill -0 "$client" || break; sleep 0.2; done
sleep 2
state "$idle idle connections, each after one request"
during=$(kib)
wait "$client"
sleep 1
state "after"
awk "BEGIN { printf \"%.2f KiB an idle connection\n\", ($during - $base) / $idle }"
