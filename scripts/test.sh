#!/usr/bin/env bash
# All tests of cnse. It installs what it needs on a fresh Debian machine, and builds the real peers once into a cache.
#
#   scripts/test.sh            everything; peers are built in the first run (10 to 25 minutes), later runs take a few
#   scripts/test.sh --quick    lints and `cargo test`: needs nothing but Rust, and skips what needs a peer
#
# CNSE_PEERS_CACHE   where the peers are kept (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=
case ${1-} in
    '') ;;
    --quick) quick=1 ;;
    *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

log=$(mktemp -d)
servers=
finish() {
    # shellcheck disable=SC2086
    [ -z "$servers" ] || kill $servers 2>/dev/null || true
    rm -rf "$log"
}
trap finish EXIT
passed=0 failed=0 skipped=0

# Runs a step: its name, then its command. What it says goes to the screen and is counted.
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    if ! "$@" 2>&1 | tee "$log/step"; then
        count
        printf '\n== %s: FAILED (%s)\n' "$name" "$*"
        printf '%d passed, %d failed, %d skipped\n' "$passed" "$((failed > 0 ? failed : 1))" "$skipped"
        exit 1
    fi
    count
    printf '== %s: %d s\n' "$name" "$((SECONDS - started))"
}

count() {
    local p f
    # Closing lines: of cargo's test runner, and of the checks with other clients.
    while read -r p f; do
        passed=$((passed + p)) failed=$((failed + f))
    done < <(sed -nE 's/.*\b([0-9]+) passed[;,] ([0-9]+) failed.*/\1 \2/p' "$log/step")
    # A card is not to be had where CI runs, and what needs the feature cuda has its own step.
    local fine='no NVIDIA driver|without --features cuda'
    skipped=$((skipped + $(grep '^skipped: ' "$log/step" | grep -Evc "$fine" || true)))
}

install() {
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "test.sh: error: $1 is missing; install it (Debian, Ubuntu: apt-get install $2)" >&2
        exit 1
    fi
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2"
}

install cargo cargo
install cc gcc
step "format" cargo fmt --check
step "clippy" cargo clippy --all-targets --locked -- -D warnings
step "the feature tls" cargo clippy --lib --locked --features tls -- -D warnings
step "docs" env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet

if [ -n "$quick" ]; then
    step "tests" cargo test --locked -- --nocapture
    printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    exit
fi

install curl curl
step "the real llama-server, its models and its clients" bash -c \
    'scripts/llama-server.sh >"$0/server" && scripts/llama-server.sh models >"$0/models" && scripts/peers-venv.sh >"$0/python"' "$log"
CNSE_TEST_LLAMA_SERVER=$(tail -n 1 "$log/server")
CNSE_TEST_MODELS=$(tail -n 1 "$log/models")
python=$(tail -n 1 "$log/python")
export CNSE_TEST_LLAMA_SERVER CNSE_TEST_MODELS CNSE_TEST_PEERS=required

step "the real SeaweedFS" bash -c 'scripts/seaweed.sh >"$0/weed"' "$log"
CNSE_TEST_WEED=$(tail -n 1 "$log/weed")
export CNSE_TEST_WEED

step "MPI: the fabric on 1, 2, 4 and 8 ranks" scripts/mpi.sh
export CNSE_TEST_MPI=$PWD/target/mpi-debian/debug/cnse

install g++ g++
install openssl openssl
nvcc=$(scripts/nvcc.sh | tail -n 1)
# What the build made last is of these sources.
# shellcheck disable=SC2012
cuda_kernels() {
    NVCC=$nvcc cargo clippy --all-targets --locked --features cuda -- -D warnings &&
        NVCC=$nvcc CARGO_TARGET_DIR=target/cuda cargo test --locked --features cuda,tls -- cuda:: gpu:: https:: --nocapture &&
        scripts/ptx.sh "$(dirname "$(ls -t target/cuda/debug/build/cnse-*/out/search.ptx | head -n 1)")"
}
step "CUDA without a card, the PTX for each architecture; https" cuda_kernels

step "tests" env CNSE_SIM_SEEDS=500 CNSE_HOSTILE_INPUTS=10000 cargo test --locked -- --nocapture
step "fuzzing" env CNSE_FUZZ_INPUTS=10000000 cargo test --release --locked --test fuzz
step "experiments: false verdicts, and tuning against chance" env CNSE_EXPERIMENTS=10000 CNSE_TUNE_SEEDS=50 \
    cargo test --release --locked --test experiments -- --nocapture
step "benches, each once" cargo bench --locked --bench wire --bench digest -- --test
step "build" scripts/build.sh

# Starts a server in the background and waits for the address it says: `start NAME COMMAND…`; $address has it.
start() {
    local name=$1
    shift
    "$@" >"$log/$name" 2>&1 &
    servers="$servers $!"
    for _ in $(seq 200); do
        address=$(sed -nE 's|.*listening on (http://)?([0-9.]+:[0-9]+).*|\2|p' "$log/$name" | head -n 1)
        [ -z "$address" ] || return 0
        sleep 0.05
    done
    cat "$log/$name"
    echo "test.sh: error: $name did not start" >&2
    exit 1
}

llama_flags=(--alias tiny -t 1 -c 4096 -np 4 --port 0 --cache-ram 0 --offline --sse-ping-interval 2)
start llama "$CNSE_TEST_LLAMA_SERVER" -m "$CNSE_TEST_MODELS/tiny.gguf" "${llama_flags[@]}"
llama=$address
start embeddings "$CNSE_TEST_LLAMA_SERVER" -m "$CNSE_TEST_MODELS/tiny.gguf" "${llama_flags[@]}" --embeddings --pooling mean
embeddings=$address
wait_ready() {
    for _ in $(seq 200); do
        curl --silent --fail --output "$log/health" "http://$1/health" && return
        sleep 0.05
    done
    echo "test.sh: error: http://$1/health does not turn good" >&2
    exit 1
}
start gateway env CNSE_API_KEY=secret target/release/cnse serve --port 0 --llama-url "http://$llama"
gateway=$address
start gateway-embeddings env CNSE_API_KEY=secret target/release/cnse serve --port 0 --llama-url "http://$embeddings"
gateway_embeddings=$address
start openai env CNSE_API_KEY=secret target/release/cnse serve --port 0 --openai-url "http://$llama"
openai=$address
start builtin target/release/cnse serve --port 0 --sim-model words
builtin=$address
for address in "$llama" "$embeddings" "$gateway" "$gateway_embeddings" "$openai" "$builtin"; do
    wait_ready "$address"
done

check=tests/peers/openai_check.py
export OPENAI_API_KEY=secret
step "the openai package through the llama backend" "$python" "$check" --base-url "http://$gateway/v1" --model tiny \
    --llama --expect-key secret --embeddings-url "http://$gateway_embeddings/v1"
step "the openai package through the openai backend" "$python" "$check" --base-url "http://$openai/v1" --model tiny \
    --llama --expect-key secret --own-usage
step "the openai package and the built-in backend" "$python" "$check" --base-url "http://$builtin/v1" --model built-in \
    --embeddings-url "http://$builtin/v1"
step "curl" tests/peers/curl_check.sh "http://$gateway" secret
step "the MPIJob's form" bash -c '"$(scripts/peers-venv.sh kubernetes)" tests/peers/mpijob_check.py'

if [ -n "${CI-}" ] && [ "$skipped" -gt 0 ]; then
    echo "test.sh: error: $skipped tests were skipped that should have run" >&2
    failed=$((failed + 1))
fi
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ]
