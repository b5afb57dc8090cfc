#!/usr/bin/env bash
# Kills cnse put, get and gc with SIGKILL at random moments, and checks after each that nothing acknowledged was lost, that
# nothing half-written is visible, and that the rerun neither sends nor fetches again what was there.
#
#   scripts/kill-store.sh [-n TIMES] [-s MIB] [-f FILES] [-r SEED] [-- REMOTE FLAGS…]
#
#   -n   kills of each command (50)
#   -s   size of the model in MiB (64)
#   -f   small blobs that gc has to remove (400): with fewer it has ended before it can be killed
#   -r   seed of the moments (the time)
#   what follows -- goes to every command that speaks to the remote; without it a fresh folder is the remote
#
# A command that ended before its kill does not count: another moment is tried, up to four times as many in all, and if
# less than half of TIMES hit then, that is an error as well.
#
# CNSE   the binary (target/release/cnse)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "kill-store.sh: error: $*" >&2; exit 1; }
times=50 mib=64 files=400 seed=$(date +%s)
while getopts n:s:f:r: flag; do
    case $flag in
        n) times=$OPTARG ;;
        s) mib=$OPTARG ;;
        f) files=$OPTARG ;;
        r) seed=$OPTARG ;;
        *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
cnse=${CNSE:-target/release/cnse}
[ -x "$cnse" ] || die "$cnse is not there: cargo build --release"
cnse=$(realpath "$cnse")
work=$(mktemp -d)
# A store on another file system than the cache: blobs are copied, not linked.
shm=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$work" "$shm"' EXIT
remote=("$@")
[ ${#remote[@]} != 0 ] || remote=(--store "$shm/store")
export CNSE_CACHE=$work/cache
RANDOM=$seed
size=$((mib * 1048576))
echo "seed $seed, $mib MiB in parts of 1 MiB, remote: ${remote[*]}"

run() { local verb=$1; shift; "$cnse" "$verb" "${remote[@]}" "$@"; }
number() { sed -nE "s/.*\"$1\":([0-9]+).*/\1/p"; }
fresh() { head -c "$size" /dev/urandom >"$work/model"; }
# Starts a command and kills it at a random moment within so many ms; true if it was still running.
hit() {
    local within=$1 verb=$2 pid
    shift 2
    # Not by a function: the signal would hit a shell around it.
    "$cnse" "$verb" "${remote[@]}" "$@" >"$work/said" 2>&1 &
    pid=$!
    sleep "$(awk "BEGIN { printf \"%.4f\", $within / 1000 * $RANDOM / 32768 }")"
    kill -9 $pid 2>/dev/null || { wait $pid 2>/dev/null || true; return 1; }
    # Between the kill and its end it may have ended by itself.
    ! wait $pid 2>/dev/null
}
took() { local from=$EPOCHREALTIME; "$@" >/dev/null; awk "BEGIN { printf \"%d\", ($EPOCHREALTIME - $from) * 1000 + 1 }"; }

fresh
kept=$(run put --file "$work/model" --name kept --tag t --part-size 1MiB --quiet)
fresh
put_ms=$(took run put --file "$work/model" --name timed --tag t --part-size 1MiB --quiet)
get_ms=$(took run get timed:t --quiet)
run rm timed:t >/dev/null
run gc --grace 0 >/dev/null
# What gc has to do: a model of many small files, others in each round, that no name leads to.
garbage() {
    local from=$((garbage_no++ * 1000000)) i
    rm -rf "$work/small"
    mkdir "$work/small"
    for i in $(seq "$files"); do echo "$seed $((from + i))" >"$work/small/$i"; done
    run put --name doomed --tag t --quiet "$work"/small/* >/dev/null
    run rm doomed:t >/dev/null
}
garbage_no=1
garbage
gc_ms=$(took run gc --grace 0)
echo "undisturbed: put $put_ms ms, get $get_ms ms, gc $gc_ms ms"
failed=0
verdict() { # what, number, message if wrong
    [ -z "$3" ] || { failed=$((failed + 1)); echo "$1 $2: WRONG: $3"; }
}

# Until so many were killed in time: `more` says whether to go on; $n counts the moments.
more() { [ "$hits" -lt "$times" ] && [ "$n" -lt $((4 * times)) ] && n=$((n + 1)); }
phase() { # what, what else there is to say
    echo "$1: $hits killed in time, of $n moments$2"
    [ $((2 * hits)) -ge "$times" ] || { failed=$((failed + 1)); echo "$1: it ends too fast to be killed; give it more to do (-s, -f)"; }
}

n=0 hits=0 again=0
while more; do
    fresh
    hash=$(sha256sum "$work/model" | cut -d ' ' -f 1)
    put=(put --file "$work/model" --name new --tag "t$n" --part-size 1MiB)
    wrong=
    ! hit "$put_ms" "${put[@]}" --quiet || hits=$((hits + 1))
    # What can be seen is whole: all names lead to what they say.
    run verify --full --quiet >"$work/verify" 2>&1 || wrong="verify: $(head -c 300 "$work/verify")"
    json=$(run "${put[@]}" --json) || wrong="the rerun failed"
    sent=$(number sent_bytes <<<"$json") reused=$(number reused_bytes <<<"$json")
    again=$((again + reused))
    [ $((sent + reused)) -le "$size" ] || wrong="$sent sent and $reused there, of $size"
    [[ $json == *"$hash"* ]] || wrong="another hash"
    verdict put "$n" "$wrong"
    run rm "new:t$n" >/dev/null
    [ $((n % 10)) != 0 ] || run gc --grace 0 >/dev/null
done
phase put ", $((again >> 20)) MiB not sent again"

run put --file "$work/model" --name new --tag t --part-size 1MiB --quiet >/dev/null
hash=$(sha256sum "$work/model" | cut -d ' ' -f 1)
n=0 hits=0 again=0
while more; do
    wrong=
    rm -rf "$work/cache" "$work/out"
    ! hit "$get_ms" get new:t --output "$work/out" || hits=$((hits + 1))
    if [ -e "$work/out" ]; then
        [ "$(sha256sum "$work/out" | cut -d ' ' -f 1)" = "$hash" ] || wrong="the output is not whole"
    fi
    if [ -e "$work/cache/blobs/$hash" ]; then
        [ "$(sha256sum "$work/cache/blobs/$hash" | cut -d ' ' -f 1)" = "$hash" ] || wrong="the cached blob is not whole"
    fi
    json=$(run get new:t --output "$work/out" --json) || wrong="the rerun failed"
    fetched=$(number fetched_bytes <<<"$json") reused=$(number reused_bytes <<<"$json")
    again=$((again + reused))
    [ $((fetched + reused)) -le "$size" ] || wrong="$fetched fetched and $reused there, of $size"
    [ "$(sha256sum "$work/out" | cut -d ' ' -f 1)" = "$hash" ] || wrong="another hash"
    verdict get "$n" "$wrong"
done
phase get ", $((again >> 20)) MiB not fetched again"

n=0 hits=0
while more; do
    wrong=
    garbage
    ! hit "$gc_ms" gc --grace 0 || hits=$((hits + 1))
    run verify --quiet >"$work/verify" 2>&1 || wrong="verify: $(head -c 300 "$work/verify")"
    run gc --grace 0 >"$work/said" 2>&1 || wrong="the rerun failed: $(cat "$work/said")"
    left=$(run gc --grace 0 --dry-run --json | number bytes)
    [ "$left" = 0 ] || wrong="$left bytes stay behind"
    verdict gc "$n" "$wrong"
done
phase gc ""

rm -rf "$work/cache"
run get kept:t --output "$work/out" --quiet >/dev/null
[ "$(sha256sum "$work/out" | cut -d ' ' -f 1)" = "$kept" ] || { failed=$((failed + 1)); echo "WRONG: what was stored first is not what it was"; }
[ "$failed" = 0 ] && echo "nothing was lost, nothing half-written was visible"
[ "$failed" = 0 ]
