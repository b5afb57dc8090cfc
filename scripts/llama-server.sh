#!/usr/bin/env bash
# The real llama-server and some tiny models for it, to test and to try cnse against. Built and made once, then kept in a
# cache outside the repository: the first run takes 6 to 15 minutes on two cores, later ones no time.
#
#   scripts/llama-server.sh                   print the path of the binary
#   scripts/llama-server.sh models            print the folder of the models (scripts/make_gguf.py says what they are)
#   scripts/llama-server.sh run [-- FLAGS]    start it on tiny.gguf, port 8090; FLAGS are llama-server's and win
#
# CNSE_LLAMA_SERVER  a llama-server that is there already: used as it is, nothing is built
# CNSE_PEERS_CACHE   where the cache is (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
#
# The path is the last line on stdout; everything else goes to stderr. It needs g++ and python3; cmake and ninja come from
# scripts/peers-venv.sh. It is CPU-only, without TLS and web UI. A run that was killed is taken up where it stopped.
set -euo pipefail

# The sdist of llama-cpp-python carries the whole source of llama.cpp (here 0.5.0-dev, commit 0c1e570), at one
# fixed version, through nothing but pip.
version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e

say() { printf 'llama-server.sh: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CNSE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cnse/peers}
mkdir -p "$cache" || die "cannot make the folder $cache; set CNSE_PEERS_CACHE to one that can be written"
cache=$(cd "$cache" && pwd)

main() {
    case ${1-} in
        '') binary ;;
        models) [ $# = 1 ] || usage; models ;;
        run) shift; [ "${1-}" != -- ] || shift; run "$@" ;;
        *) usage ;;
    esac
}

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

binary() {
    if [ -n "${CNSE_LLAMA_SERVER-}" ]; then
        [ -x "$CNSE_LLAMA_SERVER" ] || die "CNSE_LLAMA_SERVER=$CNSE_LLAMA_SERVER is no program; correct it, or unset it to build one"
        printf '%s\n' "$CNSE_LLAMA_SERVER"
        return
    fi
    local folder=$cache/llama-cpp-python-$version
    if [ ! -x "$folder/llama-server" ]; then
        # Whoever inherits descriptor 9 holds the lock: when this script alone is killed, a compiler that goes on
        # for a moment still keeps a second run out of the build folder.
        lock "$folder.lock"
        [ -x "$folder/llama-server" ] || build "$folder"
        exec 9>&-
    fi
    printf '%s\n' "$folder/llama-server"
}

# $1: the folder that appears, whole, once everything is done.
build() {
    local folder=$1 work=$1.partial python bin
    need_compiler
    python=$("$scripts/peers-venv.sh")
    bin=$(dirname "$python")
    mkdir -p "$work"
    fetch "$work" "$python" "$bin"

    if [ ! -e "$work/configured" ]; then
        say "configuring"
        rm -rf "$work/build"
        # No UI, tests, TLS: nothing of these is used, and the prebuilt UI would be downloaded. GGML_NATIVE=OFF makes a
        # binary that also runs on another machine that shares the cache.
        quietly "$work/configure.log" "$bin/cmake" -S "$work/source/vendor/llama.cpp" -B "$work/build" -G Ninja \
            -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
            -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF
        touch "$work/configured"
    fi

    say "building; this takes 6 to 15 minutes on two cores, once (follow it with: tail -f $work/build.log)"
    quietly "$work/build.log" "$bin/cmake" --build "$work/build" --target llama-server --parallel "$(nproc)"

    mkdir -p "$work/out"
    strip -o "$work/out/llama-server" "$work/build/bin/llama-server"
    "$work/out/llama-server" --version >&2 ||
        die "the binary does not run here (on x86 it needs a CPU with AVX2); set CNSE_LLAMA_SERVER to one that does"
    rm -rf "$folder"
    mv "$work/out" "$folder"
    rm -rf "$work"
}

# Puts the unpacked sdist at $1/source.
fetch() {
    local work=$1 python=$2 bin=$3 sdist=$1/sdist/llama_cpp_python-$version.tar.gz
    [ ! -d "$work/source" ] || return 0
    say "fetching the sources (77 MB, PyPI: llama-cpp-python $version)"
    rm -rf "$work/sdist" "$work/unpack"
    # pip asks an sdist for its metadata, which needs its build backend: that is in the virtual environment already.
    PATH=$bin:$PATH quietly "$work/fetch.log" "$python" -m pip --disable-pip-version-check download --no-deps \
        --no-build-isolation --no-binary llama-cpp-python --dest "$work/sdist" "llama-cpp-python==$version"
    [ -f "$sdist" ] || die "pip left no $sdist; see what it said in $work/fetch.log"
    echo "$sha256  $sdist" | sha256sum --check --status ||
        die "$sdist is not the file that was expected (sha256 $sha256); delete it, and ask who serves your package index"
    mkdir "$work/unpack"
    tar -xzf "$sdist" -C "$work/unpack" --strip-components=1
    mv "$work/unpack" "$work/source"
    rm -rf "$work/sdist"
}

need_compiler() {
    command -v g++ >/dev/null && command -v strip >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "g++ is missing; installing it with apt-get"
        { apt-get update && apt-get install -y --no-install-recommends g++; } >&2 9>&- && return
    fi
    die "g++ is missing; install it (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or set CNSE_LLAMA_SERVER"
}

# The folder's name follows the generator's text, so models of an older generator are never taken for its own.
models() {
    local key folder python
    key=$(cat "$scripts/make_gguf.py" "$scripts/peers-venv.sh" | sha256sum | cut -c1-12)
    folder=$cache/models-$key
    if [ ! -d "$folder" ]; then
        lock "$cache/models.lock"
        if [ ! -d "$folder" ]; then
            python=$("$scripts/peers-venv.sh")
            rm -rf "$folder.partial"
            "$python" "$scripts/make_gguf.py" --output "$folder.partial" >&2
            mv "$folder.partial" "$folder"
        fi
        exec 9>&-
    fi
    printf '%s\n' "$folder"
}

# One thread, since two that wait for each other make the tiny model slower; a ping interval of 2 s, since a server
# with open streams takes that long to stop; no prompt cache in host memory; --offline: no network.
run() {
    local server folder
    server=$(binary)
    folder=$(models)
    exec "$server" -m "$folder/tiny.gguf" --alias tiny -t 1 -c 4096 -np 4 --metrics --cache-ram 0 --offline \
        --sse-ping-interval 2 --port 8090 "$@"
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
