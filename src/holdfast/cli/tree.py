"""`holdfast tree`: the processes of a service, how each came to be, and what becomes of them."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .follow import lineage_from
from .target import columns, complete_names, duration, json_option, show_json, size, target

if TYPE_CHECKING:
    from holdfast.client import Client

HEAD = ["PROCESS", "STATE", "SESSION", "GROUP", "AGE", "CPU", "MEMORY", "CAME TO BE"]
LINES = ("├─ ", "│  ", "└─ ", "   ")  # to one of several children and beside its own; to the last, and beside its own
PLAIN = ("|- ", "|  ", "`- ", "   ")


@click.command(short_help="Show the processes of a service, and how each came to be.")
@click.argument("name", shell_complete=complete_names)
@click.option("-f", "--follow", is_flag=True, help="Go on with what becomes of them.")
@json_option
@target
def tree(client: Client, name: str, follow: bool, as_json: bool) -> None:
    """Show the processes of a service that live, as a tree: sessions, groups, times, memory, and how each came to be.

    By whom they were forked, and whose children adopted ones were, is known where its lineage is followed: while
    somebody does with -f, and always with `lineage = true`.
    """
    if not follow:
        _show(client.tree(name), as_json)
        return
    last = 0
    try:
        for record in lineage_from(client, name):
            if record["event"] == "source":  # it is followed from now on
                seen = client.tree(name)
                last = seen["last_record"]
                _show(seen, as_json)
            elif record["seq"] > last:
                click.echo(json.dumps(record) if as_json else _line(record))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough; what is flushed at the end must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)


def _show(seen: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(seen)
        return
    lines = LINES if (sys.stdout.encoding or "").lower().startswith("utf") else PLAIN
    rows = [HEAD]
    for each in seen["trees"]:
        rows.append([f"{seen['service']}@{each['incarnation']} (keeper {each['keeper']})", *[""] * (len(HEAD) - 1)])
        rows += _rows(each["processes"], each["keeper"], lines)
    shown = columns(rows, right=frozenset({2, 3, 5, 6}))
    click.echo(click.style(shown[0], bold=True))
    for line in shown[1:]:
        click.echo(line)
    if not seen["trees"]:
        click.echo(f"{seen['service']}: nothing of it runs")
    told = f"as its keeper knows it: {seen['why']}" if seen["why"] else "as the kernel's proc connector tells it"
    lost = f"; {seen['lost']} messages were lost, and looked up" if seen["lost"] else ""
    click.echo(f"\nHow they came to be, {told}{lost}.")


def _rows(processes: list[dict[str, Any]], keeper: int, lines: tuple[str, ...]) -> list[list[str]]:
    children: dict[int, list[dict[str, Any]]] = {}
    for each in processes:
        children.setdefault(each["parent"], []).append(each)

    def below(pid: int, before: str) -> list[tuple[dict[str, Any], str, int]]:
        """Those to be drawn next, in the order of a stack."""
        found = children.get(pid, [])
        return [(each, before, 2 * (each is found[-1])) for each in reversed(found)]

    rows: list[list[str]] = []
    stack = below(keeper, "")  # no recursion: a tree may be as deep as it likes
    while stack:
        each, before, kind = stack.pop()
        rows.append([before + lines[kind] + _name(each), *_facts(each)])
        stack += below(each["pid"], before + lines[kind + 1])
    return rows


def _name(each: dict[str, Any]) -> str:
    text = f"{each['pid']} {_printable(each['name'])}"
    return click.style(text, bold=True) if each["main"] else text


def _facts(each: dict[str, Any]) -> list[str]:
    return [
        each["state"],
        str(each["session"]),
        str(each["group"]),
        duration(max(0.0, time.time() - each["started_at"])),
        f"{each['cpu_seconds']:.1f}s",
        size(each["memory_bytes"]),
        _came(each),
    ]


def _came(each: dict[str, Any]) -> str:
    """How, from whom, when."""
    text: str = each["how"]
    if text == "adopted":
        text += f" from {each['by']}" if each["by"] else ""
    elif text == "forked":
        text += f" by {each['by']}"
    if each["at"]:
        text += time.strftime(" at %H:%M:%S", time.localtime(each["at"]))
    times = each["executed"] or 0
    return text + (f", executed {times} programs" if times > 1 else "")


def _line(record: dict[str, Any]) -> str:
    stamp = time.strftime("%H:%M:%S", time.localtime(record["time"])) + f".{int(record['time'] % 1 * 1000):03d}"
    who = f"{record['pid']} {_printable(record['name'])}" if record["pid"] else ""
    return f"{stamp}  {who:<24} {record['event']:<9} {_printable(record['text'])}".rstrip()


def _printable(text: str) -> str:
    """Processes choose their names; none shall write on our terminal what it likes."""
    return "".join(each if each.isprintable() else "?" for each in text)
