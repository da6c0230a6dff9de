#!/usr/bin/env bash
# Stop the web UI that tools/start_ui.sh started. Jobs that run go on; the next start finds them again.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/ui_process.sh

pid_file="${AI_TOOLKIT_DATA:-data}/web.pid"
if [ ! -s "$pid_file" ]; then
    echo "not running (no $pid_file)"
    exit 0
fi
pid="$(cat "$pid_file")"
if ! runs_web "$pid"; then
    rm -f "$pid_file"
    echo "not running (process $pid is gone)"
    exit 0
fi
kill -TERM "$pid"
for _ in $(seq 60); do
    if ! kill -0 "$pid" 2>/dev/null; then
        rm -f "$pid_file"
        echo "stopped"
        exit 0
    fi
    sleep 0.25
done
kill -KILL "$pid" 2>/dev/null || true
rm -f "$pid_file"
echo "stopped (it did not end by itself)"
