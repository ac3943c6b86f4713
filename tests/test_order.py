"""One real run of a hundred services that require each other at random: who starts when, and who stops."""

from __future__ import annotations

import random
import signal

from helpers_supervisor import Running
from helpers_trees import wait_for

SERVICES = 100
SIMPLE = """
trap 'echo "term $0" >> "$1"; sleep 0.0$2; echo "end $0" >> "$1"; exit 0' TERM
echo "start $0" >> "$1"
while :; do sleep 1000 & wait; done
"""
ONESHOT = 'echo "start $0" >> "$1"; sleep 0.0$2; echo "ready $0" >> "$1"'
NOTIFY = """
import os, signal, socket, sys, time
name, path, delay = sys.argv[1:]
def tell(word):
    with open(path, "a") as file:
        file.write(f"{word} {name}\\n")
def end(*_):
    tell("term"); tell("end"); os._exit(0)
signal.signal(signal.SIGTERM, end)
tell("start")
time.sleep(int(delay) / 100)
tell("ready")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.connect(os.environ["NOTIFY_SOCKET"])
    sock.send(b"READY=1")
while True:
    signal.pause()
"""


def graph(seed: int) -> dict[str, tuple[str, list[str], list[str]]]:
    """name -> kind, requires, after; without cycles, in an order of names that says nothing."""
    rng = random.Random(seed)
    names = [f"s{i:02}" for i in range(SERVICES)]
    rng.shuffle(names)
    services = {}
    for i, name in enumerate(names):
        before = names[max(0, i - 30) : i]
        picked = rng.sample(before, min(len(before), rng.choice([0, 1, 1, 2, 3])))
        kind = rng.choice(["simple", "simple", "simple", "oneshot", "oneshot", "notify"])
        split = rng.randint(0, len(picked))
        services[name] = (kind, picked[:split], picked[split:])
    return services


def test_a_hundred_services_start_and_stop_in_order(tmp_path):
    rng = random.Random(7)
    services = graph(7)
    track = tmp_path / "track"
    track.touch()
    (tmp_path / "notify.py").write_text(NOTIFY)
    text = ""
    for name in sorted(services):
        kind, requires, after = services[name]
        script = {"simple": SIMPLE, "oneshot": ONESHOT}.get(kind)
        delay = rng.randint(1, 9)
        if script:
            command = ["sh", "-c", script, name, str(track), str(delay)]
        else:
            command = ["python3", str(tmp_path / "notify.py"), name, str(track), str(delay)]
        text += f"[service.{name}]\ntype = '{kind}'\n"
        text += "command = [" + ", ".join(f"'''{word}'''" for word in command) + "]\n"
        text += f"requires = {requires}\nafter = {after}\n"
    with Running(tmp_path, text) as up:
        with up.client() as client:
            wait_for(lambda: all(s["ready"] for s in client.services()), limit=60)
            events = []
            last = client.supervisor()["last_event"]
            for event in client.events(after=0):
                events.append((event["event"], event["service"]))
                if event["seq"] >= last:
                    break
        simple = [name for name in services if services[name][0] == "simple"]
        wait_for(lambda: all(f"start {name}\n" in track.read_text() for name in simple), limit=60)
        assert up.stop(signal.SIGTERM) == 0
    at = {event: i for i, event in enumerate(events)}
    lines = {line: i for i, line in enumerate(track.read_text().splitlines())}
    for name, (kind, requires, after) in services.items():
        for other in [*requires, *after]:
            became_ready = at["completed" if services[other][0] == "oneshot" else "ready", other]
            assert became_ready < at["starting", name], f"{name} started before {other} was ready"
            if services[other][0] != "simple":
                assert lines[f"ready {other}"] < lines[f"start {name}"]
            if kind != "oneshot" and services[other][0] != "oneshot":
                assert lines[f"end {name}"] < lines[f"term {other}"], f"{other} was stopped before {name} had ended"
