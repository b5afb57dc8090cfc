#!/usr/bin/env bash
# cnse's commands with a card beside the same without one: tokens of the built-in model, embeddings of `serve --post` and
# `schedule --post`, and `search`. Prints the rates, what /metrics and a bench's result say of the card, and fails where
# an answer differs.
#
#   scripts/gpu_serve.sh CNSE [DEVICE]      the binary, and the card (cuda:0)
set -euo pipefail
cnse=$1 device=${2:-cuda:0}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

start() { # NAME FLAG…: sets `port`
    local name=$1
    shift
    "$cnse" serve --port 0 --threads 2 --post normalize,truncate=512,quantize=int8 "$@" 2>"$work/$name.log" &
    for _ in $(seq 200); do
        port=$(sed -nE 's/.*listening on [^ ]*:([0-9]+) .*/\1/p' "$work/$name.log")
        [ -z "$port" ] || return 0
        sleep 0.05
    done
    echo "cnse serve did not start:" && cat "$work/$name.log" && exit 1
}
get() { # PORT PATH
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf 'GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n' "$2" >&3
    cat <&3
    exec 3>&-
}
same() { # WHAT FILE FILE
    cmp "$2" "$3" || { echo "$1: DIFFERS"; exit 1; }
    echo "$1: the same"
}

start cpu --device cpu && cpu=$port
start card --device "$device" && card=$port
# Until the card is open the CPU draws; then both are asked, and must say the same.
for _ in $(seq 100); do
    "$cnse" client --server 127.0.0.1 --port "$card" --prompt warm --n-predict 4 >/dev/null 2>&1
    ! get "$card" /metrics | grep -E '^cnse_gpu_kernel_seconds_total.* 0*[.]*0*[1-9]' >/dev/null || break
    sleep 0.05
done
for seed in 1 2 3 4; do
    for port in "$cpu" "$card"; do
        "$cnse" client --server 127.0.0.1 --port "$port" --prompt "Tell me of the river" --n-predict 200 --seed "$seed" \
            --top-k 50 --top-p 0.9 --repeat-penalty 1.1 2>/dev/null >>"$work/tokens.$port"
    done
done
same "tokens on the card and on the CPU" "$work/tokens.$cpu" "$work/tokens.$card"

# One request a turn, then many at once: these share batches.
for port in "$cpu" "$card"; do
    for concurrency in 1 64; do
        "$cnse" client --server 127.0.0.1 --port "$port" --prompt "What is AI?" --n-predict 64 --iters $((concurrency * 10)) \
            --concurrency "$concurrency" --json >"$work/client" 2>/dev/null
        rate=$(sed -nE 's/.*"tokens_per_s": ?([0-9.]+).*/\1/p' "$work/client" | head -n 1)
        [ "$port" = "$cpu" ] && on=cpu || on=$device
        printf '%-8s %3d at once: %s tokens/s\n' "$on" "$concurrency" "$rate"
    done
done

texts=$(for i in $(seq 128); do printf '"text %d of the city",' "$i"; done)
for i in $(seq 60); do
    printf '{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"input":["row %d",%s],"dimensions":1024}}\n' \
        "$i" "$i" "${texts%,}"
done >"$work/rows.jsonl"
for port in "$cpu" "$card"; do
    "$cnse" schedule --input "$work/rows.jsonl" --output "$work/served.$port.jsonl" --ordered --quiet \
        --server "http://127.0.0.1:$port" >/dev/null 2>&1
    grep -o '"data":\[.*\]' "$work/served.$port.jsonl" >"$work/data.$port"
done
same "serve --post on the card and on the CPU" "$work/data.$cpu" "$work/data.$card"

start plain --sim-model words && plain=$port
for on in cpu "$device"; do
    "$cnse" schedule --input "$work/rows.jsonl" --output "$work/out.$on.jsonl" --quiet --server "http://127.0.0.1:$plain" \
        --post normalize --matrix "$work/$on.npy" --device "$on" >/dev/null
done
same "schedule --post on the card and on the CPU" "$work/cpu.npy" "$work/$device.npy"
for on in cpu "$device"; do
    begun=$(date +%s%N)
    "$cnse" search --matrix "$work/cpu.npy" --query "$work/cpu.npy" --topk 5 --device "$on" >"$work/found.$on"
    printf '%-8s search of 7,740 rows by 7,740 queries: %d ms\n' "$on" $((($(date +%s%N) - begun) / 1000000))
done
same "search on the card and on the CPU" "$work/found.cpu" "$work/found.$device"

"$cnse" bench latency --server "http://127.0.0.1:$card" --iters 200 --concurrency 16 --n-predict 32 --json >"$work/bench" 2>/dev/null
tr -d '\n' <"$work/bench" | grep -oE '"gpu(s|_driver|_state|)": ?(\[[^]]*\]|\{[^}]*\}|"[^"]*")' || echo "the bench's result says nothing of a card"
get "$card" /metrics | grep -E '^cnse_gpu' || { echo "/metrics says nothing of a card" && exit 1; }
grep -c "the CPU does the card's work" "$work/card.log" && { cat "$work/card.log"; exit 1; } || true
