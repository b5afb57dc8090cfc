#!/usr/bin/env bash
# What a request and a token cost in CPU time of the gateway: cnse, HAProxy and nginx in front of the same stub, in turn.
# The gateway has core 0 for itself, the stub (cnse's built-in backend) and the load share core 1. Prints every round,
# then medians and ratios to HAProxy.
#
#   scripts/compare_relay.sh [ROUNDS]     5 by default; needs haproxy, nginx and wrk (apt-get install haproxy nginx wrk)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
rounds=${1:-5}
cnse=target/release/cnse
[ -x "$cnse" ] || scripts/build.sh >&2
for tool in haproxy nginx wrk taskset; do
    command -v "$tool" >/dev/null || { echo "compare_relay.sh: error: $tool is missing (apt-get install haproxy nginx wrk util-linux)" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT

cat >"$work/haproxy.cfg" <<CFG
global
    nbthread 1
    maxconn 4000
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    option http-no-delay
    http-reuse always
frontend plain
    bind 127.0.0.1:5192
    default_backend plain
backend plain
    server stub 127.0.0.1:5190
frontend paced
    bind 127.0.0.1:5292
    default_backend paced
backend paced
    server stub 127.0.0.1:5290
CFG
cat >"$work/nginx.conf" <<CFG
daemon off;
master_process off;
worker_processes 1;
pid $work/nginx.pid;
error_log $work/nginx.log;
events { worker_connections 8000; }
http {
    access_log off;
    keepalive_requests 1000000;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    client_body_temp_path $work/body;
    proxy_temp_path $work/proxy;
    fastcgi_temp_path $work/fastcgi;
    uwsgi_temp_path $work/uwsgi;
    scgi_temp_path $work/scgi;
    upstream plain { server 127.0.0.1:5190; keepalive 2048; keepalive_requests 1000000; }
    upstream paced { server 127.0.0.1:5290; keepalive 2048; keepalive_requests 1000000; }
    server { listen 127.0.0.1:5193; location / { proxy_pass http://plain; } }
    server { listen 127.0.0.1:5293; location / { proxy_pass http://paced; } }
}
CFG
cat >"$work/post.lua" <<'LUA'
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"built-in","messages":[{"role":"user","content":"What is the time of day?"}],"max_tokens":8}'
LUA

# What a peer said is shown if it does not start.
run() { taskset -c "$1" "${@:2}" >>"$work/log" 2>&1 & }
serve() { run "$1" "$cnse" serve --threads 1 --no-pin --log warn "${@:2}"; }
serve 1 --port 5190 --sim-model words
serve 1 --port 5290 --sim-model words --sim-itl lognormal:10ms,0.3
serve 0 --port 5191 --openai-url http://127.0.0.1:5190; cnse_plain=$!
serve 0 --port 5291 --openai-url http://127.0.0.1:5290; cnse_paced=$!
run 0 haproxy -f "$work/haproxy.cfg"; haproxy=$!
run 0 nginx -p "$work" -c "$work/nginx.conf"; nginx=$!
sleep 1.5
for pid in "$cnse_plain" "$cnse_paced" "$haproxy" "$nginx"; do
    kill -0 "$pid" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
done

# CPU time of a process, all threads, in ns.
cpu() { cat /proc/"$1"/task/*/schedstat | awk '{ sum += $1 } END { print sum }'; }
# Microseconds of CPU a request: plain NAME PID PORT
plain() {
    local before after requests
    before=$(cpu "$2")
    requests=$(taskset -c 1 wrk -t 1 -c 64 -d 3s -s "$work/post.lua" "http://127.0.0.1:$3/v1/chat/completions" |
        tee "$work/wrk" | awk '/requests in/ { print $1 }')
    after=$(cpu "$2")
    if grep -q 'Non-2xx' "$work/wrk"; then echo "compare_relay.sh: error: $1 gave errors: $(cat "$work/wrk")" >&2; exit 1; fi
    awk "BEGIN { printf \"%.2f %.0f\n\", ($after - $before) / $requests / 1000, $requests / 3 }"
}
# Microseconds of CPU a token, at 100 streams of about 100 tokens a second each, out of step with each other.
paced() {
    local before after tokens
    before=$(cpu "$2")
    tokens=$(taskset -c 1 "$cnse" client --server "http://127.0.0.1:$3" --prompt "What is AI?" --iters 300 \
        --concurrency 100 --n_predict 100 --json | sed -E 's/.*"tokens":([0-9]+).*/\1/')
    after=$(cpu "$2")
    [ "$tokens" = 30000 ] || { echo "compare_relay.sh: error: $1 passed on $tokens of 30000 tokens" >&2; exit 1; }
    awk "BEGIN { printf \"%.2f\n\", ($after - $before) / $tokens / 1000 }"
}
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

for round in $(seq "$rounds"); do
    for peer in "cnse $cnse_plain 5191 $cnse_paced 5291" "haproxy $haproxy 5192 $haproxy 5292" "nginx $nginx 5193 $nginx 5293"; do
        read -r name plain_pid plain_port paced_pid paced_port <<<"$peer"
        read -r request rate <<<"$(plain "$name" "$plain_pid" "$plain_port")"
        token=$(paced "$name" "$paced_pid" "$paced_port")
        echo "$request" >>"$work/$name.request"
        echo "$token" >>"$work/$name.token"
        echo "round $round: $name $request us a request ($rate requests/s), $token us a token"
    done
done
for name in cnse haproxy nginx; do
    request=$(median "$work/$name.request") token=$(median "$work/$name.token")
    awk "BEGIN { printf \"%-8s median %6.2f us a request (%.2f of HAProxy), %6.2f us a token (%.2f of HAProxy)\n\", \"$name\", \
        $request, $request / $(median "$work/haproxy.request"), $token, $token / $(median "$work/haproxy.token") }"
done
