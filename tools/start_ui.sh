#!/usr/bin/env bash
# Start the web UI in the background and wait until it answers: tools/start_ui.sh [options of python -m web]
# Settings come from the environment, see docs/web.md. PID file and log lie in $AI_TOOLKIT_DATA (default: data/).
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/ui_process.sh

python="${AI_TOOLKIT_PYTHON:-.venv/bin/python}"
[ -x "$python" ] || { echo "no Python at $python; build it with: make venv" >&2; exit 1; }
data="${AI_TOOLKIT_DATA:-data}"
port="${AI_TOOLKIT_PORT:-8675}"
host="${AI_TOOLKIT_HOST:-127.0.0.1}"
while [ $# -gt 0 ]; do
    case "$1" in
        --port) port="${2:?--port needs a number}"; shift 2 ;;
        --host) host="${2:?--host needs an address}"; shift 2 ;;
        *) echo "usage: tools/start_ui.sh [--host ADDRESS] [--port PORT]" >&2; exit 2 ;;
    esac
done
mkdir -p "$data"
pid_file="$data/web.pid"
log="$data/web.log"

if [ -s "$pid_file" ] && runs_web "$(cat "$pid_file")"; then
    echo "already running as process $(cat "$pid_file")"
    exit 0
fi

# Asked at the address it listens on; 0.0.0.0 and :: are reached at this machine's own.
case "$host" in 0.0.0.0) ask=127.0.0.1 ;; ::) ask="[::1]" ;; *:*) ask="[$host]" ;; *) ask="$host" ;; esac
# Else the answer of another server would be taken for this one's.
taken='import socket, sys
socket.create_connection((sys.argv[1].strip("[]"), int(sys.argv[2])), timeout=2)'
if "$python" -c "$taken" "$ask" "$port" >/dev/null 2>&1; then
    echo "port $port is in use by another program: stop it, or set AI_TOOLKIT_PORT" >&2
    exit 1
fi

nohup "$python" -m web --host "$host" --port "$port" >>"$log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$pid_file"

check='import sys, urllib.request as r
r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=2)'
for _ in $(seq 120); do
    if ! kill -0 "$pid" 2>/dev/null; then
        rm -f "$pid_file"
        echo "it ended at once; the end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    if "$python" -c "$check" "http://$ask:$port${AI_TOOLKIT_ROOT_PATH:-}/readyz" >/dev/null 2>&1; then
        echo "http://$ask:$port${AI_TOOLKIT_ROOT_PATH:-}/ (process $pid, log $log)"
        exit 0
    fi
    sleep 0.5
done
echo "process $pid runs but does not answer on port $port; see $log" >&2
exit 1
