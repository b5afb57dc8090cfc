#!/usr/bin/env bash
# How fast models get to a SeaweedFS and back: cnse, weed's own clients, curl with a SHA-256, and rclone, to the same
# server, in turn. Then what `put` to a directory costs beside hashing and copying. Prints every run, then medians.
#
#   scripts/compare_store.sh [MIB] [ROUNDS] [put|get|dir]
#
# 1536 MiB and 3 rounds by default; a round takes 1 to 2 minutes, one of `put` or `get` alone half of that, and one of
# `dir`, which needs no server, 10 seconds.
#
# It needs curl, openssl and rclone (apt-get install curl openssl rclone), and weed (scripts/seaweed.sh). Of these, cnse
# alone checks end to end: what it stored is named by its SHA-256, and what it fetched was hashed on the way, by parts
# and as a whole. curl is timed with a hash of the file before it is sent and after it came; weed and rclone without.
# The file is random, in the page cache, and another one in each round; what was written before is synced and removed
# before the next one runs. openssl has the CPU's SHA instructions, which many a sha256sum has not. Into a directory cp
# and cnse end with the same on the disk, the file's bytes and its name, by fsync of both; hashing writes nothing.
#
# CNSE_COMPARE_DIR   where the files and the server's data are (default: the system's folder for temporary files)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mib=${1:-1536}
rounds=${2:-3}
what=${3:-all}
case $what in
    put | get | dir | all) ;;
    *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
cnse=${CARGO_TARGET_DIR:-target}/release/cnse
[ -x "$cnse" ] || scripts/build.sh >&2
cnse=$(realpath "$cnse")
work=$(mktemp -d "${CNSE_COMPARE_DIR:-${TMPDIR:-/tmp}}/cnse-compare.XXXXXX")
stop() {
    [ ! -e "$work/server/pid" ] || scripts/seaweed.sh stop "$work/server" || true
    rm -rf "$work"
}
trap stop EXIT

# What was removed from a server stays on its disk until it compacts its volumes: five copies a round.
need=$((mib * ($([ "$what" = dir ] && echo 4 || echo "4 + 5 * rounds")) >> 10))
free=$(($(df --output=avail -k "$work" | tail -n 1) >> 20))
[ "$free" -gt "$need" ] || {
    echo "compare_store.sh: error: $work has $free GiB free, and $rounds rounds take $need; take fewer rounds, or name a" \
        "folder with room in CNSE_COMPARE_DIR" >&2
    exit 1
}

tools="openssl" server=
[ "$what" = dir ] || tools="curl openssl rclone"
for tool in $tools; do
    command -v "$tool" >/dev/null || { echo "compare_store.sh: error: $tool is missing (apt-get install $tools)" >&2; exit 1; }
done
start_server() {
    local s3_port=$((31000 + RANDOM % 1000))
    weed=$(scripts/seaweed.sh)
    filer=$(scripts/seaweed.sh start "$work/server" -s3 -s3.port="$s3_port" -s3.port.grpc=$((s3_port - 10000)) \
        -s3.port.iceberg=0 -s3.port.lance=0)
    master=127.0.0.1:$(cat "$work/server/ports")
    server=$(cat "$work/server/pid")
    # rclone by the S3 gateway of the same process, in parallel parts; a CA bundle for the world confuses it.
    unset AWS_CA_BUNDLE
    export RCLONE_CONFIG=/dev/null RCLONE_CONFIG_W_TYPE=s3 RCLONE_CONFIG_W_PROVIDER=Other \
        RCLONE_CONFIG_W_ENDPOINT="http://127.0.0.1:$s3_port" RCLONE_CONFIG_W_FORCE_PATH_STYLE=true \
        RCLONE_CONFIG_W_ACCESS_KEY_ID=any RCLONE_CONFIG_W_SECRET_ACCESS_KEY=any
    rclone mkdir w:models 2>/dev/null
}
[ "$what" = dir ] || start_server
export CNSE_CACHE=$work/cache CNSE_STORE=$work/store

file=$work/model.bin
head -c "$((mib << 20))" /dev/urandom >"$file"
bytes=$(stat -c %s "$file")

cpu() { [ -z "$server" ] && echo 0 || awk '{ printf "%.2f", ($14 + $15) / 100 }' "/proc/$server/stat"; }

# Runs a command: its name, then it. Adds a line to the results: name, seconds, CPU seconds of the client, of the server.
run() {
    local name=$1 before took
    shift
    sync
    before=$(cpu)
    TIMEFORMAT='%R %U %S'
    took=$({ time "$@" >"$work/out" 2>"$work/err"; } 2>&1) || { cat "$work/err" >&2; echo "compare_store.sh: error: $name failed" >&2; exit 1; }
    awk -v name="$name" -v before="$before" -v after="$(cpu)" -v bytes="$bytes" \
        '{ printf "%-34s %6.2f s  %5.0f MB/s  CPU: client %5.2f s, server %5.2f s\n", name, $1, bytes / $1 / 1e6, $2 + $3, after - before }' \
        <<<"$took" | tee -a "$work/results"
}

