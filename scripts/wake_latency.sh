#!/usr/bin/env bash
# How long after work appears on one rank an idle rank runs it: rows come through a pipe, a few at a time, to rank 0, which can
# run one; the others are idle and must be woken. The built-in backend's log has when each request came.
#
#   scripts/wake_latency.sh [RANKS] [TIMES]     (4 ranks, 40 times)
#
# CNSE       the binary (default: target/release/cnse); with MPI in it it is run under mpirun, else its ranks are threads
# MPIRUN     how ranks are started (default: mpirun --oversubscribe --bind-to none)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cnse=${CNSE:-target/release/cnse} ranks=${1:-4} times=${2:-40}
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

"$cnse" serve --sim-model words --port 0 --threads 1 --sim-ttft 50ms --sim-log "$work/log" 2>"$work/serve" &
server=$!
for _ in $(seq 100); do
    address=$(sed -nE 's|.*listening on ([0-9.]+:[0-9]+).*|\1|p' "$work/serve")
    [ -z "$address" ] || break
    sleep 0.05
done

# As many rows as there are ranks, and then nothing for 300 ms.
feed() {
    python3 -c '
import json, sys, time
ranks, times = int(sys.argv[1]), int(sys.argv[2])
time.sleep(1)
for burst in range(times):
    for rank in range(ranks):
        body = {"model": "any", "max_tokens": 1, "messages": [{"role": "user", "content": f"row {burst} {rank}"}]}
        row = {"custom_id": f"{burst}-{rank}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
    time.sleep(0.3)
' "$ranks" "$times"
}
flags=(schedule --input - --output "$work/out.jsonl" --server "http://$address" --inflight 1)
if "$cnse" --version | grep -qw mpi; then
    # shellcheck disable=SC2086
    feed | ${MPIRUN:-mpirun --oversubscribe --bind-to none} -np "$ranks" "$cnse" "${flags[@]}" >"$work/said" 2>&1
else
    feed | "$cnse" "${flags[@]}" --ranks "$ranks" >"$work/said" 2>&1
fi
kill "$server" && wait "$server" || true
server=

python3 - "$work/log" "$ranks" <<'P'
import json, statistics, sys
came = sorted(json.loads(line)["received_us"] for line in open(sys.argv[1]))
ranks = int(sys.argv[2])
bursts = [came[at : at + ranks] for at in range(0, len(came), ranks)]
assert all(burst[-1] - burst[0] < 100_000 for burst in bursts), "bursts run into one another"
second = sorted(burst[1] - burst[0] for burst in bursts)
last = sorted(burst[-1] - burst[0] for burst in bursts)
say = lambda name, us: print(f"{name}: median {statistics.median(us) / 1e3:.2f} ms, largest {us[-1] / 1e3:.2f} ms, n = {len(us)}")
say("from the first rank's request to the first of an idle rank", second)
say("and to that of the last idle rank", last)
P
