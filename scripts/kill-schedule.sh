#!/usr/bin/env bash
# Kills a batch at random moments, runs the same command again until it exits with 0, and looks at the output: every
# custom_id has to stand there exactly once, answered. Prints a line for each time and a table at the end.
#
#   scripts/kill-schedule.sh [--mpi WHICH] [--seed N] [--times N] [--rows N] [WHAT…]
#
# WHAT (all, if none is named; of rank and mpirun only with --mpi, of process only without):
#   process   kill -9 of cnse, whose 4 ranks are its threads
#   rank      kill -9 of one of 4 ranks under mpirun; with MPIRUN_FLAGS='--with-ft mpi' the others go on
#   mpirun    kill -9 of mpirun itself
#   backend   kill -9 of one of the two servers; a new one is there a second later
#   disk      the file system of the output becomes full, until the job is over (as root only: it is a small mount)
#
# --mpi    debian, ompi5 or mpich, as scripts/mpi.sh builds cnse with them (default: none, ranks are threads)
# --seed   of the moments and of whom it hits (1): the same seed kills at the same moments
# --times  how often each (10);  --rows  of the input (400)
#
# CNSE            the binary (default: target/release/cnse; not with --mpi)
# MPIRUN_FLAGS    more flags for mpirun
#
# The servers are cnse's built-in backend, two of 8 sequences each. It needs python3 to look at the output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
die() { printf 'kill-schedule.sh: error: %s\n' "$*" >&2; exit 1; }

# Mounts in a namespace of its own, which ends with the script: also /dev/shm, where ranks that were killed leave theirs.
if [ "$(id -u)" = 0 ]; then
    [ -n "${CNSE_KILL_UNSHARED-}" ] || CNSE_KILL_UNSHARED=1 exec unshare --mount "scripts/kill-schedule.sh" "$@"
    mount -t tmpfs tmpfs /dev/shm
fi

mpi='' seed=1 times=10 rows=400 whats=()
while [ $# -gt 0 ]; do
    case $1 in
        --mpi | --seed | --times | --rows)
            [ $# -ge 2 ] || usage
            declare "${1#--}=$2"
            shift 2
            ;;
        process | rank | mpirun | backend | disk) whats+=("$1"); shift ;;
        *) usage ;;
    esac
done
[[ $seed =~ ^[0-9]+$ && $times =~ ^[1-9][0-9]*$ && $rows =~ ^[1-9][0-9]*$ ]] || usage
command -v python3 >/dev/null || die "python3 is missing; install it (Debian, Ubuntu: apt-get install python3)"
if [ ${#whats[@]} = 0 ]; then
    [ -n "$mpi" ] && whats=(rank mpirun backend disk) || whats=(process backend disk)
fi
for what in "${whats[@]}"; do
    case $what in
        rank | mpirun) [ -n "$mpi" ] || die "$what needs --mpi: without it ranks are threads" ;;
        process) [ -z "$mpi" ] || die "process is for runs without --mpi" ;;
    esac
done
serve=${CNSE:-$PWD/target/release/cnse}
[ -x "$serve" ] || scripts/build.sh >&2
if [ -n "$mpi" ]; then
    exports=$(scripts/mpi.sh env "$mpi")
    eval "$exports"
    export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
    cargo build --release --locked --quiet --features mpi
    cnse=$CARGO_TARGET_DIR/release/cnse
    # shellcheck disable=SC2206
    command=(mpirun ${MPIRUN_FLAGS-} -np 4 "$cnse" schedule)
else
    cnse=$serve
    command=("$cnse" schedule --ranks 4)
fi

