#!/usr/bin/env bash
# A Slurm of two nodes on this one machine, to try scripts/schedule.sbatch: Debian's packages, a configuration of its own,
# started by hand in a private folder and taken away again. Each node is a slurmd with its own host name.
#
#   scripts/slurm-one.sh [--mpi WHICH]               the checks: a job on one node, one that is told to stop and goes on
#                                                    from the queue, and, with MPI, srun of each kind on both nodes
#   scripts/slurm-one.sh [--mpi WHICH] COMMAND…      runs COMMAND while that Slurm is up (sbatch, srun, a shell…)
#
# --mpi    debian, ompi5 or mpich, as scripts/mpi.sh builds cnse with them (default: $CNSE, whatever it was built with)
# CNSE     the binary (default: target/release/cnse)
#
# Works as root only: it mounts a folder for each node, and installs slurmd, slurmctld, slurm-client and munge if they are
# not there. Nothing of it outlives the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'slurm-one.sh: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

[ "${1-}" != --help ] || { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit; }
[ "$(id -u)" = 0 ] || die "this works as root only; run it with sudo, or in a container"
if ! command -v slurmctld slurmd munged srun >/dev/null; then
    command -v apt-get >/dev/null || die "slurmd, slurmctld, srun or munged is missing; install Slurm and munge"
    say "Slurm is missing; installing it with apt-get"
    # They are started by hand below. Where systemd runs, the packages start theirs too; these do not meet.
    { apt-get update && apt-get install -y --no-install-recommends slurmd slurmctld slurm-client munge; } >&2 ||
        die "apt-get could not install slurmd slurmctld slurm-client munge; install them by hand"
fi
if [ "${1-}" = --mpi ]; then
    [ $# -ge 2 ] || die "--mpi needs a name: debian, ompi5 or mpich"
    exports=$(scripts/mpi.sh env "$2")
    eval "$exports"
    cargo build --release --locked --quiet --features mpi
    CNSE=$CARGO_TARGET_DIR/release/cnse
    [ "$2" != mpich ] || export CNSE_SRUN_MPI=pmi2
    shift 2
fi
export CNSE=${CNSE:-$PWD/target/release/cnse}
[ -x "$CNSE" ] || scripts/build.sh >&2
job=$PWD/scripts/schedule.sbatch

work=$(mktemp -d)
# munge wants its socket where all can reach it.
chmod 755 "$work"
export SLURM_CONF=$work/slurm.conf
daemons=
finish() {
    scancel --full --user="$(id -un)" 2>/dev/null || true
    scontrol shutdown 2>/dev/null || true
    # shellcheck disable=SC2086
    [ -z "$daemons" ] || { sleep 1; kill $daemons 2>/dev/null || true; wait $daemons 2>/dev/null || true; }
    rm -rf "$work"
}
trap finish EXIT

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}

mkdir "$work"/{state,pmix,pmix-node1,pmix-node2,spool-node1,spool-node2}
(umask 077; head -c 1024 /dev/urandom >"$work/munge.key")
munged --foreground --socket="$work/munge.socket" --key-file="$work/munge.key" --pid-file="$work/munged.pid" \
    --seed-file="$work/munge.seed" --log-file="$work/munged.log" >"$work/munged.out" 2>&1 &
daemons=$!

# Slots are what is shared out here, not cores: four for each node, however many cores there are (config_overrides).
# MaxTime is in minutes, OverTimeLimit 0: a job is killed when its time is over, as on a cluster.
host=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=4
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
# PMIx keeps a folder of the same name for a step on every node; here each node has its own under that name.
echo "PMIxCliTmpDirBase=$work/pmix" >"$work/mpi.conf"

slurmctld -D >"$work/slurmctld.log" 2>&1 &
daemons+=" $!"
for node in node1 node2; do
    # shellcheck disable=SC2016
    unshare --mount --uts sh -c 'mount --bind "$1/pmix-$2" "$1/pmix" && mount -t tmpfs tmpfs /dev/shm && hostname "$2" && exec slurmd -D -N "$2"' \
        - "$work" "$node" >"$work/$node.log" 2>&1 &
    daemons+=" $!"
done
for _ in $(seq 100); do
    [ "$(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)" = 2 ] && break
    sleep 0.2
