#!/usr/bin/env bash
# Builds cnse with what this machine has, and says what is in.
#
#   scripts/build.sh        the binary is target/release/cnse
#
# With MPI, where mpicc and libclang are found; for another MPI than the one on PATH see scripts/mpi.sh.
# With CUDA, where nvcc and g++ are found, or g++ is and scripts/nvcc.sh can install nvcc; the binary needs no card
# and no driver to start. CNSE_CUDA=0 leaves it out, CNSE_CUDA_ARCH=90 compiles for that architecture and newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v cargo >/dev/null; then
    echo "build.sh: error: Rust is missing; install it from https://rustup.rs (1.91 or newer)" >&2
    exit 1
fi
if ! command -v cc >/dev/null; then
    echo "build.sh: error: a C linker is missing; install one (Debian, Ubuntu: apt-get install gcc)" >&2
    exit 1
fi

# What MPI's crate needs: mpicc, and a libclang that can be loaded, with which it reads mpi.h.
clang() {
    [ -z "${LIBCLANG_PATH-}" ] || return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null ||
        { command -v clang && ldconfig -p | grep -q 'libclang.*\.so'; } >/dev/null 2>&1
}
features=()
if ! command -v "${MPICC:-mpicc}" >/dev/null; then
    echo "build.sh: without MPI (there is no mpicc; Debian, Ubuntu: apt-get install libopenmpi-dev openmpi-bin libclang-dev)" >&2
elif ! clang; then
    echo "build.sh: without MPI (mpicc is there, libclang is not; Debian, Ubuntu: apt-get install libclang-dev)" >&2
else
    echo "build.sh: with MPI ($(command -v "${MPICC:-mpicc}")); the binary starts only where that MPI is" >&2
    features+=(mpi)
fi
if [ "${CNSE_CUDA-1}" = 0 ]; then
    echo "build.sh: without CUDA (CNSE_CUDA=0)" >&2
elif ! command -v g++ >/dev/null; then
    echo "build.sh: without CUDA (there is no g++, which nvcc needs; Debian, Ubuntu: apt-get install g++)" >&2
elif ! nvcc=$(scripts/nvcc.sh | tail -n 1); then
    echo "build.sh: without CUDA (there is no nvcc, and it could not be installed: see above)" >&2
else
    echo "build.sh: with CUDA ($nvcc)" >&2
    export NVCC=$nvcc
    features+=(cuda)
fi
cargo build --release --locked ${features:+--features "$(IFS=,; echo "${features[*]}")"}
"${CARGO_TARGET_DIR:-target}/release/cnse" --version
