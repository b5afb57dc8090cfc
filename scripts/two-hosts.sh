#!/usr/bin/env bash
# Two hosts on one machine: two network namespaces with an address and a host name each, a cable between them, a real
# llama-server in each, and mpirun over both. Shows that ranks take work from their own host first, and that each host's
# server is asked by its own ranks.
#
#   scripts/two-hosts.sh [WHICH]      debian, ompi5 or mpich, as scripts/mpi.sh builds cnse with them (debian)
#
# LLAMA_FLAGS   more flags for llama-server
#
# It works as root only, since it makes namespaces; it needs ip (iproute2) and unshare (util-linux). All of it is taken
# away again, whatever happens. mpirun reaches the second host through a few lines of shell in place of ssh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'two-hosts.sh: error: %s\n' "$*" >&2; exit 1; }

which=${1:-debian}
case $which in
    debian | ompi5 | mpich) ;;
    *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || die "this works as root only, since it makes network namespaces; run it with sudo, or in a container"
for tool in ip unshare python3 curl; do
    command -v "$tool" >/dev/null || die "$tool is missing; install it (Debian, Ubuntu: apt-get install iproute2 util-linux python3 curl)"
done
llama=$(scripts/llama-server.sh)
models=$(scripts/llama-server.sh models)
# The host's python: the environment below puts another one first.
python=$(command -v python3)
exports=$(scripts/mpi.sh env "$which")
eval "$exports"
cargo build --release --locked --quiet --features mpi
cnse=$CARGO_TARGET_DIR/release/cnse

work=$(mktemp -d)
net=10.231.$((RANDOM % 200)) tag=cnse$$
servers=
finish() {
    # shellcheck disable=SC2086
    [ -z "$servers" ] || { kill -9 $servers 2>/dev/null || true; wait $servers 2>/dev/null || true; }
    local host pids
    for host in 1 2; do
        pids=$(ip netns pids "$tag-$host" 2>/dev/null) || continue
        # shellcheck disable=SC2086
        [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
        ip netns delete "$tag-$host" || true
    done
    rm -rf "$work"
}
trap finish EXIT

for host in 1 2; do
    ip netns add "$tag-$host"
    ip -n "$tag-$host" link set lo up
done
ip -n "$tag-1" link add cable type veth peer name cable netns "$tag-2"
for host in 1 2; do
    ip -n "$tag-$host" address add "$net.$host/24" dev cable
    ip -n "$tag-$host" link set cable up
done

# Runs a command on a host: `on 1 COMMAND…`. The hosts share no memory either.
cat >"$work/on" <<ON
#!/bin/sh
host=\$1
shift
exec ip netns exec "$tag-\$host" unshare --uts --mount \\
    sh -c 'hostname "\$1" && mount -t tmpfs tmpfs /dev/shm && shift && exec "\$@"' - "host\$host" "\$@"
ON
# What mpirun calls instead of ssh: flags, the address, and a command line for a shell there.
cat >"$work/rsh" <<RSH
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\${1##*.}
shift
exec "$work/on" "\$host" sh -c "\$*"
RSH
chmod +x "$work/on" "$work/rsh"
on() { "$work/on" "$@"; }

for host in 1 2; do
    # shellcheck disable=SC2086
    on "$host" "$llama" -m "$models/tiny.gguf" --alias tiny -t 1 -c 4096 -np 4 --cache-ram 0 --offline --host "$net.$host" \
        --port 8090 ${LLAMA_FLAGS-} >"$work/llama-$host" 2>&1 &
    servers+=" $!"
done
for host in 1 2; do
    for _ in $(seq 300); do
        ! on "$host" curl --silent --fail --output /dev/null "http://$net.$host:8090/health" || continue 2
        sleep 0.1
    done
    tail -n 20 "$work/llama-$host" >&2
    die "the llama-server of host $host did not start; what it said is above"
done

case $which in
    mpich) mpirun=(mpirun -launcher rsh -launcher-exec "$work/rsh" -hosts "$net.1:4,$net.2:4") ;;
    debian) mpirun=(mpirun --mca plm_rsh_agent "$work/rsh" --mca oob_tcp_if_include "$net.0/24" --mca btl_tcp_if_include "$net.0/24"
        --oversubscribe --bind-to none -H "$net.1:4,$net.2:4") ;;
    # It says ssh where Open MPI 4 said rsh; the daemons' flags begin with prte.
    ompi5) mpirun=(mpirun --prtemca plm_ssh_agent "$work/rsh" --prtemca prte_if_include "$net.0/24" --mca btl_tcp_if_include "$net.0/24"
        --oversubscribe --bind-to none -H "$net.1:4,$net.2:4") ;;
