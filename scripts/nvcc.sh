#!/usr/bin/env bash
# Prints the path of an nvcc that can compile cuda/*.cu: the one of NVCC, CUDA_HOME or PATH, else one that is
# installed from PyPI, by name and version, into the cache of scripts/llama-server.sh. No card is needed.
#
#   NVCC=$(scripts/nvcc.sh) cargo build --features cuda
#   scripts/nvcc.sh --found      only the one that is there already; fails where there is none
#   scripts/nvcc.sh ptxas        a ptxas of CUDA 12.8, which knows sm_50 to sm_120 (scripts/ptx.sh)
#   scripts/nvcc.sh nvrtc        NVRTC's library of CUDA 12.8 (scripts/ptx.sh)
#
# CNSE_PEERS_CACHE   where the cache is (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
#
# The path is the last line on stdout; everything else goes to stderr.
set -euo pipefail

# --no-deps and each version: nvcc's package asks for the others in any version, and those of two series do not
# fit together. A newer series is no gain: its PTX is written for newer drivers, and its oldest target is the same.
case ${1-} in
    '' | --found)
        packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
            nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
        file=nvidia/cu13/bin/nvcc ;;
    ptxas) packages=(nvidia-cuda-nvcc-cu12==12.8.93) file=nvidia/cuda_nvcc/bin/ptxas ;;
    nvrtc) packages=(nvidia-cuda-nvrtc-cu12==12.8.93) file=nvidia/cuda_nvrtc/lib/libnvrtc.so.12 ;;
    *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac

say() { printf 'nvcc: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

if [ "${1---found}" = --found ]; then
    for nvcc in "${NVCC-}" ${CUDA_HOME:+"$CUDA_HOME/bin/nvcc"} "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        if [ -n "$nvcc" ] && "$nvcc" --version >/dev/null 2>&1; then
            printf '%s\n' "$nvcc"
            exit
        fi
    done
    [ -z "${NVCC-}" ] || die "NVCC=$NVCC cannot be run"
    [ $# = 0 ] || exit 1
fi

[ "$(uname -sm)" = 'Linux x86_64' ] || [ "$(uname -sm)" = 'Linux aarch64' ] ||
    die "there are no packages of CUDA for $(uname -sm); install a toolkit and set CUDA_HOME"
cache=${CNSE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cnse/peers}
mkdir -p "$cache" || die "cannot make the folder $cache; set CNSE_PEERS_CACHE to one that can be written"
cache=$(cd "$cache" && pwd)
folder=$cache/cuda-$(printf '%s\n' "${packages[@]}" | sha256sum | cut -c1-12)
if [ ! -e "$folder/complete" ]; then
    command -v flock >/dev/null || die "flock is missing; install util-linux"
    exec 9>"$cache/cuda.lock"
    flock 9
    if [ ! -e "$folder/complete" ]; then
        python=$("$(dirname "${BASH_SOURCE[0]}")/peers-venv.sh" cuda 9>&- | tail -n 1)
        say "installing ${packages[*]} in $folder"
        rm -rf "$folder"
        "$python" -m pip --disable-pip-version-check install --quiet --no-deps --target "$folder" "${packages[@]}" >&2 9>&- ||
            die "pip could not install ${packages[*]}; it needs a package index that it can reach (pip config list)"
        touch "$folder/complete"
    fi
    exec 9>&-
fi
[ -e "$folder/$file" ] || die "$folder has no $file; remove that folder and try again"
printf '%s\n' "$folder/$file"