work=$(mktemp -d)
backends=()
finish() {
    # shellcheck disable=SC2046
    kill -9 ${backends[@]+"${backends[@]}"} $(jobs -p) $(ours) 2>/dev/null || true
    wait 2>/dev/null || true
    umount "$work/out" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

# Whatever works on this output, mpirun and its ranks.
ours() { pgrep -f -- "--output $work/out/" || true; }
ranks() {
    local pid
    for pid in $(ours); do
        [ "$(readlink "/proc/$pid/exe")" != "$cnse" ] || echo "$pid"
    done
}

ports=(0 0)
backend() { # NUMBER
    "$serve" serve --port "${ports[$1]}" --threads 1 --no-pin --sim-model words --sim-slots 8 --sim-ttft 20ms --sim-itl lognormal:4ms,0.5 \
        --log info >"$work/backend-$1" 2>&1 &
    backends[$1]=$!
    disown
    local port=
    for _ in $(seq 200); do
        port=$(sed -n 's/.*listening on [^ ]*:\([0-9]*\) .*/\1/p' "$work/backend-$1")
        [ -z "$port" ] || break
        sleep 0.05
    done
    [ -n "$port" ] || die "server $1 did not start: $(cat "$work/backend-$1")"
    ports[$1]=$port
}
backend 0
backend 1

RANDOM=$seed
python3 - "$rows" "$seed" >"$work/rows.jsonl" <<'PY'
import json, random, sys
rng = random.Random(int(sys.argv[2]))
for number in range(int(sys.argv[1])):
    body = {"model": "built-in", "max_tokens": rng.randint(4, 64), "messages": [{"role": "user", "content": f"row {number}"}]}
    print(json.dumps({"custom_id": f"row-{number:06}", "method": "POST", "url": "/v1/chat/completions", "body": body}))
PY
run=("${command[@]}" --input "$work/rows.jsonl" --output "$work/out/results.jsonl"
    --server "http://127.0.0.1:${ports[0]},http://127.0.0.1:${ports[1]}" --inflight 4 --quiet)

# Prints what is in the output, and whether it is what has to be there.
check() {
    python3 - "$work/rows.jsonl" "$work/out/results.jsonl" "$work/out/results.errors.jsonl" <<'PY'
import collections, json, os, sys
wanted = [json.loads(line)["custom_id"] for line in open(sys.argv[1])]
seen, bad = collections.Counter(), 0
for line in open(sys.argv[2]):
    answer = json.loads(line)
    seen[answer["custom_id"]] += 1
    bad += bool(answer.get("error")) or (answer.get("response") or {}).get("status_code") != 200
missing = sum(1 for name in wanted if not seen[name])
double = sum(1 for count in seen.values() if count > 1)
strange = len(set(seen) - set(wanted))
failed = sum(1 for _ in open(sys.argv[3])) if os.path.exists(sys.argv[3]) else 0
right = not (missing or double or strange or bad or failed)
print(f"{'ok' if right else 'WRONG'} {sum(seen.values())} lines, {missing} missing, {double} double, {strange} strange, {bad + failed} failed")
PY
}
fresh() {
    umount "$work/out" 2>/dev/null || true
    rm -rf "$work/out"
    mkdir "$work/out"
    [ "$1" != disk ] || mount -t tmpfs -o size=16m tmpfs "$work/out"
}
# Waits for the job until it is over, or 120 s; $code has what it exited with. The shell's own word of a death is noise.
await() { settle 2>/dev/null; }
settle() {
    code=0
    for _ in $(seq 1200); do
        kill -0 "$job" 2>/dev/null || break
        sleep 0.1
    done
    if kill -0 "$job" 2>/dev/null; then
        # shellcheck disable=SC2046
        kill -9 "$job" $(ours) 2>/dev/null || true
        code=hangs
        wait "$job" 2>/dev/null || true
        return
    fi
    wait "$job" 2>/dev/null || code=$?
    # After mpirun's death its ranks have a moment to notice.
    for _ in $(seq 100); do
        [ -n "$(ours)" ] || return 0
        sleep 0.1
    done
    code+=", ranks left"
    # shellcheck disable=SC2046
    kill -9 $(ours) 2>/dev/null || true
}
seconds() { awk "BEGIN { printf \"%.2f\", $EPOCHREALTIME - $1 }"; }
begin() {
    "${run[@]}" >"$work/said" 2>&1 &
    job=$!
}

fresh plain
began=$EPOCHREALTIME
begin
await
undisturbed=$(seconds "$began")
verdict=$(check)
[ "$code" = 0 ] && [[ $verdict = ok* ]] || { cat "$work/said" >&2; die "the batch does not even end undisturbed: exit code $code, $verdict"; }
echo "undisturbed: $undisturbed s for $rows rows; seed $seed"

failed=0
for what in "${whats[@]}"; do
    if [ "$what" = disk ] && [ "$(id -u)" != 0 ]; then
        echo "skipped: disk: works as root only"
        continue
    fi
    right=0 reruns_all=0 late=0 codes=
    for time in $(seq "$times"); do
        note=
        # A moment that came too late has hit nothing: another one is drawn.
        for _ in 1 2 3 4 5; do
            fresh "$what"
            moment=$(awk "BEGIN { printf \"%.3f\", $undisturbed * (0.02 + 0.96 * $RANDOM / 32768) }")
            whom=$RANDOM
            begin
            sleep "$moment"
            ! kill -0 "$job" 2>/dev/null || break
            await
            late=$((late + 1))
        done
        case $what in
            process) kill -9 "$job" 2>/dev/null || true ;;
            mpirun) kill -9 "$job" 2>/dev/null || true ;;
            rank)
                # A launcher can take seconds until there is a rank.
                for _ in $(seq 100); do
                    mapfile -t pids < <(ranks)
                    if [ ${#pids[@]} != 0 ] || ! kill -0 "$job" 2>/dev/null; then break; fi
                    sleep 0.05
                done
                [ ${#pids[@]} = 0 ] || kill -9 "${pids[$((whom % ${#pids[@]}))]}" 2>/dev/null || true
                [ ${#pids[@]} != 0 ] || note=', no rank was there'
                ;;
            backend)
                kill -9 "${backends[$((whom % 2))]}"
                sleep 1
                backend $((whom % 2))
                ;;
            disk) dd if=/dev/zero of="$work/out/filler" bs=4k 2>/dev/null || true ;;
        esac
        await
        first=$code
        rm -f "$work/out/filler"
        kept=$(cat "$work"/out/results.jsonl.parts/part* 2>/dev/null | grep -c custom_id || true)
        reruns=0
        while [ "$code" != 0 ] && [ "$reruns" -lt 10 ]; do
            reruns=$((reruns + 1))
            begin
            await
        done
        [ "$code" = 0 ] && verdict=$(check) || verdict="WRONG: still exit code $code after $reruns reruns: $(tail -n 3 "$work/said")"
        [[ $verdict != ok* ]] && failed=1 || right=$((right + 1))
        reruns_all=$((reruns_all + reruns))
        codes+="$first"$'\n'
        printf '%-8s %2d  at %6s s%s: exit code %s, %d rows in the parts, %d reruns: %s\n' \
            "$what" "$time" "$moment" "$note" "$first" "$kept" "$reruns" "$verdict"
    done
    codes=$(printf %s "$codes" | sort | uniq -c | awk '{ n = $1; $1 = ""; printf "%s%s (%d times)", sep, substr($0, 2), n; sep = ", " }')
    printf '%s\t%d\t%d\t%d\t%s\t%d\n' "$what" "$times" "$right" "$late" "$codes" "$reruns_all" >>"$work/table"
done

echo
printf '%-8s %6s %6s %5s %7s  %s\n' what times right late reruns 'exit codes of the run that was hit'
while IFS=$'\t' read -r what count right late codes reruns; do
    printf '%-8s %6s %6s %5s %7s  %s\n' "$what" "$count" "$right" "$late" "$reruns" "$codes"
done <"$work/table"
[ "$failed" = 0 ]
