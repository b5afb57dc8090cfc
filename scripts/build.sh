#!/usr/bin/env bash
# Builds cnse with what this machine has, and says what is in.
#
#   scripts/build.sh        the binary is target/release/cnse
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
cargo build --release --locked
target/release/cnse --version
