#!/usr/bin/env bash
# Whether cnse bench latency agrees with aiperf on one real llama-server: both against the same server in turn, in random
# order, with the same prompts, lengths and loads (1 and 4 at once); then a table of what each says, with 95 % intervals from
# the pairs of runs. Who is off where they differ is told by the wire (tcpdump's times of the same requests) and by the
# server's own timings and token counts.
#
#   scripts/bench_agreement.sh [ROUNDS [REQUESTS]]    6 80 by default, about 5 minutes; an interrupted one goes on
#
# It needs python3 and taskset, and tcpdump with the right to listen (root) for the wire. llama-server and aiperf come from
# scripts/llama-server.sh and scripts/peers-venv.sh: nothing else of that kind needs less (vLLM's client wants torch).
# MODEL=mid-16l   the model (scripts/make_gguf.py); tiny shows what the tools themselves cost
# RESULT=FILE     where the runs are kept (default: target/agreement.json), for cnse bench report
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rounds=${1:-6}
export REQUESTS=${2:-80} N_PREDICT=64
cnse=${CNSE:-target/release/cnse}
[ -x "$cnse" ] || scripts/build.sh >&2
llama=$(scripts/llama-server.sh | tail -n 1)
models=$(scripts/llama-server.sh models | tail -n 1)
python=$(scripts/peers-venv.sh aiperf | tail -n 1)
result=${RESULT:-target/agreement.json}
mkdir -p "$(dirname "$result")"
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
command -v tcpdump >/dev/null || echo "bench_agreement.sh: tcpdump is missing: what the wire says will be too" >&2

# The server has the last core to itself, the tools the others: what one tool costs must not slow the server that it measures.
last=$(($(nproc) - 1))
taskset -c "$last" "$llama" -m "$models/${MODEL:-mid-16l}.gguf" --alias tiny -t 1 -c 4096 -np 4 --port 0 --metrics \
    --cache-ram 0 --offline --sse-ping-interval 2 >"$work/server" 2>&1 &
for _ in $(seq 200); do
    URL=$(sed -nE 's|.*listening on (http://[0-9.:]+).*|\1|p' "$work/server" | head -n 1)
    [ -z "$URL" ] || break
    sleep 0.05
done
export URL METRICS=$URL/metrics FOLDER=$work CNSE=$cnse AIPERF=${python%/*}/aiperf
"$python" tests/peers/agreement.py prepare "$work" "$((REQUESTS + 8))"

sweep=("$cnse" bench sweep --vary tool=cnse,aiperf --vary at_once=1,4 --repeat "$rounds" --output "$result"
    -- tests/peers/agreement.py run '{tool}' '{at_once}')
taskset -c "0-$((last > 0 ? last - 1 : 0))" "${sweep[@]}" >/dev/null || [ $? = 1 ] # a run that failed is left out
"$python" tests/peers/agreement.py table "${sweep[@]}"
