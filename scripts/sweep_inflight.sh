#!/usr/bin/env bash
# How many requests at once a server wants: cnse schedule at --inflight 1, 2, 4, 8, 16 and 32 against the same server, in
# turn, after one run that warms it up. Writes a CSV and prints the knee: the smallest number that gives 90 % of the best
# throughput. More than that only makes each request wait longer.
#
#   scripts/sweep_inflight.sh                          against cnse's built-in backend: 8 sequences at once, first token
#                                                      after 30 ms, then one each 5 ms
#   scripts/sweep_inflight.sh --server URL[,URL] [--inflight N,N…] [--csv FILE] [-- FLAGS]
#
# --server     http://host:port (llama-server, cnse serve, an OpenAI-compatible server) or cnse://host:port
# --inflight   the numbers (1,2,4,8,16,32)
# --csv        where the rows go (inflight.csv): inflight, throughput_tok_s, latency_p50_ms, latency_p95_ms,
#              latency_p99_ms, requests_per_s, ttft_p50_ms, ttft_p95_ms, requests, failed
# --requests   of each number for one in flight (16); each run sends this many times the number, and 128 at least
# FLAGS        go to cnse schedule: --prompt TEXT, --n-predict N, --chat, --extra JSON, …
#              (default: --prompt "What is AI?" --n-predict 32)
set -euo pipefail

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
die() { printf 'sweep_inflight.sh: error: %s\n' "$*" >&2; exit 1; }

server='' numbers=1,2,4,8,16,32 csv=inflight.csv each=16
while [ $# -gt 0 ]; do
    case $1 in
        --server) server=${2-} ;;
        --inflight) numbers=${2-} ;;
        --csv) csv=${2-} ;;
        --requests) each=${2-} ;;
        --) shift; break ;;
        *) usage ;;
    esac
    [ $# -ge 2 ] || usage
    shift 2
done
[[ $numbers =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || die "--inflight $numbers: not numbers with commas between"
[[ $each =~ ^[1-9][0-9]*$ ]] || die "--requests $each: not a number over 0"
flags=(--prompt "What is AI?" --n-predict 32)
[ $# = 0 ] || flags=("$@")

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cnse=${CNSE:-$root/target/release/cnse}
[ -x "$cnse" ] || "$root/scripts/build.sh" >&2
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

if [ -z "$server" ]; then
    "$cnse" serve --port 0 --sim-model words --sim-slots 8 --sim-ttft 30ms --sim-itl 5ms 2>"$work/server" &
    for _ in $(seq 100); do
        port=$(sed -n 's/.*listening on [^ ]*:\([0-9]*\) .*/\1/p' "$work/server")
        [ -z "$port" ] || break
        kill -0 $! 2>/dev/null || { cat "$work/server" >&2; die "the built-in server did not start; what it said is above"; }
        sleep 0.05
    done
    server=http://127.0.0.1:$port
fi

# A number at the top of the report: the ranks' own come behind it.
top() { grep -oE "\"$1\":(null|[0-9.eE+-]+)" "$work/json" | head -n 1 | cut -d: -f2 | sed 's/null//'; }
# One of a distribution, by the name that the report gives it: of TTFT or of the whole request.
of() { grep -oE "\"$1\":\{[^}]*\}" "$work/json" | head -n 1 | grep -oE "\"$2\":(null|[0-9.eE+-]+)" | cut -d: -f2 | sed 's/null//'; }
run() {
    "$cnse" schedule --server "$server" --inflight "$1" --iters "$2" --json --quiet "${flags[@]}" >"$work/json" 2>"$work/said" ||
        { cat "$work/said" >&2; die "cnse schedule --inflight $1 failed; what it said is above"; }
}

run 1 4
echo inflight,throughput_tok_s,latency_p50_ms,latency_p95_ms,latency_p99_ms,requests_per_s,ttft_p50_ms,ttft_p95_ms,requests,failed >"$csv"
printf '%8s %12s %10s %10s %10s %10s\n' inflight tokens/s p50-ms p95-ms p99-ms ttft-ms
for number in ${numbers//,/ }; do
    run "$number" $((number * each > 128 ? number * each : 128))
    row=$number,$(top tokens_per_s),$(of e2e_ms p50),$(of e2e_ms p95),$(of e2e_ms p99),$(top requests_per_s),$(of ttft_ms p50),$(of ttft_ms p95),$(top ok),$(top errors)
    echo "$row" >>"$csv"
    awk -F, '{ printf "%8d %12.1f %10s %10s %10s %10s\n", $1, $2, $3, $4, $5 == "" ? "-" : $5, $7 }' <<<"$row"
done
awk -F, -v csv="$csv" 'NR > 1 { n[++count] = $1; rate[count] = $2; p95[count] = $4; if ($2 > best) { best = $2; at = $1 } }
    END {
        for (i = 1; i <= count; i++) if (rate[i] >= 0.9 * best && (!knee || n[i] < n[knee])) knee = i
        printf "the knee is at %d in flight: %.1f tokens/s, %.0f %% of the best (%.1f at %d), p95 %s ms; all rows are in %s\n", \
            n[knee], rate[knee], 100 * rate[knee] / best, best, at, p95[knee], csv
    }' "$csv"
