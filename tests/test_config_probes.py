"""`ready`, `health`, `watchdog` in a file: what is taken, and what is said of each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config import fenced, loaded, problems

from holdfast.config.model import Health, Ready, decode, encode
from holdfast.config.probe_forms import endpoint, target


def load_one(tmp_path, keys: str):
    return loaded(tmp_path, f"[service.web]\ncommand = 'x'\n{keys}\n").services["web"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('ready = { tcp = "8080" }', Ready(tcp="8080")),
        ('ready = { tcp = "[::1]:80", timeout = "1m" }', Ready(tcp="[::1]:80", timeout=60)),
        ('ready = { tcp = "80", interval = "1s" }', Ready(tcp="80", interval=1)),
        ("ready = { http = 'http://localhost/x?y=1' }", Ready(http="http://localhost/x?y=1")),
        ("ready = { command = 'pg_isready -q' }", Ready(command=("pg_isready", "-q"))),
        ("ready = { notify = true }", Ready(notify=True)),
        ("ready = { fd = 3 }", Ready(fd=3)),
        (r"ready = { log = 'port \d+$' }", Ready(log=r"port \d+$")),
        ('type = "notify"', Ready(notify=True)),
        ('type = "notify"\nready = { timeout = "5s" }', Ready(notify=True, timeout=5)),
        ("ready = { notify = false, tcp = 'db:5432' }", Ready(tcp="db:5432")),
    ],
)
def test_what_it_awaits(tmp_path, keys, expected):
    spec = load_one(tmp_path, keys)
    assert spec.awaits == expected
    assert spec.speaks == expected.notify


def test_defaults_and_what_is_kept_in_the_accepted_file(tmp_path):
    assert load_one(tmp_path, "").awaits is None
    assert not load_one(tmp_path, "").speaks
    assert load_one(tmp_path, "watchdog = '30s'").speaks
    config = loaded(
        tmp_path, "[service.web]\nshell = true\ncommand = 'a | b'\nhealth = { command = 'c d', interval = '5s' }\n"
    )
    assert config.services["web"].health == Health(command=("c", "d"), interval=5, timeout=5, failures=3)
    assert config.services["web"].health.kind == "command"
    assert decode(encode(config)) == config


def test_a_socket_s_path_begins_at_the_file(tmp_path):
    assert load_one(tmp_path, 'ready = { tcp = "unix:run/../x.sock" }').ready.tcp == f"unix:{tmp_path}/x.sock"


@pytest.mark.parametrize(
    ("keys", "key", "message", "hint"),
    [
        ("ready = {}", "ready", "does not say what tells", "one of notify, fd, tcp"),
        ('health = { interval = "1s" }', "health", "does not say what tells", "tcp"),
        ("ready = { tcp = '80', fd = 3 }", "ready", "has fd and tcp", "leave the others out"),
        ("type = 'oneshot'\nready = { fd = 3 }", "ready", "means nothing for a oneshot", "leave `ready` out"),
        ("type = 'oneshot'\nhealth = { fd = 3 }", "health", "means nothing for a oneshot", "leave `health` out"),
        ("type = 'oneshot'\nwatchdog = '1s'", "watchdog", "means nothing for a oneshot", ""),
        ("type = 'notify'\nready = { tcp = '80' }", "ready", 'type "notify" says already', "leave `type` out"),
        ("ready = { fd = 4 }\nhealth = { fd = 4 }", "health", "is that of `ready`", "its own"),
        ("ready = { tcp = 8080 }", "ready.tcp", "must be a string, not an integer", '"8080" is that port of 127.0.0.1'),
        ("ready = { tcp = 'localhost' }", "ready.tcp", '"localhost" is no address', '"127.0.0.1:8080"'),
        ("ready = { tcp = ':0' }", "ready.tcp", "is no address", ""),
        ("ready = { tcp = '::1:80' }", "ready.tcp", "is no address", "[::1]:80"),
        ("ready = { tcp = '1.2.3.4:65536' }", "ready.tcp", "is no address", ""),
        ("ready = { tcp = 'unix:' }", "ready.tcp", "has no path", "unix:/run/x.sock"),
        ("ready = { http = 'https://x/' }", "ready.http", "https is not asked", "curl"),
        ("ready = { http = 'localhost:80/x' }", "ready.http", "is no URL of http", "http://127.0.0.1"),
        ("ready = { http = 'http://a@b/' }", "ready.http", "is no URL", ""),
        ("ready = { http = 'http://x:99999/' }", "ready.http", "is no URL", ""),
        ("ready = { http = \"http://x/\\r\\nHost: y\" }", "ready.http", "is no URL", ""),
        ("ready = { log = '(' }", "ready.log", "is no regular expression", ""),
        ("ready = { log = '' }", "ready.log", "is empty", ""),
        ("ready = { fd = 2 }", "ready.fd", "must be at least 3, not 2", ""),
        ("ready = { command = 'a | b' }", "ready.command", "`|` would be a word", ""),
        ("ready = { timeout = 5, notify = true }", "ready.timeout", "5 has no unit", '"5s"'),
        ("health = { tcp = '80', failure = 2 }", "health.failure", "is no key", 'did you mean "failures"?'),
        ("health = { tcp = '80', failures = 0 }", "health.failures", "must be at least 1", ""),
        ("ready_timeout = '5s'", "ready_timeout", "is not in this version", "ready = { timeout"),
        ("healthcheck = {}", "healthcheck", "is no key", 'did you mean "health"?'),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, keys, key, message, hint):
    (found,) = problems(tmp_path, f"[service.web]\ncommand = 'x'\n{keys}\n")
    assert (found.service, found.key) == ("web", key)
    assert message in found.message
    assert hint in found.hint


def test_the_examples_of_the_page_load(tmp_path):
    text, every_kind = fenced("docs/health.md")
    kinds = {spec.awaits.kind for spec in loaded(tmp_path, every_kind).services.values()}
    assert kinds == {"notify", "fd", "tcp", "http", "command", "log"}
    assert {spec.awaits.kind for spec in loaded(tmp_path, text).services.values()} == {"log", "tcp", "notify"}


@given(st.text(max_size=40))
def test_no_text_is_taken_for_an_address_or_url_that_is_none(text):
    for read in (endpoint, target):
        try:
            host, port, *_ = read(text)
        except ValueError:
            continue
        assert host
        assert 0 < port < 65536
