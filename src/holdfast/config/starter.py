"""The file that `holdfast init` writes."""

from __future__ import annotations

STARTER = """\
#:schema ./holdfast.schema.json
# Services for `holdfast up`.  `holdfast check` says what is wrong with this file, and where.
# An editor can do so as you type: holdfast schema --draft4 >holdfast.schema.json
# Durations have a unit (500ms, 10s, 5m, 1h), sizes too (64KB, 16MiB).  ${VAR} and ${VAR:-default} are read from the
# environment in which the supervisor is started.  Relative paths begin at the directory of this file.

[supervisor]
# Here beside the file, so that several projects do not meet.  Without these lines: the places of the system.
run_dir = ".holdfast/run"
log_dir = ".holdfast/log"
state_dir = ".holdfast/state"

# Runs once, before those that require it.
[service.prepare]
type = "oneshot"
command = ["mkdir", "-p", ".holdfast/data"]

# Runs all the time.  A command is a list of words, or a string that is split into words; no shell reads it ...
[service.clock]
command = "tail -f /dev/null"
requires = ["prepare"]        # started with it, and before it; stopped after it
# cwd = "."                   # the directory of this file is the default
# env = { PORT = "${PORT:-8080}" }
# user = "www-data"           # as root only
# restart = "on-failure"      # always, on-abnormal, unless-stopped, never
# backoff = { first = "0s", then = "100ms", factor = 2, max = "60s", jitter = 0.1, reset_after = "1s" }
# start_limit = 10            # so many short lives in a row, and it is left alone: fatal
# stop_signal = "TERM"
# grace = "10s"               # then KILL
# essential = true            # when it ends, everything is stopped

# ... unless it is asked to.
[service.worker]
shell = true
command = "while :; do date; sleep 10; done"
after = ["clock"]             # the order alone
restart = "always"
log = { timestamps = true, rotate = { size = "1MiB", count = 4 } }
"""
