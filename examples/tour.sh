#!/bin/sh
# A short guided run of `holdfast run` on real commands: what `make run` shows.
holdfast=$1
step() { printf '\n\033[1m%s\033[0m\n' "$1"; }
show() { printf '  $ %s\n' "$*"; }

step "1. A command runs as if holdfast were not there; its exit code is passed on."
show "holdfast run -- sh -c 'echo hello; exit 7'"
"$holdfast" run -- sh -c 'echo hello; exit 7'
echo "  exit code: $?"

step "2. A time limit. The command ignores TERM, and a part of it has daemonized; nothing is left."
show "holdfast run --timeout 1s --grace 1s -- sh -c '(setsid sleep 99 &); trap \"\" TERM; sleep 99'"
"$holdfast" run --timeout 1s --grace 1s -- sh -c '(setsid sleep 99 &); trap "" TERM; sleep 99'
echo "  exit code: $? (124: timed out)"

step "3. The command ends, what it left behind is stopped, and the report says so."
show "holdfast run --report -- sh -c 'sleep 99 & setsid sleep 98 & sleep 0.2'"
"$holdfast" run --report -- sh -c 'sleep 99 & setsid sleep 98 & sleep 0.2'

step "4. The same for programs: the whole report as JSON."
show "holdfast run --report-json report.json -- sh -c 'sleep 99 & exit 3'"
report=$(mktemp)
"$holdfast" run --report-json "$report" -- sh -c 'sleep 99 & exit 3'
cat "$report"
rm -f "$report"

step "5. What this machine offers."
show "holdfast doctor"
"$holdfast" doctor
