#!/usr/bin/env bash
# cnse's search on the CPU beside faiss-cpu's exact one (IndexFlatIP over rows of length 1), in memory, the same rows and
# queries, in turn. Prints every round, then the medians and their ratio; below 1 cnse takes less time. It fails where the
# two do not find the same rows for a query.
#
#   scripts/compare_search.sh [ROUNDS] [ROWS] [DIMS]      5 rounds of 100,000 rows of 768 by default, k = 10
#
# CNSE_SEARCH_BENCH  the program of benches/search.rs, where it is built already
# CNSE_PEERS_CACHE   where faiss-cpu is kept (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
#
# cnse's sums have one order on every machine, and no multiplication fused with its addition, so that a card can give
# the same bits: of what a processor with FMA can do at most, that leaves a half.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rounds=${1:-5} rows=${2:-100000} dims=${3:-768}
[[ $rounds$rows$dims =~ ^[0-9]+$ ]] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
python=$(scripts/peers-venv.sh faiss | tail -n 1)
bench=${CNSE_SEARCH_BENCH:-$(cargo bench --locked --bench search --no-run --message-format=json 2>/dev/null |
    sed -nE 's/.*"executable":"([^"]*search-[^"]+)".*/\1/p' | tail -n 1)}
[ -x "$bench" ] || { echo "compare_search.sh: error: the bench could not be built: cargo bench --bench search" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" - "$work" "$rows" "$dims" <<'PY'
import sys, numpy
folder, rows, dims = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = numpy.random.default_rng(1)
corpus = rng.standard_normal((rows, dims), dtype=numpy.float32)
corpus /= numpy.linalg.norm(corpus, axis=1, keepdims=True)
numpy.save(f"{folder}/corpus.npy", corpus)
for count in (1, 8, 64):
    numpy.save(f"{folder}/{count}.npy", corpus[:count] + 0.5 * rng.standard_normal((count, dims), dtype=numpy.float32) / dims**0.5)
PY
cat >"$work/peer.py" <<'PY'
import sys, time, numpy, faiss
corpus, queries = numpy.load(sys.argv[1]), numpy.load(sys.argv[2])
k, threads, repeats = map(int, sys.argv[3:6])
faiss.omp_set_num_threads(threads)
index = faiss.IndexFlatIP(corpus.shape[1])
index.add(corpus)
times = []
for _ in range(repeats):
    begun = time.perf_counter()
    unit = queries / numpy.linalg.norm(queries, axis=1, keepdims=True)
    scores, found = index.search(unit, k)
    times.append((time.perf_counter() - begun) * 1e3)
print(f"{sorted(times)[repeats // 2]:.3f}", ",".join(map(str, found[0])))
PY

cores=$(nproc)
for round in $(seq "$rounds"); do
    for threads in 1 "$cores"; do
        for count in 1 8 64; do
            read -r ours found < <("$bench" "$work/corpus.npy" "$work/$count.npy" 10 "$threads" 5)
            read -r theirs wanted < <("$python" "$work/peer.py" "$work/corpus.npy" "$work/$count.npy" 10 "$threads" 5)
            [ "$found" = "$wanted" ] || { echo "compare_search.sh: error: other rows: $found, faiss $wanted" >&2; exit 1; }
            printf 'round %d: %2d threads, %2d queries: cnse %9.3f ms, faiss %9.3f ms\n' "$round" "$threads" "$count" "$ours" "$theirs"
            echo "$threads $count $ours $theirs" >>"$work/results"
        done
    done
done
echo
printf '%-26s %12s %12s %8s\n' "median of $rounds rounds" "cnse ms" "faiss ms" ratio
for threads in 1 "$cores"; do
    for count in 1 8 64; do
        median() { awk -v t="$threads" -v c="$count" -v f="$1" '$1 == t && $2 == c { print $f }' "$work/results" | sort -n | sed -n "$(((rounds + 1) / 2))p"; }
        ours=$(median 3) theirs=$(median 4)
        printf '%2d threads, %2d queries     %12.3f %12.3f %8.2f\n' "$threads" "$count" "$ours" "$theirs" "$(awk "BEGIN { print $ours / $theirs }")"
    done
done