done
[ "$(sinfo --noheader --Node --states=idle | wc -l)" = 2 ] || { tail -n 20 "$work"/*.log >&2; die "Slurm did not come up; its logs are above"; }

if [ $# -gt 0 ]; then
    status=0
    "$@" || status=$?
    exit "$status"
fi

cd "$work"
failed=0
check() {
    if [ "$2" = "$3" ]; then echo "ok: $1: $3"; else echo "FAILED: $1: $3, not $2"; failed=1; fi
}
state() { scontrol show job "$1" | sed -nE "s/.*\b$2=([^ ]*).*/\1/p" | head -n 1; }
ended() {
    for _ in $(seq "$2"); do
        case $(state "$1" JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL) return ;; esac
        sleep 0.5
    done
    scontrol show job "$1"
    die "job $1 does not end; its output: $(cat "cnse-$1.out")"
}

echo "== a job on one node"
id=$(sbatch --parsable -N 1 -n 4 "$job" --simulate fixed:5ms --iters 800 --inflight 4 --quiet)
ended "$id" 120
cat "cnse-$id.out"
check "state" COMPLETED "$(state "$id" JobState)"
check "tasks done" 800 "$(sed -nE 's/^([0-9]+) done, 0 failed/\1/p' "cnse-$id.out")"

echo "== a job that Slurm tells to stop, and that goes on from the queue"
"$CNSE" serve --port 0 --no-pin --sim-model words --sim-slots 8 --sim-ttft 20ms --sim-itl 5ms >serve.log 2>&1 &
daemons+=" $!"
port=
for _ in $(seq 100); do
    port=$(sed -n 's/.*listening on [^ ]*:\([0-9]*\) .*/\1/p' serve.log)
    [ -z "$port" ] || break
    sleep 0.05
done
[ -n "$port" ] || die "cnse serve did not start: $(cat serve.log)"
for row in $(seq 300); do
    printf '{"custom_id":"%s","method":"POST","url":"/v1/chat/completions","body":{"model":"built-in","max_tokens":16,"messages":[{"role":"user","content":"row %s"}]}}\n' "$row" "$row"
done >rows.jsonl
id=$(sbatch --parsable -N 1 -n 2 "$job" --input rows.jsonl --output results.jsonl --server "http://127.0.0.1:$port" --inflight 4 --quiet)
for _ in $(seq 200); do
    [ "$(cat results.jsonl.parts/part* 2>/dev/null | wc -l)" -lt 20 ] || break
    sleep 0.1
done
# What --signal=B:USR1@120 does two minutes before the limit.
scancel --batch --signal=USR1 "$id"
for _ in $(seq 80); do [ "$(state "$id" Restarts)" != 1 ] || break; sleep 0.25; done
check "starts again" 1 "$(state "$id" Restarts)"
# A job that was put back waits a while; here it need not.
scontrol update JobId="$id" StartTime=now
ended "$id" 240
cat "cnse-$id.out"
check "state" COMPLETED "$(state "$id" JobState)"
check "custom_ids in the output" 300 "$(grep -o '"custom_id":"[0-9]*"' results.jsonl | sort -u | wc -l)"
check "lines in the output" 300 "$(wc -l <results.jsonl)"
check "parts of the work" 2 "$(sed -nE 's/^([1-9][0-9]*) done, 0 failed.*/\1/p' "cnse-$id.out" | wc -l)"

if ! "$CNSE" --version | grep -q '^features:.*\<mpi\>'; then
    echo "== srun starts a build without MPI on two tasks"
    srun -N 2 -n 2 "$CNSE" schedule --simulate fixed:5ms --iters 8 --quiet && status=0 || status=$?
    check "exit code" 1 "$status"
else
    works=${CNSE_SRUN_MPI:-pmix}
    echo "== a job on both nodes"
    id=$(sbatch --parsable -N 2 -n 4 "$job" --simulate fixed:5ms --iters 1600 --inflight 4 --skew all-on-one --quiet)
    ended "$id" 120
    cat "cnse-$id.out"
    check "state" COMPLETED "$(state "$id" JobState)"
    check "nodes in the report" "node1 node2" "$(awk '$1 ~ /^[0-9]+$/ && $2 ~ /^node/ { print $2 }' "cnse-$id.out" | sort -u | xargs)"
    for mpi in pmix pmi2 none; do
        echo "== srun --mpi=$mpi"
        srun --mpi="$mpi" -N 2 -n 4 "$CNSE" schedule --simulate fixed:5ms --iters 400 --inflight 4 --quiet >srun.out 2>&1 &&
            status=0 || status=$?
        head -n 12 srun.out
        echo "exit code $status"
        if [ "$mpi" = "$works" ]; then
            check "exit code" 0 "$status"
            check "tasks done" 400 "$(sed -nE 's/^([0-9]+) done, 0 failed/\1/p' srun.out)"
        else
            check "refuses" yes "$([ "$status" = 0 ] && echo no || echo yes)"
            check "does not do the work several times" 0 "$(grep -c '400 done' srun.out)"
        fi
    done
fi
[ "$failed" = 0 ]
