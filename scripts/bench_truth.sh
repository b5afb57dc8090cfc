#!/usr/bin/env bash
# Holds what `cnse bench latency` reports against what the server itself logged for the same requests: the built-in backend
# with known delays (fixed, log-normal, and a stall of 2 s every 10 s), 1,000 requests/s for 20 s each. Fails if a percentile
# is off by more than 1 % + 50 us, if the analytic percentile is not in the printed interval, or if the stall does not show.
#
#   scripts/bench_truth.sh [RATE [SECONDS]]     1000 20 by default; needs python3, taskset
#
# Server and generator have a core each, as on two machines: on one they would take turns, and each would be late for the
# other's sake.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rate=${1:-1000} seconds=${2:-20}
cnse=${CNSE:-target/release/cnse}
[ -x "$cnse" ] || scripts/build.sh >&2
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

# run NAME "SERVER FLAGS" "LOAD FLAGS"
run() {
    : >"$work/log"
    # shellcheck disable=SC2086
    taskset -c 1 "$cnse" serve --sim-model words --port 0 --threads 1 --no-pin --sim-itl 2ms --sim-log "$work/log" $2 2>"$work/server" &
    local server=$! port=
    for _ in $(seq 100); do
        port=$(sed -n 's/.*listening on [^ ]*:\([0-9]*\) .*/\1/p' "$work/server")
        [ -z "$port" ] || break
        sleep 0.05
    done
    # shellcheck disable=SC2086
    taskset -c 0 "$cnse" bench latency --server "http://127.0.0.1:$port" --rate "$rate" --duration "${seconds}s" --n-predict 4 \
        --input-tokens 8 --json --requests "$work/requests" --max-error-rate 0 $3 >"$work/$1.json"
    kill "$server"; wait "$server" || true
    python3 tests/peers/truth_check.py "$1" "$work/$1.json" "$work/requests" "$work/log" || failed=1
}
failed=0
run fixed "--sim-ttft 20ms" ""
run lognormal "--sim-ttft lognormal:20ms,0.5" ""
run stall "--sim-ttft 20ms --sim-stall 2s,10s" ""
# With a bound on requests at once the wait moves from the server to the client; a closed tool would not see it at all.
run capped-stall "--sim-ttft 20ms --sim-stall 2s,10s" "--concurrency 64"
[ "$failed" = 0 ] && echo "bench_truth.sh: all within 1 % + 50 us of the server's own log"
exit "$failed"
