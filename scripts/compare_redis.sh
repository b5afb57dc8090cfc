#!/usr/bin/env bash
# Requests a second of the binary protocol (built-in echo backend) beside redis PING under redis-benchmark: one thread
# for each server and each generator, the same machine, in turn. Prints every round, then medians and their ratio.
#
#   scripts/compare_redis.sh [ROUNDS]      5 by default; needs redis-server and redis-benchmark
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rounds=${1:-5}
cnse=target/release/cnse
[ -x "$cnse" ] || scripts/build.sh >&2
for tool in redis-server redis-benchmark; do
    command -v "$tool" >/dev/null || { echo "compare_redis.sh: error: $tool is missing (apt-get install redis-server redis-tools)" >&2; exit 1; }
done

"$cnse" serve --echo --port 5171 --threads 1 --no-pin --log error &
redis-server --port 5172 --save '' --appendonly no --daemonize no >/dev/null &
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
sleep 1

# Requests a second: of cnse with so many connections and requests at once, of redis with so many a connection.
cnse() {
    "$cnse" client --port 5171 --prompt PING --connections 50 --concurrency "$2" --iters "$1" --json |
        sed -E 's/.*"requests_per_s":([0-9]+).*/\1/'
}
redis() {
    redis-benchmark -p 5172 -c 50 -n "$1" -P "$2" -t ping_mbulk --csv | sed -nE 's/^"PING_MBULK","([0-9]+).*/\1/p'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

for depth in 1 32; do
    requests=$((depth == 1 ? 400000 : 4000000))
    ours= theirs=
    for round in $(seq "$rounds"); do
        a=$(cnse "$requests" $((50 * depth)))
        b=$(redis "$requests" "$depth")
        ours+="$a"$'\n' theirs+="$b"$'\n'
        echo "depth $depth, round $round: cnse $a/s, redis $b/s"
    done
    a=$(printf %s "$ours" | median) b=$(printf %s "$theirs" | median)
    echo "depth $depth, medians: cnse $a/s, redis $b/s, ratio $(awk "BEGIN { printf \"%.2f\", $a / $b }")"
done
