#!/bin/sh
# What `make run` shows: the supervisor on the services of this folder, in the foreground.
holdfast=$1
case $holdfast in /*) ;; *) holdfast=$PWD/$holdfast ;; esac
cd "$(dirname "$0")" || exit 1
bold=$(printf '\033[1m') plain=$(printf '\033[0m')
[ -t 1 ] || bold='' plain=''
cat <<TEXT
${bold}holdfast up${plain} starts the five services of examples/holdfast.toml. In another terminal, from examples/:

  $holdfast status                 what runs, and what it takes
  $holdfast logs -f                what they write
  $holdfast events -f              what happens to them
  $holdfast restart worker         and stop, start, signal HUP web ...
  curl http://127.0.0.1:8017/      the service "web"

Then be unkind: kill -9 a service, its whole tree, or the supervisor itself (status shows the pids).
${bold}Ctrl-C${plain} stops everything in order.

TEXT
exec "$holdfast" up -c holdfast.toml
