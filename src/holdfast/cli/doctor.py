"""`holdfast doctor`: what this kernel and this installation offer, and trees that nobody holds."""

from __future__ import annotations

import json
import os
import sys

import click

import holdfast

from .target import BAD_CONFIG, fail

MEANING = {
    "lost": "has no keeper any more",
    "unreachable": "its keeper lives, but its socket is gone",
    "waiting": "waits for the next `holdfast up`",
}


@click.command(short_help="Show what this kernel offers, and trees that nobody holds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--stop", is_flag=True, help="Kill the trees that nobody can hold any more, without asking.")
@click.option("-c", "--config", metavar="FILE", help="Trees of this configuration's run directory alone.")
@click.option("--run-dir", metavar="DIR", help="Trees of this run directory alone.")
def doctor(as_json: bool, stop: bool, config: str | None, run_dir: str | None) -> None:
    """Show what this kernel and this installation offer, by trying it, and trees of services that nobody holds."""
    from holdfast.daemon.unheld import WAITING, end, find
    from holdfast.process.probe import examine, means

    findings = examine()
    uses = means(findings)
    limits = _limits()
    trees = find(_run_dir(config, run_dir), alone=config is not None or run_dir is not None)
    stray = [tree for tree in trees if tree.state != WAITING]
    healthy = all(f.available for f in findings if f.name in ("keeper", "pidfd", "P_PIDFD", "subreaper"))
    left: dict[tuple[str, str, int], int] = {}
    if as_json:
        document: dict[str, object] = {
            "version": holdfast.__version__,
            "kernel": os.uname().release,
            "machine": os.uname().machine,
            "healthy": healthy,
            "findings": [f.as_dict() for f in findings],
            "means": uses,
            "resources": limits,
            "trees": [
                {
                    "run_dir": tree.run_dir,
                    "service": tree.service,
                    "incarnation": tree.incarnation,
                    "state": tree.state,
                    "keeper": tree.keeper,
                    "processes": [{"pid": pid, "name": name} for pid, name in tree.processes],
                }
                for tree in trees
            ],
        }
        if stop:
            left = end(stray)
            document["left"] = sum(left.values())
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(f"holdfast {holdfast.__version__} on Linux {os.uname().release} ({os.uname().machine})\n")
        for f in findings:
            mark = click.style("yes", fg="green") if f.available else click.style("no ", fg="red")
            click.echo(f"  {mark}  {f.name:<20} {f.detail}")
            if not f.available:
                click.echo(f"       {'':<20} without it: {f.without}")
        click.echo("\nIn use:")
        for what, how in uses.items():
            click.echo(f"  {what:<15} {how}")
        click.echo("\nLimits of services (`resources`), for a supervisor that is started here:")
        for what, how in limits.items():
            click.echo(f"  {what:<15} {how}")
        click.echo("\nEverything needed is there." if healthy else "\nSomething needed is missing: see above.")
        if trees:
            click.echo("\nTrees that nobody holds:")
        for tree in trees:
            pids = ", ".join(f"{name} {pid}" for pid, name in tree.processes[:5])
            more = f" and {len(tree.processes) - 5} more" if len(tree.processes) > 5 else ""
            click.echo(f"  {tree.service}@{tree.incarnation:<4} {MEANING[tree.state]} [{tree.run_dir}]: {pids}{more}")
        if stray and not stop and sys.stdin.isatty() and sys.stdout.isatty():
            stop = click.confirm(f"\nKill those that nobody can hold any more ({len(stray)})?", default=False)
        elif stray and not stop:
            click.echo("`holdfast doctor --stop` kills those that nobody can hold any more.")
        if stop and stray:
            left = end(stray)
            outlived = sum(left.values())
            click.echo(f"Killed: {len(stray)}." + (f"  Processes that are left: {outlived}." if outlived else ""))
    sys.exit(0 if healthy and not any(left.values()) else 1)


def _limits() -> dict[str, str]:
    """How each of `resources` would be held, or why not."""
    from holdfast.daemon.cgroup_files import LIMITS
    from holdfast.daemon.cgroups import find

    ground = find(f"doctor-{os.getpid()}", lambda: {os.getpid()}, trial=True)
    return {
        name: f"cgroup v{ground.places[name]}" if name in ground.places else f"no: {ground.why[name]}"
        for name in LIMITS
    }


def _run_dir(config: str | None, run_dir: str | None) -> str:
    from holdfast.config.errors import ConfigError
    from holdfast.config.places import default_run_dir, run_dir_for

    try:
        return run_dir_for(config, run_dir, os.environ)
    except ConfigError as error:
        if config is not None:
            fail("\n".join(str(problem) for problem in error.errors), BAD_CONFIG)
        return default_run_dir(os.environ)  # a file that lies around here is not what was asked about
