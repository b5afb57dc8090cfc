#!/usr/bin/env bash
# The same sleeps on cnse schedule, on the pool of mpi4py, on xargs and on GNU parallel, 16 at once on each, in turn: 4000
# tasks of 5 ms, and 4000 of a Pareto long tail cut at 300 ms, as they come and longest first. Prints every run, then the
# medians of makespan / ideal in one table (1.000: all 16 busy to the end), and what starting up costs, which is not in
# them but for xargs and parallel, whose own start is in (and is a few ms).
#
#   scripts/compare_schedulers.sh [ROUNDS] [MPI…]    3 rounds; MPI: debian, ompi5 or mpich, as scripts/mpi.sh builds cnse
#                                                    with them: `cnse schedule` is run under these too, 4 ranks of 4
#
# CNSE_PEERS_CACHE   where mpi4py with its MPI is kept (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
#
# mpi4py: 16 workers and the process that deals, with MPICH and with Open MPI 5, at the best of chunks of 1, 4, 16 and 64.
# GNU parallel takes half a minute and more for each, and so is run in the first round only.
# cnse: 4 ranks with 4 in flight each; "all on one": rank 0 begins with all the tasks, as the others' one process does.
# Longest first: cnse orders by estimates without error; the others get a sorted file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'compare_schedulers.sh: error: %s\n' "$*" >&2; exit 1; }

rounds=${1:-3}
[[ $rounds =~ ^[1-9][0-9]*$ ]] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
shift || true
mpis=("$@")
cnse=target/release/cnse
[ -x "$cnse" ] || scripts/build.sh >&2
for tool in xargs parallel awk; do
    command -v "$tool" >/dev/null || die "$tool is missing; install it (Debian, Ubuntu: apt-get install findutils parallel mawk)"
done
declare -A python
for flavour in mpich openmpi; do python[$flavour]=$(scripts/peers-venv.sh "$flavour"); done
declare -A environment
for mpi in ${mpis[@]+"${mpis[@]}"}; do
    environment[$mpi]=$(scripts/mpi.sh env "$mpi")
    (eval "${environment[$mpi]}" && cargo build --release --locked --quiet --features mpi) || die "cnse could not be built with $mpi"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The tail: the mean is some 5 ms, the median under 2 ms. In ms, to the microsecond; `sleep` wants seconds.
tasks=4000 at_once=16
"${python[mpich]}" - "$tasks" "$work" <<'PY'
import random, sys
count, folder = int(sys.argv[1]), sys.argv[2]
rng = random.Random(1)
tail = [min(300.0, (1.0 - rng.random()) ** (-1 / 1.1)) for _ in range(count)]
for name, times in (("equal", [5.0] * count), ("tail", tail), ("tail-sorted", sorted(tail, reverse=True))):
    with open(f"{folder}/{name}", "w") as ms, open(f"{folder}/{name}.s", "w") as s:
        for time in times:
            print(f"{time:.3f}", file=ms)
            print(f"{time / 1000:.6f}", file=s)
PY
ideal() { awk -v n="$at_once" '{ sum += $1; if ($1 > max) max = $1 } END { print (sum / n > max ? sum / n : max) / 1000 }' "$work/$1"; }

# Each prints the seconds that the tasks took; what is over of the time of the command is its start and its end.
schedule() { "$@" --json --quiet 2>>"$work/log" | sed -E 's/.*"wall_s":([0-9.]+).*/\1/'; }
ours() { # COLUMN START COMMAND…
    local flags=(--skew "$2" --inflight 4)
    case $1 in
        tail-sorted) flags+=(--simulate "trace:$work/tail" --order longest --estimate-error 0) ;;
        *) flags+=(--simulate "trace:$work/$1" --order input) ;;
    esac
    schedule "${@:3}" "${flags[@]}"
}
# Under mpirun. A rank has several threads, and so is not to be bound to one core.
under() { # MPI ARGS…
    (
        eval "${environment[$1]}"
        export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
        exec mpirun -np 4 "$CARGO_TARGET_DIR/release/cnse" "${@:2}"
    )
}
# Open MPI starts neither more processes than cores nor any as root without being told that it may.
pool() {
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe \
        PRTE_MCA_hwloc_default_binding_policy=none "$(dirname "${python[$2]}")/mpiexec" -n $((at_once + 1)) \
        "${python[$2]}" -m mpi4py.futures tests/peers/mpi4py_pool.py "$work/$1" "$3" 2>>"$work/log"
}
whole() { local began=$EPOCHREALTIME; "${@:2}" <"$work/$1.s" >/dev/null; awk "BEGIN { print $EPOCHREALTIME - $began }"; }