esac
schedule() { # NAME FLAGS…
    local name=$1
    shift
    timeout 300 "$work/on" 1 "${mpirun[@]}" -np 8 "$cnse" schedule "$@" --json --quiet >"$work/$name.json" 2>"$work/$name.log" ||
        { tail -n 30 "$work/$name.log" >&2; die "cnse schedule $* failed; what it said is above"; }
}

echo "== hosts $net.1 and $net.2, 4 ranks each, $("$cnse" --version | tr '\n' ' ')"
schedule steals --simulate exponential:20ms --iters 4000 --inflight 4 --skew all-on-one
schedule own --prompt "What is AI?" --iters 400 --n-predict 16 --inflight 1 --server "http://$net.1:8090,http://$net.2:8090"
schedule far --prompt "What is AI?" --iters 100 --n-predict 16 --inflight 1 --server "http://$net.2:8090"

"$python" - "$work" "$net" <<'PY'
import json, sys
work, net = sys.argv[1:]
failed = 0
def check(name, right, found):
    global failed
    failed += not right
    print(f"{'ok' if right else 'FAILED'}: {name}: {found}")
def load(name):
    return json.loads(open(f"{work}/{name}.json").read())

report = load("steals")
print("\n4000 sleeps of 20 ms in the mean, all of which begin on rank 0")
print(f"{'rank':>4} {'node':<8} {'done':>5} {'asked':>6} {'given':>6} {'by its own host':>16}")
for rank in report["ranks"]:
    steals = rank["steals"]
    print(f"{rank['rank']:>4} {rank['node']:<8} {rank['ok']:>5} {steals['tried']:>6} {steals['won']:>6} {steals['own_node']:>16}")
check("nodes", sorted({r["node"] for r in report["ranks"]}) == ["host1", "host2"], sorted({r["node"] for r in report["ranks"]}))
check("done", report["ok"] == 4000, report["ok"])
print(f"efficiency {report['efficiency']:.3f}")
steals = report["steals"]
# Of 7 other ranks 3 are on the own host: whoever asked at random would be given 3 / 7 of it there.
share = steals["own_node"] / steals["won"]
check("work taken from the own host", share > 0.55, f"{steals['own_node']} of {steals['won']} times, {share:.0%} (at random 43 %)")

for name, servers in (("own", 2), ("far", 1)):
    report = load(name)
    print(f"\n{report['ok']} prompts, " + ("a server on each host" if servers == 2 else "one server, on host2"))
    own = other = 0
    for rank in report["ranks"]:
        asked = {server: counts["ok"] for server, counts in rank["servers"].items()}
        print(f"{rank['rank']:>4} {rank['node']:<8} {asked}")
        for server, count in asked.items():
            if f"{net}.{rank['node'][-1]}:" in server:
                own += count
            else:
                other += count
    if servers == 2:
        check("prompts that the own host's server answered", own / (own + other) > 0.9, f"{own} of {own + other}")
    else:
        check("prompts done all the same", report["ok"] == 100 and report["errors"] == 0, f"{own} by its own host's ranks, {other} by the other's")
sys.exit(failed != 0)
PY
