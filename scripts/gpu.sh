#!/usr/bin/env bash
# Everything that must be shown on an NVIDIA card, in one call on a host that has one: scripts/gpu.sh makes a folder
# with the binary and what it needs, on a machine without a card; run.sh in it runs the proofs on one that has.
#
#   scripts/gpu.sh FOLDER        builds, and makes FOLDER; copy it to the host with the card
#   FOLDER/run.sh [OUT]          there: self-test, random shapes, sampling, compute-sanitizer, bench gpu, PyTorch, and
#                                sampling beside PyTorch's and FlashInfer's; what came of it is written to OUT (a new
#                                folder), and a summary to the terminal
#
# What the host lacks (compute-sanitizer, PyTorch) is skipped, and said so. CASES=N: shapes for each kernel (200).
# CNSE_FLASHINFER=no, when FOLDER is made: without FlashInfer, whose package is not to be had everywhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# = 1 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
folder=$1
nvcc=$(scripts/nvcc.sh | tail -n 1)
NVCC=$nvcc cargo build --release --locked --features cuda
# Sampling's comparisons and times are a program of their own.
sampling=$(NVCC=$nvcc cargo test --release --locked --features cuda --test cuda --no-run --message-format=json |
    sed -nE '/"name":"cuda"/s/.*"executable":"([^"]+)".*/\1/p' | tail -n 1)
mkdir -p "$folder"
cp "$sampling" "$folder/sampling"
cp "${CARGO_TARGET_DIR:-target}/release/cnse" "$folder/cnse"
# The host with the card has no use for line tables.
if command -v strip >/dev/null; then strip "$folder/cnse" "$folder/sampling"; fi
cp scripts/gpu_torch.py scripts/gpu_sampling.py scripts/gpu_serve.sh "$folder/"
if [ "${CNSE_FLASHINFER-}" != no ]; then cp "$(scripts/gpu_flashinfer.sh | tail -n 1)" "$folder/"; fi
cat >"$folder/run.sh" <<'RUN'
#!/usr/bin/env bash
# The proofs of cnse on a card; see scripts/gpu.sh. Exits 1 if one of them fails.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here/out}
mkdir -p "$out"
cnse=$here/cnse
failed=0
proof() { # NAME COMMAND…
    local name=$1 begun=$SECONDS
    shift
    if "$@" >"$out/$name.txt" 2>&1; then
        printf 'passed   %-28s %4d s\n' "$name" $((SECONDS - begun))
    else
        printf 'FAILED   %-28s %4d s, exit code %d:\n' "$name" $((SECONDS - begun)) $?
        tail -n 5 "$out/$name.txt" | sed 's/^/    /'
        failed=1
    fi
}
skip() { printf 'skipped: %-27s %s\n' "$1" "$2"; }

# With a cold cache the driver compiles the kernels; the second start finds them.
export CUDA_CACHE_PATH=$out/cache
rm -rf "$CUDA_CACHE_PATH"
proof version "$cnse" --version
proof start-cold "$cnse" gpu --device cuda:0 --cases 0 --json
begun=$(date +%s%N)
proof start-warm "$cnse" gpu --device cuda:0 --cases 0 --json
printf '         a start with a warm cache took %d ms\n' $((($(date +%s%N) - begun) / 1000000))
proof self-test "$cnse" gpu --device cuda:0 --cases "${CASES:-200}"
sed -n 's/^\(  .* shapes: \)/         \1/p' "$out/self-test.txt"
proof sampling "$here/sampling" --cases "${CASES:-200}"
tail -n 12 "$out/sampling.txt" | sed 's/^/         /'
proof offload "$here/sampling" offload
tail -n 4 "$out/offload.txt" | sed 's/^/         /'
# The gateway: tokens and embeddings on the card, what it says of it, and the same answers from a CPU.
proof serve bash "$here/gpu_serve.sh" "$cnse"
grep -E '^cnse_gpu|tokens/s|same' "$out/serve.txt" | sed 's/^/         /'
proof bench "$cnse" bench gpu --csv "$out/gpu.csv"
cat "$out/bench.txt"
if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    proof torch python3 "$here/gpu_torch.py"
    grep ' us ' "$out/torch.txt"
    peers=("$here/sampling")
    if [ -e "$here/libflashinfer.so" ]; then
        peers+=("$here/libflashinfer.so")
    else
        skip FlashInfer "it was left out when the folder was made"
    fi
    proof sampling-peers python3 "$here/gpu_sampling.py" "${peers[@]}"
    cat "$out/sampling-peers.txt"
else
    skip torch "python3 has no PyTorch that sees a card"
    proof sampling-bench "$here/sampling" bench
    cat "$out/sampling-bench.txt"
fi
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        proof "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "$cnse" gpu --device cuda:0 --cases 20 --seed 7
        grep -E '^=========' "$out/$tool.txt" | tail -n 5
        proof "sampling-$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "$here/sampling" --cases 12 --draws 1 --largest 2049
        grep -E '^=========' "$out/sampling-$tool.txt" | tail -n 5
        # Rows so long that blocks help each other, and few, since the tool is slow.
        proof "sampling-wide-$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "$here/sampling" wide 3 70000
        grep -E '^=========' "$out/sampling-wide-$tool.txt" | tail -n 5
    done
else
    skip compute-sanitizer "it is not on PATH"
fi
rm -rf "$CUDA_CACHE_PATH"
exit $failed
RUN
chmod +x "$folder/run.sh"
printf 'gpu.sh: made %s (%s); run %s/run.sh on a host with a card\n' "$folder" "$(du -sh "$folder" | cut -f1)" "$folder" >&2
