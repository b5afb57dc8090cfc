#!/usr/bin/env bash
# Checks, without a card, that the one PTX of each cuda/*.cu is what every card from Maxwell to Hopper can load, or
# from the one on that its first line names: ptxas of CUDA 12.8 assembles it for each architecture, and NVRTC of 12.8, a compiler that knows Maxwell itself,
# compiles the same source to compute_50, which ptxas assembles, too.
#
#   scripts/ptx.sh FOLDER       FOLDER has what build.rs made: NAME.ptx for each cuda/NAME.cu
#
# It takes the packages that it needs from PyPI by name (scripts/nvcc.sh); CNSE_PEERS_CACHE as there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# = 1 ] && [ -d "$1" ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
folder=$1
ptxas=$(scripts/nvcc.sh ptxas | tail -n 1)
nvrtc=$(scripts/nvcc.sh nvrtc | tail -n 1)
python=$(scripts/peers-venv.sh cuda | tail -n 1)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Maxwell, Pascal, Volta, Turing, Ampere, Ada, Hopper.
architectures=(50 52 53 60 61 62 70 72 75 80 86 87 89 90)
passed=0 failed=0
assemble() { # PTX WHAT LEAST ARCHITECTURE…
    local ptx=$1 what=$2 least=$3
    shift 3
    for architecture; do
        [ "$architecture" -ge "$least" ] || continue
        if "$ptxas" -arch="sm_$architecture" "$ptx" -o "$out/cubin" 2>"$out/said"; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            printf 'ptx.sh: %s does not assemble for sm_%s:\n' "$what" "$architecture"
            head -n 5 "$out/said"
        fi
    done
}

for source in cuda/*.cu; do
    name=$(basename "$source" .cu)
    [ -e "$folder/$name.ptx" ] || { echo "ptx.sh: error: $folder has no $name.ptx; build with --features cuda" >&2; exit 1; }
    least=$(sed -nE '1s|^// target: sm_([0-9]+)(, PTX [0-9.]+)?$|\1|p' "$source")
    least=${least:-50}
    assemble "$folder/$name.ptx" "$name.ptx" "$least" "${architectures[@]}"
    if "$python" - "$nvrtc" "$source" "$out/$name.ptx" "$least" <<'PYTHON'
import ctypes, sys
library, source, target, least = sys.argv[1:]
nvrtc = ctypes.CDLL(library)
program = ctypes.c_void_p()
text = open(source, 'rb').read()
def check(code, what):
    if code:
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(f'{what}: {code}\n{log.value.decode()}')
check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None), 'nvrtcCreateProgram')
options = [b'--gpu-architecture=compute_' + least.encode(), b'--std=c++17', b'-fmad=false', b'-I=cuda']
check(nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)), 'nvrtcCompileProgram')
size = ctypes.c_size_t()
check(nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)), 'nvrtcGetPTXSize')
ptx = ctypes.create_string_buffer(size.value)
check(nvrtc.nvrtcGetPTX(program, ptx), 'nvrtcGetPTX')
open(target, 'wb').write(ptx.value)
PYTHON
    then
        passed=$((passed + 1))
        assemble "$out/$name.ptx" "NVRTC's $name.ptx" 0 "$least" 90
    else
        failed=$((failed + 1))
        printf 'ptx.sh: NVRTC does not compile %s\n' "$source"
    fi
done
printf 'ptx.sh: %d passed; %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
