#!/usr/bin/env bash
# Demonstrates the project: starts both servers, asks a question, streams an answer, asks many at once, stops both servers.
# Ports other than 8080 and 8081: EDGE_PORT=9080 CLOUD_PORT=9081 ./run_demo.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

edge_port=${EDGE_PORT:-8080}
cloud_port=${CLOUD_PORT:-8081}
export EDGECLOUD_EDGE__SERVER__PORT=$edge_port EDGECLOUD_CLOUD__SERVER__PORT=$cloud_port
export EDGECLOUD_COMMUNICATION__EDGE_ENDPOINT=http://localhost:$edge_port
export EDGECLOUD_COMMUNICATION__CLOUD_ENDPOINT=http://localhost:$cloud_port
log=logs/demo.log
servers=

bold='' plain=''
if [[ -t 1 ]]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

stop() {
    [[ -n $servers ]] || return 0
    say "stopping both servers"
    kill -TERM "$servers" 2>/dev/null || true
    wait "$servers" 2>/dev/null || true
    servers=
}
trap stop EXIT
trap 'exit 130' INT TERM

[[ -e .venv/.ready ]] || { say "setting up; this takes some minutes, once"; make setup; }
python=.venv/bin/python

for port in "$edge_port" "$cloud_port"; do
    if (: <"/dev/tcp/localhost/$port") 2>/dev/null; then
        echo "error: port $port is in use; try EDGE_PORT=9080 CLOUD_PORT=9081 $0" >&2
        exit 1
    fi
done

say "starting the cloud (vLLM) on :$cloud_port and the edge (llama.cpp) on :$edge_port; log: $log"
mkdir -p logs
"$python" main.py --mode server >"$log" 2>&1 &
servers=$!
until curl -sf "localhost:$cloud_port/ready" >/dev/null && curl -sf "localhost:$edge_port/ready" >/dev/null; do
    if ! kill -0 "$servers" 2>/dev/null; then
        grep -m 1 '^error: ' "$log" >&2 || tail -n 1 "$log" >&2
        exit 1
    fi
    sleep 0.5
done

say "one question: the edge keeps confident tokens, the cloud verifies the others"
"$python" main.py --mode client --prompt "What is artificial intelligence?" --temperature 0

say "lossless and streamed: the cloud verifies every token"
"$python" examples/streaming.py

say "many questions at once"
"$python" examples/batch.py

say "next, the effect of each part: python ablation_experiments.py"