run() { # NAME COLUMN COMMAND…
    local name=$1 column=$2 began=$EPOCHREALTIME seconds
    seconds=$("${@:3}") && [ -n "$seconds" ] || { tail -n 20 "$work/log" >&2; die "$name failed on $column; what it said is above"; }
    awk -v name="$name" -v column="$column" -v seconds="$seconds" -v ideal="$(ideal "$column")" \
        -v all="$(awk "BEGIN { print $EPOCHREALTIME - $began }")" -v results="$work/results" 'BEGIN {
            printf "%s\t%s\t%.4f\t%.2f\n", name, column, seconds / ideal, all - seconds >>results
            printf "%-11s %-44s %.3f of ideal, %.2f s, and %.2f s around it\n", column, name, seconds / ideal, seconds, all - seconds
        }'
}

columns=(equal tail tail-sorted)
# What one queue gives that costs nothing: whoever is free takes the next task.
queue() {
    awk -v n="$at_once" '{ who = 1; for (i = 2; i <= n; i++) if (free[i] < free[who]) who = i; free[who] += $1 }
        END { for (i = 1; i <= n; i++) if (free[i] > last) last = free[i]; print last / 1000 }' "$work/$1"
}
for column in "${columns[@]}"; do
    awk "BEGIN { printf \"one queue that costs nothing (computed)\\t$column\\t%.4f\\t0\\n\", $(queue "$column") / $(ideal "$column") }" >>"$work/results"
done
echo "$(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg), $tasks tasks, $at_once at once; ideal: equal $(ideal equal) s, tail $(ideal tail) s"
for round in $(seq "$rounds"); do
    echo "round $round"
    for column in "${columns[@]}"; do
        for start in even all-on-one; do
            # shellcheck disable=SC2086
            run "cnse schedule, threads, ${start//-/ }" "$column" ours "$column" $start "$cnse" schedule --ranks 4
            for mpi in ${mpis[@]+"${mpis[@]}"}; do
                run "cnse schedule, MPI ($mpi), ${start//-/ }" "$column" \
                    ours "$column" $start under "$mpi" schedule
            done
        done
        for flavour in mpich openmpi; do
            for chunk in 1 4 16 64; do
                run "mpi4py.futures, $flavour, chunks of $chunk" "$column" pool "$column" "$flavour" "$chunk"
            done
        done
        run "xargs -P16 -n1 sleep" "$column" whole "$column" xargs -P16 -n1 sleep
        # shellcheck disable=SC2016
        run "xargs -P16 -n16 sh loop" "$column" whole "$column" xargs -P16 -n16 sh -c 'for t; do sleep "$t"; done' sh
        [ "$round" != 1 ] || run "GNU parallel -j16 sleep" "$column" whole "$column" parallel --will-cite -j16 sleep
    done
done

# The median of each; of the chunks of a pool the best, named behind it.
echo
awk -F'\t' '
    function median(list,    n, i, j, t, v) {
        n = split(list, v, " ")
        for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j] + 0 < v[j - 1] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    { if (!($1 in seen)) { seen[$1] = 1; names[++count] = $1 }
      took[$1, $2] = took[$1, $2] " " $3; around[$1] = around[$1] " " $4 }
    END {
        split("equal tail tail-sorted", columns, " ")
        for (i = 1; i <= count; i++) {
            name = names[i]; row = name; chunk = ""
            if (match(name, /, chunks of /)) { row = substr(name, 1, RSTART - 1) ", best chunk"; chunk = " (" substr(name, RSTART + RLENGTH) ")" }
            if (!(row in known)) { known[row] = 1; rows[++total] = row; start[row] = median(around[name]) }
            for (c = 1; c <= 3; c++) {
                m = median(took[name, columns[c]])
                if (!((row, c) in best) || m < best[row, c]) { best[row, c] = m; with[row, c] = chunk }
            }
        }
        printf "%-44s %14s %14s %14s %12s\n", "makespan / ideal, medians", "equal 5 ms", "long tail", "longest first", "start-up, s"
        for (i = 1; i <= total; i++) {
            row = rows[i]
            printf "%-44s", row
            for (c = 1; c <= 3; c++) printf " %14s", sprintf("%.3f%s", best[row, c], with[row, c])
            printf " %12s\n", row ~ /^(xargs|GNU)/ ? "in it" : row ~ /^one queue/ ? "-" : sprintf("%.2f", start[row])
        }
    }' "$work/results"
