"""The JSON Schemas: both accept what the loader accepts, and refuse the mistakes that can be seen in one value."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import jsonschema
import pytest
from helpers_config import document
from helpers_supervisor import HOLDFAST
from test_config import ROOT, fenced

from holdfast.config.load import ConfigError, load
from holdfast.config.model import PROBE_KINDS, Keys, Service, Supervisor, keys_of
from holdfast.config.schema import default_text, json_schema, json_schema_draft4
from holdfast.config.starter import STARTER

VALIDATORS = [
    jsonschema.Draft202012Validator(json_schema()),
    jsonschema.Draft4Validator(json_schema_draft4()),
]
both = pytest.mark.parametrize("validator", VALIDATORS, ids=["2020-12", "draft4"])


@both
def test_schema_is_one(validator):
    validator.check_schema(validator.schema)


def test_draft4_has_no_words_of_later_drafts():
    text = json.dumps(json_schema_draft4())
    later = ("$defs", "$id", "const", "examples", "propertyNames", "dependentRequired", "2020-12")
    assert not [word for word in later if f'"{word}"' in text or f"{word}/" in text]
    assert text.count("#/definitions/") == json.dumps(json_schema()).count("#/$defs/")


def examples() -> list[tuple[str, str]]:
    files = [(str(path.relative_to(ROOT)), path.read_text()) for path in sorted((ROOT / "examples").rglob("*.toml"))]
    return [("docs/configuration.md", fenced("docs/configuration.md")[0]), ("starter", STARTER), *files]


@both
@pytest.mark.parametrize(("name", "text"), examples(), ids=[name for name, _ in examples()])
def test_examples_are_accepted(validator, name, text):
    assert not [error.message for error in validator.iter_errors(tomllib.loads(text))]


@both
@pytest.mark.parametrize(
    "text",
    [
        "colour = 1\n[service.a]\ncommand = 'x'",
        "[services.a]\ncommand = 'x'",
        "[supervisor]\nrundir = 'x'\n[service.a]\ncommand = 'x'",
        "[supervisor]\nstart_budget = { at_once = 0 }\n[service.a]\ncommand = 'x'",
        "[service.a]",
        "[service.'a@1']\ncommand = 'x'",
        f"[service.{'a' * 65}]\ncommand = 'x'",
        "[service.a]\ncommand = []",
        "[service.a]\ncommand = ''",
        "[service.a]\ncommand = ['x', 1]",
        "[defaults]\ncommand = 'x'",
        "[defaults]\ngrace = 3",
        "[group.a]",
        "[group.a]\nservices = 'web'",
        "[group.a]\nservices = ['a b']",
        "[group.'a:b']\nservices = ['web']",
    ],
)
def test_mistakes_of_tables_are_refused(validator, text):
    assert list(validator.iter_errors(tomllib.loads(text)))


@both
@pytest.mark.parametrize(
    "key",
    [
        "replicas = -1", "replicas = '2'", "env_file = 1", "env_file = ['']",
        "comand = 'x'", "ready = 1", "ready = { tcp = 80 }", "health = {}", "health = { failures = 2 }",
        "ready = { http = 'https://x/' }", "health = { http = 'x', failures = 0 }", "watchdog = 5",
        "shell = 'yes'", "cwd = 1", "env = { A = 1 }", "env = 'A'", "user = true",
        "group = -1", "umask = 22", "umask = '9'", "nice = 20", "nice = 1.5", "rlimits = { nofil = 1 }",
        "extra_groups = 'audio'", "extra_groups = [-1]", "capabilities = 'kill'", "capabilities = ['kil']",
        "capabilities = { effective = ['kill'] }", "capabilities = { ambient = ['Kill'] }", "no_new_privs = 1",
        "ioprio = 'best-effort:8'", "ioprio = 'idle:1'", "ioprio = 3", "oom_score_adj = 1001", "oom_score_adj = '1'",
        "cpu_affinity = []", "cpu_affinity = [-1]", "cpu_affinity = ['0']", "cpu_affinity = 'all'", "cpu_affinity = 1",
        "rlimits = { nofile = '1' }", "rlimits = { as = 1 }", "rlimits = { as = ['1MB'] }", "rlimits = { cpu = '1MB' }",
        "type = 'forked'", "restart = 'on_failure'", "restart = true", "start_limit = -1", "start_limit = '1'",
        "success_exit_codes = [256]", "success_exit_codes = []", "success_exit_codes = 0", "requires = 'db'",
        "requires = ['a b']", "after = [1]", "stop_signal = 15", "stop_signal = 'TREM'", "stop_signal = 'STOP'",
        "stop_scope = 'all'", "grace = 10", "grace = '10'", "grace = '10 s'", "grace = '1d'", "backoff = '1s'",
        "backoff = { fist = '1s' }", "backoff = { jitter = 2 }", "backoff = { max = 60 }", "log = { cap = 1 }",
        "log = { cap = '16M' }", "log = { rotate = '1MB' }", "log = { rotate = { size = 1 } }",
        "log = { rotate = { count = 0 } }", "log = { merge = 1 }", "essential = 1", "on_owner_loss = 'die'",
    ],
)  # fmt: skip
def test_mistakes_of_values_are_refused(validator, key):
    good = "[service.a]\ncommand = 'x'\n"
    assert not list(validator.iter_errors(tomllib.loads(good)))
    assert list(validator.iter_errors(tomllib.loads(good + key)))


SIMPLE = [
    "1s", "1.h", ".5s", "0ms", "5MB", "1.5KiB", "20GiB", "1MiB", "", "web", "other", "/x", "${A}", "$${", "on-failure",
    "oneshot", "tree", "kill", "start-first", "TERM", "SIGHUP", "SIGRTMIN+3", "RTMIN+99", "hup", "unlimited", "022",
    "0777", "1777", "50%", "root", "pipe", "0 3 * * MON", "UTC", "skip", True, False, -21, -1, 0, 1, 9, 300, 0.5, 2.0,
]  # fmt: skip
PLAUSIBLE = [
    *SIMPLE,
    [],
    {},
    *([each] for each in SIMPLE),
    {"notify": True},
    {"http": "http://127.0.0.1:1/"},
    "http://127.0.0.1:8080/",
    "8080",
    ["1s", "2s"],
    ["1MiB", "unlimited"],
    [1, 9],
    {"A": "x"},
    {"A": 1},
    ["chown", "CAP_NET_RAW"],
    {"ambient": ["KILL"], "bounding": ["cap_kill", "bpf"]},
    "best-effort:7",
    "realtime",
    "0-1, 3",
    [0, 1, 8191],
]


def every_key(keys: Keys, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, key in keys.items():
        path = (*prefix, name)
        yield path
        if isinstance(key, dict):
            yield from every_key(key, path)
        elif key.about.form == "table":
            assert isinstance(key.type, type)
            yield from every_key(keys_of(key.type), path)
        elif name == "rlimits":
            yield from ((*path, limit) for limit in ("nofile", "core", "cpu", "rttime"))


@pytest.mark.parametrize("path", list(every_key(keys_of(Service))), ids=".".join)
def test_schema_accepts_whatever_the_loader_accepts(tmp_path, path):
    """Each key with each plausible value; the schema may be more lenient, never stricter."""
    file = tmp_path / "holdfast.toml"
    accepted = 0
    for value in PLAUSIBLE:
        keys: object = value
        for name in reversed(path):
            keys = {name: keys}
        if path[0] in ("ready", "health") and len(path) == 2 and path[1] not in PROBE_KINDS:
            keys[path[0]]["notify"] = True  # one of them there must be
        if path[0] == "schedule" and isinstance(keys["schedule"], dict):  # nothing of it means anything alone
            needed = {} if path[-1] == "every" else {"cron": "0 3 * * *"}
            keys = {"schedule": needed | keys["schedule"], "type": "oneshot"}
        if path[0] in ("main", "pid_file"):
            keys |= {"type": "forking"}
        data = {"service": {"web": {"command": "x"} | keys, "other": {"command": ["x"]}}}
        file.write_bytes(document(data).encode())
        try:
            load(str(file), environ={"A": "1"})
        except ConfigError:
            continue
        accepted += 1
        for validator in VALIDATORS:
            assert not [error.message for error in validator.iter_errors(data)], value
    assert accepted or (path[-1] in ("user", "group", "extra_groups") and os.geteuid() != 0)


@pytest.mark.parametrize("struct", [Service, Supervisor])
def test_defaults_of_the_schema_are_what_the_loader_takes_for_them(tmp_path, struct):
    """Each default, written out, is the default."""

    def written(keys: dict) -> dict:
        result = {}
        for name, key in keys.items():
            if isinstance(key, dict):
                result[name] = written(key)
            elif key.about.form == "table":
                if key.default is not None:
                    result[name] = written(keys_of(key.type))
            elif (text := default_text(key)) is not None:
                result[name] = text
        return result

    given_ = written(keys_of(struct))
    assert len(given_) >= (14 if struct is Service else 1)
    path = tmp_path / "holdfast.toml"
    plain = {"service": {"a": {"command": "x"}}, "supervisor": {}}
    path.write_text(document(plain))
    expected = load(str(path), environ={})
    plain["service" if struct is Service else "supervisor"] = (
        {"a": {"command": "x"} | given_} if struct is Service else given_
    )
    path.write_text(document(plain))
    assert load(str(path), environ={}) == expected


def test_every_key_is_described():
    def walk(keys: dict) -> None:
        for key in keys.values():
            if isinstance(key, dict):
                walk(key)
                continue
            assert key.about.text.endswith(".")
            if key.about.form == "table":
                walk(keys_of(key.type))

    walk(keys_of(Service))
    walk(keys_of(Supervisor))


@pytest.mark.parametrize(("option", "schema"), [((), json_schema()), (("--draft4",), json_schema_draft4())])
def test_command_prints_the_schema(option, schema, tmp_path: pathlib.Path):
    command = [sys.executable, "-m", "holdfast", "schema", *option]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60)
    assert json.loads(done.stdout) == schema
    assert re.search(r"draft[-/]", schema["$schema"])


def test_output_that_has_no_room_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([HOLDFAST, "schema"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "holdfast: cannot write the output: No space left on device\n")