same() { cmp -s "$file" "$1" || { echo "compare_store.sh: error: $1 has other bytes" >&2; exit 1; }; }
curl_put() { openssl dgst -sha256 "$file" && curl --silent --show-error --fail -T "$file" "$filer/curl/model.bin"; }
curl_get() { curl --silent --show-error --fail -o "$work/got" "$filer/curl/model.bin" && openssl dgst -sha256 "$work/got"; }

transfers() {
    local hash fid
    run "put: cnse" "$cnse" put --file "$file" --filer "$filer" --name model --tag x --quiet
    hash=$(cat "$work/out")
    run "put: weed filer.copy" "$weed" filer.copy "$file" "$filer/copy/"
    if [ "$what" != get ]; then
        run "put: weed upload" "$weed" upload -master="$master" -maxMB=32 "$file"
        fid=$(grep -o '"fid":"[^"]*"' "$work/out" | tail -n 1 | cut -d'"' -f4)
        curl --silent --output /dev/null -X DELETE "http://127.0.0.1:$(("${master#*:}" + 1))/$fid" || true
    fi
    run "put: openssl, curl -T" curl_put
    run "put: rclone" rclone copyto "$file" w:models/model.bin

    if [ "$what" != put ]; then
        run "get: cnse --path" "$cnse" get --hash "$hash" --filer "$filer" --path
        same "$(cat "$work/out")"
        rm -rf "$CNSE_CACHE"
        run "get: cnse --output" "$cnse" get --hash "$hash" --filer "$filer" --output "$work/got" --quiet
        same "$work/got"
        rm -rf "$CNSE_CACHE" "$work/got"
        run "get: weed filer.cat" "$weed" filer.cat -o "$work/got" "$filer/copy/model.bin"
        rm -f "$work/got"
        run "get: curl, openssl" curl_get
        same "$work/got"
        rm -f "$work/got"
        run "get: rclone" rclone copyto w:models/model.bin "$work/got"
        rm -f "$work/got"
    fi
    curl --silent -X DELETE "$filer/cnse?recursive=true" "$filer/copy?recursive=true" "$filer/curl?recursive=true"
    rclone deletefile w:models/model.bin
}
directory() {
    run "directory: openssl dgst" openssl dgst -sha256 "$file"
    run "directory: cp and sync" bash -c "cp '$file' '$work/got' && sync '$work/got' '$work'"
    rm -f "$work/got"
    run "directory: cnse put" "$cnse" put --file "$file" --store "$CNSE_STORE" --name model --tag x --quiet
    rm -rf "$CNSE_STORE"
}

for round in $(seq "$rounds"); do
    printf -- '-- round %d\n' "$round"
    # Another file: the store would know the same one again.
    head -c 16 /dev/urandom | dd of="$file" conv=notrunc status=none
    cat "$file" >/dev/null

    [ "$what" = dir ] || transfers
    [ "$what" = get ] || directory
done

printf -- '-- medians of %s rounds, %s MiB\n' "$rounds" "$mib"
awk -F '  +' -v bytes="$bytes" '
    { split($2, took, " "); n = ++count[$1]; all[$1, n] = took[1]; if (n == 1) order[++kinds] = $1 }
    function median(name,  i, j, n, t) {
        n = count[name]
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && all[name, j - 1] > all[name, j]; j--) {
                t = all[name, j]; all[name, j] = all[name, j - 1]; all[name, j - 1] = t
            }
        return n % 2 ? all[name, (n + 1) / 2] : (all[name, n / 2] + all[name, n / 2 + 1]) / 2
    }
    END {
        for (i = 1; i <= kinds; i++) {
            m[order[i]] = median(order[i])
            printf "%-34s %6.2f s  %5.0f MB/s\n", order[i], m[order[i]], bytes / m[order[i]] / 1e6
        }
        for (kind in m) {
            if (kind ~ /^put: / && kind !~ /cnse/ && (!best_put || m[kind] < best_put)) best_put = m[kind]
            if (kind ~ /^get: / && kind !~ /cnse/ && (!best_get || m[kind] < best_get)) best_get = m[kind]
        }
        hash = m["directory: openssl dgst"]; copy = m["directory: cp and sync"]
        slower = hash > copy ? hash : copy
        if (best_put) printf "put: cnse takes %.2f of the fastest other\n", m["put: cnse"] / best_put
        if (best_get) printf "get: cnse takes %.2f of the fastest other\n", m["get: cnse --path"] / best_get
        if (slower) printf "put to a directory takes %.2f of the slower of hash and copy\n", m["directory: cnse put"] / slower
    }' "$work/results"
