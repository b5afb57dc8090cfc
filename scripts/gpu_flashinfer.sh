#!/usr/bin/env bash
# Prints the path of a library with FlashInfer's samplers, for scripts/gpu_sampling.py. It is compiled once, from the
# headers of FlashInfer's package, into the cache of scripts/llama-server.sh; no card is needed.
#
#   scripts/gpu_flashinfer.sh
#
# CNSE_FLASHINFER_ARCH   the architecture that it is compiled for (default: 90a, Hopper)
# CNSE_PEERS_CACHE       where the cache is (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
#
# The path is the last line on stdout; everything else goes to stderr.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# = 0 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

say() { printf 'gpu_flashinfer: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Their headers are all that is wanted of them: --no-deps leaves PyTorch and the rest out.
packages=(flashinfer-python==0.6.18.post1 nvidia-curand==10.4.5.25)
arch=${CNSE_FLASHINFER_ARCH:-90a}
[[ $arch =~ ^[0-9]+a?$ ]] || die "CNSE_FLASHINFER_ARCH=$arch: not an architecture such as 90a or 80"
cache=${CNSE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cnse/peers}
mkdir -p "$cache" || die "cannot make the folder $cache; set CNSE_PEERS_CACHE to one that can be written"
cache=$(cd "$cache" && pwd)
key=$(printf '%s\n' "${packages[@]}" "$arch" | cat - "$here/gpu_flashinfer.cu" | sha256sum | cut -c1-12)
folder=$cache/flashinfer-$key
if [ ! -e "$folder/libflashinfer.so" ]; then
    command -v flock >/dev/null || die "flock is missing; install util-linux"
    nvcc=$("$here/nvcc.sh" | tail -n 1)
    python=$("$here/peers-venv.sh" cuda | tail -n 1)
    exec 9>"$cache/flashinfer.lock"
    flock 9
    if [ ! -e "$folder/libflashinfer.so" ]; then
        say "installing ${packages[*]} in $folder"
        rm -rf "$folder"
        "$python" -m pip --disable-pip-version-check install --quiet --no-deps --target "$folder" "${packages[@]}" >&2 9>&- ||
            die "pip could not install ${packages[*]}; it needs a package index that it can reach (pip config list)"
        say "compiling the samplers for sm_$arch"
        # The runtime is linked in, so that the library asks the host for a driver alone.
        "$nvcc" -shared -O3 -std=c++17 -w -Xcompiler -fPIC -gencode "arch=compute_$arch,code=sm_$arch" \
            -I"$folder/flashinfer/data/include" -I"$folder/nvidia/cu13/include" \
            -L"$(dirname "$nvcc")/../lib" -cudart static -o "$folder/building.so" "$here/gpu_flashinfer.cu" >&2 9>&- ||
            die "nvcc could not compile scripts/gpu_flashinfer.cu against ${packages[0]}"
        mv "$folder/building.so" "$folder/libflashinfer.so"
    fi
    exec 9>&-
fi
printf '%s\n' "$folder/libflashinfer.so"
