"""What a process is and may do, as it sees it itself."""

from __future__ import annotations

import os
import subprocess

# For /bin/sh: `name: value` by lines.  What grep and cat have they have from the shell.
LOOK = """
grep -E '^(Uid|Gid|Groups|Umask|NoNewPrivs|Cap...|Cpus_allowed_list):' /proc/self/status
echo "oom_score_adj: $(cat /proc/self/oom_score_adj)"
echo "ioprio: $(ionice -p $$)"
echo "nice: $(nice)"
echo "nofile: $(ulimit -Sn) $(ulimit -Hn)"
echo "core: $(ulimit -Sc) $(ulimit -Hc)"
"""
ALL_CPUS = sorted(os.sched_getaffinity(0))
ONE_CPU = ALL_CPUS[-1]
NO_CPU = 8191


def parsed(text: str) -> dict[str, str]:
    """The lines of LOOK; where it has looked more than once, the last."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: " ".join(value.split()) for name, _, value in pairs}


def look(start, **options) -> dict[str, str]:
    """What a process has that is started so, by `holdfast.spawn` or another of its kind."""
    with start(["sh", "-c", LOOK], stdout=-1, **options) as process:
        seen = parsed(process.stdout.read().decode())
        assert process.wait(30).ok, (process.wait(), options)
    return seen


def own() -> dict[str, str]:
    """The same of this process, as far as the kernel shows it to it."""
    with open("/proc/self/status") as file:
        seen = parsed(file.read())
    with open("/proc/self/oom_score_adj") as file:
        seen["oom_score_adj"] = file.read().strip()
    done = subprocess.run(["ionice", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return {**seen, "ioprio": done.stdout.strip()}


def capabilities(seen: dict[str, str]) -> dict[str, int]:
    """The five sets, by "Inh", "Prm", "Eff", "Bnd", "Amb"."""
    return {name.removeprefix("Cap"): int(value, 16) for name, value in seen.items() if name.startswith("Cap")}
