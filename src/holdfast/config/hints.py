"""Words that are not ours: keys of later versions, and what other supervisors call the things we have."""

from __future__ import annotations

# Keys that are designed and not built.  key -> what to do meanwhile ("": nothing comes near).
LATER = {
    "capabilities": "",
    "cpu_affinity": "taskset in the command does it",
    "env_file": "env, or ${VAR}",
    "extra_groups": "the user's own groups are set",
    "fds": "",
    "health": "",
    "ioprio": "ionice in the command does it",
    "main": "",
    "no_new_privs": "setpriv --no-new-privs in the command does it",
    "oom_score_adj": "choom in the command does it",
    "post_stop": "",
    "pre_start": 'a service of type "oneshot" that this one requires',
    "pty": "",
    "ready": 'type = "notify" is',
    "ready_timeout": "",
    "reload_command": "`holdfast signal NAME HUP` asks most programs to reload",
    "replicas": "one table for each",
    "resources": "rlimits are",
    "schedule": "",
    "stdin": "it is /dev/null",
    "watchdog": "",
}

# Tables of the file that are not built.
TABLES = {
    "defaults": "give the keys in each service",
    "group": "",
    "include": "",
    "api": "",
    "web": "",
}

# What others call it (supervisord, systemd, compose, pm2, circus) -> what we call it.
OTHER_WORDS = {
    "args": "command",
    "autorestart": "restart",
    "cmd": "command",
    "cwd_dir": "cwd",
    "depends_on": "requires",
    "directory": "cwd",
    "dir": "cwd",
    "entrypoint": "command",
    "environment": "env",
    "exec": "command",
    "execstart": "command",
    "exitcodes": "success_exit_codes",
    "gid": "group",
    "killsignal": "stop_signal",
    "kill_signal": "stop_signal",
    "limits": "rlimits",
    "needs": "requires",
    "priority": "after",
    "process": "service",
    "processes": "service",
    "program": "service",
    "programs": "service",
    "restart_policy": "restart",
    "services": "service",
    "startretries": "start_limit",
    "stop_grace_period": "grace",
    "stop_timeout": "grace",
    "stopsignal": "stop_signal",
    "stopwaitsecs": "grace",
    "successexitstatus": "success_exit_codes",
    "timeout": "grace",
    "timeoutstopsec": "grace",
    "uid": "user",
    "wants": "after",
    "watcher": "service",
    "workdir": "cwd",
    "working_dir": "cwd",
    "workingdirectory": "cwd",
}
