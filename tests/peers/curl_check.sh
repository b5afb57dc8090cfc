#!/usr/bin/env bash
# Asks a gateway in front of a llama-server with curl, as people do from a shell.
#
#   tests/peers/curl_check.sh http://127.0.0.1:5050 KEY
set -euo pipefail
url=${1:?usage: curl_check.sh URL KEY}
key=${2:?usage: curl_check.sh URL KEY}
passed=0 failed=0

# check NAME PATTERN CURL-ARGUMENTS…: what curl prints must match the pattern (extended, over all lines).
check() {
    local name=$1 pattern=$2 answer
    shift 2
    answer=$(curl --silent --show-error --max-time 30 -H "Authorization: Bearer $key" "$@" 2>&1 | tr -d '\0') || true
    if printf '%s' "$answer" | tr '\r\n' '  ' | grep -Eq -- "$pattern"; then
        echo "ok    $name"
        passed=$((passed + 1))
    else
        printf 'FAIL  %s: %s\n' "$name" "${answer:0:400}"
        failed=$((failed + 1))
    fi
}

chat='{"messages":[{"role":"user","content":"way"}],"max_tokens":4}'
stream='{"prompt":"the way","n_predict":4,"stream":true}'
check "health needs no key" '"status":"ok"' -H "Authorization:" "$url/health"
check "a wrong key is 401" '^HTTP/1.1 401 .*invalid_api_key' -i -H "Authorization: Bearer no" "$url/v1/models"
check "models" '"id":"tiny"' "$url/v1/models"
check "chat" '"finish_reason":"length".*"completion_tokens":4' "$url/v1/chat/completions" -d "$chat"
check "a stream has no [DONE] on /completion" '"stop":true.*\} *$' --no-buffer "$url/completion" -d "$stream"
check "a stream on /v1 has" 'data: \[DONE\]' --no-buffer "$url/v1/completions" -d "${stream/n_predict/max_tokens}"
check "HTTP/1.0" '^HTTP/1.1 200 OK .*Connection: close' -i --http1.0 "$url/v1/completions" -d "${stream/n_predict/max_tokens}"
check "a body in chunks, after 100-continue" '"content":' -H 'Transfer-Encoding: chunked' -H 'Expect: 100-continue' \
    "$url/completion" -d '{"prompt":"the way","n_predict":2}'
check "HEAD" '^HTTP/1.1 200 OK' --head "$url/health"
check "a request's id comes back" 'X-Request-Id: abc' -i -H 'X-Request-Id: abc' "$url/tokenize" -d '{"content":"x"}'
check "bad JSON is 400" '^HTTP/1.1 400 .*invalid_request_error' -i "$url/v1/completions" -d '{'
check "an unknown path is 404" '^HTTP/1.1 404 .*not_found' -i "$url/v1/nope"
check "two requests on a connection" '"status":"ok".*"status":"ok"' "$url/health" "$url/health"
check "metrics" 'cnse_tokens_total [1-9]' "$url/metrics"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
