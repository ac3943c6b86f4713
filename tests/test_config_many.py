"""Configuration of many services: replicas, defaults, several files, groups; what names name, and each mistake."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from helpers_config import document, loaded, problems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.config import model, tables
from holdfast.config.errors import Problem
from holdfast.config.load import ConfigError, load
from holdfast.config.model import Backoff, Config, decode, encode, keys_of

QUICK = settings(
    max_examples=150, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="these refusals are root's")
WEB = "[service.web]\ncommand = 'x'\n"


def files(directory: pathlib.Path, **texts: str) -> str:
    """main="…" is the file itself, a="…" is conf.d/a.toml."""
    (directory / "conf.d").mkdir(exist_ok=True)
    for name, text in texts.items():
        path = directory / ("holdfast.toml" if name == "main" else f"conf.d/{name}.toml")
        path.write_text(text)
    return str(directory / "holdfast.toml")


def mistakes(path: str) -> list[Problem]:
    with pytest.raises(ConfigError) as error:
        load(path, environ={})
    return error.value.errors


def short(directory: pathlib.Path, found: list[Problem]) -> list[str]:
    return [str(each).replace(f"{directory}/", "") for each in found]


# ---- replicas


def test_replicas_are_services_in_order(tmp_path):
    text = WEB + "replicas = 11\ncwd = 'w{index}'\nenv = { A = '{index}', B = 'b' }\n[service.z]\ncommand = 'z'\n"
    config = loaded(tmp_path, text)
    assert list(config.services) == [*(f"web-{n}" for n in range(1, 12)), "z"]
    for n in range(1, 12):
        spec = config.services[f"web-{n}"]
        assert (spec.name, spec.cwd, spec.env) == (f"web-{n}", f"{tmp_path}/w{n}", {"A": str(n), "B": "b"})
        assert spec.replicas is None  # another count changes nothing in those that stay
    assert config.groups == {"web": tuple(f"web-{n}" for n in range(1, 12))}
    assert decode(encode(config)) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{index}", "2"),
        ("80{index}, {index}", "802, 2"),
        ("{{index}}", "{index}"),
        ("{{word}} {{ word }} {}", "{word} {{ word }} {}"),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("{ echo; }", "{ echo; }"),
        ("{a,b}", "{a,b}"),
        ("${V_{index}}", "two"),
        ("${NONE:-{index}}", "2"),
        ("$${index}", "${index}"),
        ("${index}", "of a variable"),
    ],
)
def test_index(tmp_path, text, value):
    keys = document({"service": {"web": {"command": ["x", text], "replicas": 2}}})
    config = loaded(tmp_path, keys, V_1="one", V_2="two", index="of a variable")
    assert config.services["web-2"].command == ("x", value)


def test_index_of_a_shell_is_replaced_and_its_variables_are_not(tmp_path):
    config = loaded(tmp_path, "[service.a]\nreplicas = 1\nshell = true\ncommand = 'echo ${index} {index} $$'\n")
    assert config.services["a-1"].command == ("echo ${index} 1 $$",)


def test_without_replicas_nothing_is_replaced(tmp_path):
    config = loaded(tmp_path, "[service.a]\ncommand = ['x', '{index}', '{{index}}', '{word}']\n")
    assert config.services["a"].command == ("x", "{index}", "{{index}}", "{word}")
    assert config.groups == {}


VALUES = st.recursive(
    st.text(alphabet="{}$ ix_a1") | st.sampled_from(["{index}", "{{index}}"]) | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet="{}i"), inner, max_size=3),
)


@given(VALUES, st.integers(0, 1000))
@QUICK
def test_index_in_any_value(value, index):
    """The shape stays, keys too; what `{{…}}` protects comes out as it was; nothing is replaced without braces."""
    result = tables.with_index(value, index)

    def same(before: object, after: object) -> None:
        if isinstance(before, dict):
            assert list(before) == list(after)
            for key in before:
                same(before[key], after[key])
        elif isinstance(before, list):
            assert len(before) == len(after)
            for pair in zip(before, after, strict=True):
                same(*pair)
        elif isinstance(before, str):
            protected = re.sub(r"(?<!\$)(?<!\{)\{([A-Za-z_]\w*)\}(?!\})", r"{{\1}}", before)
            if "{{" not in before and "}}" not in before:
                assert tables.with_index(protected, index) == before
                assert after == re.sub(r"(?<!\$)\{[A-Za-z_]\w*\}", str(index), before)
        else:
            assert before is after

    same(value, result)


def test_no_replicas(tmp_path):
    """None of it runs, and who needs all of it needs nothing; its mistakes are mistakes."""
    text = WEB + "replicas = 0\n[service.a]\ncommand = 'x'\nrequires = ['web']\nafter = ['web:*']\n"
    config = loaded(tmp_path, text)
    assert list(config.services) == ["a"]
    assert (config.services["a"].requires, config.services["a"].after) == ((), ())
    assert config.groups == {"web": ()}
    assert list(loaded(tmp_path, WEB + "replicas = 0\n").services) == []
    assert [each.key for each in problems(tmp_path, WEB + "replicas = 0\ngrace = 3\n")] == ["grace"]


def test_mistakes_of_a_table_with_replicas_are_named_once(tmp_path):
    text = WEB + "replicas = 1000\ngrace = 3\nrequires = ['bd']\nfoo = 1\n[service.db]\ncommand = 'x'\n"
    assert [(each.line, each.service, each.key) for each in problems(tmp_path, text)] == [
        (4, "web", "grace"), (5, "web", "requires"), (6, "web", "foo"),
    ]  # fmt: skip
    text = text.replace("grace = 3\n", "").replace("foo = 1\n", "")
    (found,) = problems(tmp_path, text)
    assert (found.service, found.key, found.hint) == ("web", "requires", 'did you mean "db"?')


# ---- defaults


def test_defaults_are_below_what_a_service_says(tmp_path):
    text = """
    [defaults]
    grace = "1m"
    restart = "always"
    env = { A = "default", B = "default" }
    log = { timestamps = true, rotate = { size = "1MiB", count = 3 } }
    backoff = { first = "1s" }
    success_exit_codes = [1, 2]
    [service.a]
    command = "x"
    [service.b]
    command = "x"
    restart = "never"
    env = { B = "own" }
    log.rotate.count = 5
    backoff.then = "2s"
    success_exit_codes = [3]
    """
    a, b = loaded(tmp_path, text).services.values()
    assert (a.grace, a.restart, a.success_exit_codes) == (60.0, "always", (1, 2))
    assert (b.grace, b.restart, b.success_exit_codes) == (60.0, "never", (3,))
    assert a.env == {"A": "default", "B": "default"}
    assert b.env == {"A": "default", "B": "own"}
    assert (b.log.timestamps, b.log.rotate_size, b.log.rotate_count) == (True, 1 << 20, 5)
    assert b.backoff == Backoff(first=1.0, then=2.0)


def test_of_keys_that_exclude_each_other_a_service_has_its_own(tmp_path):
    text = """
    [defaults]
    ready = { notify = true, timeout = "5s" }
    health = { tcp = "80", failures = 7 }
    [service.as_all]
    command = "x"
    [service.other]
    command = "x"
    ready.fd = 3
    health = { http = "http://127.0.0.1/" }
    [service.longer]
    command = "x"
    ready.timeout = "1m"
    """
    as_all, other, longer = loaded(tmp_path, text).services.values()
    assert (as_all.ready.kind, as_all.ready.timeout, as_all.health.kind) == ("notify", 5.0, "tcp")
    assert (other.ready.kind, other.ready.timeout) == ("fd", 5.0)
    assert (other.health.kind, other.health.failures) == ("http", 7)
    assert (longer.ready.kind, longer.ready.timeout) == ("notify", 60.0)
    text = """
    [defaults]
    type = "oneshot"
    schedule = { every = "5m", jitter = "9s" }
    [service.a]
    command = "x"
    schedule.cron = "0 3 * * *"
    """
    (schedule,) = (each.schedule for each in loaded(tmp_path, text).services.values())
    assert (schedule.every, schedule.jitter) == (None, 9.0) and schedule.cron


def test_shell_of_the_defaults_reads_the_commands(tmp_path):
    config = loaded(tmp_path, "[defaults]\nshell = true\n[service.a]\ncommand = 'a | b'\n")
    assert config.services["a"].command == ("a | b",)


KEYS = st.fixed_dictionaries(
    {},
    optional={
        "grace": st.sampled_from(["1s", "2m"]),
        "restart": st.sampled_from(["never", "on-failure"]),
        "env": st.dictionaries(st.sampled_from("ABC"), st.sampled_from("xyz"), max_size=3),
        "log": st.fixed_dictionaries(
            {},
            optional={
                "timestamps": st.booleans(),
                "rotate": st.dictionaries(st.just("count"), st.integers(1, 9))
                | st.dictionaries(st.just("size"), st.sampled_from(["1MB", "2MB"])),
            },
        ),
        "rlimits": st.dictionaries(st.sampled_from(["nofile", "nproc"]), st.integers(1, 9), max_size=2),
        "success_exit_codes": st.lists(st.integers(0, 255), min_size=1, max_size=3),
        "backoff": st.dictionaries(st.sampled_from(["first", "then"]), st.sampled_from(["1s", "2s"])),
    },
)


def over(below: dict, above: dict) -> dict:
    result = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict):
            result[key] = over(below[key], above[key])
    return result


@given(KEYS, st.lists(KEYS, min_size=1, max_size=3))
@QUICK
def test_defaults_are_as_if_every_service_had_said_them(tmp_path, defaults, services):
    short_ = {f"s{n}": {"command": "x", **keys} for n, keys in enumerate(services)}
    written = {name: over(defaults, keys) for name, keys in short_.items()}
    config = loaded(tmp_path, document({"defaults": defaults, "service": short_}))
    assert config == loaded(tmp_path, document({"service": written}))


def test_every_key_but_a_few_has_a_default():
    assert set(tables.default_keys()) == set(keys_of(model.Service)) - {"command", "replicas", "requires", "after"}


# ---- several files


def test_files_of_conf_d_are_read_by_name(tmp_path):
    main = "[defaults]\ngrace = '3s'\n" + WEB
    b = "[service.b]\ncommand = 'b'\nrequires = ['web', 'a']\ncwd = 'sub'\n"
    path = files(tmp_path, main=main, b=b, a="[service.a]\ncommand = 'a'\n[group.all]\nservices = ['*']\n")
    for name in ("c.toml~", "d.txt", ".e.toml"):
        (tmp_path / "conf.d" / name).write_text("not read")
    config = load(path, environ={})
    assert list(config.services) == ["web", "a", "b"]
    assert config.services["b"].cwd == str(tmp_path / "sub")  # as in the main file: a service can be moved
    assert {each.grace for each in config.services.values()} == {3.0}
    assert config.groups == {"all": ("web", "a", "b")}
    assert config.files == tuple(f"{tmp_path}/{name}" for name in ("holdfast.toml", "conf.d/a.toml", "conf.d/b.toml"))
    assert decode(encode(config)) == config


def test_main_file_may_have_no_service(tmp_path):
    assert list(load(files(tmp_path, main="", a=WEB), environ={}).services) == ["web"]
    assert short(tmp_path, mistakes(files(tmp_path, main="", a=""))) == [
        "holdfast.toml: has no service (`[service.NAME]` begins one; `holdfast init` writes an example)"
    ]


def test_conf_d_that_is_no_directory_is_not_ours(tmp_path):
    (tmp_path / "conf.d").write_text("x")
    assert loaded(tmp_path, WEB).files == (str(tmp_path / "holdfast.toml"),)


def test_mistakes_name_their_own_file(tmp_path):
    path = files(
        tmp_path,
        main=WEB + "grace = 1\n",
        a="[service.a]\ncommand = 'x'\n\nrequires = ['wbe']\n",
        b="[supervisor]\n[defaults]\n[service.web]\ncommand = 'y'\n[sevice.x]\n[include]\n",
        c="[service.web-1]\ncommand = 'x'\n[service.c]\nreplicas = 2\ncommand = 'x'\n[service.c-2]\ncommand = 'x'\n",
    )
    b = "conf.d/b.toml"
    assert short(tmp_path, mistakes(path)) == [
        'holdfast.toml:3: service web: grace: 1 has no unit (write "1s" or "1ms"; units: ms, s, m, h)',
        'conf.d/a.toml:4: service a: requires: there is no service "wbe" (did you mean "web"?)',
        f"{b}:1: supervisor: is no table of a file in conf.d (it stands in holdfast.toml)",
        f"{b}:2: defaults: is no table of a file in conf.d (it stands in holdfast.toml)",
        f"{b}:3: service web: is defined twice (also in holdfast.toml:1)",
        f'{b}:5: sevice: is no table of this file (did you mean "service"?)',
        f"{b}:6: include: is not in this version (the files of conf.d beside this one are read)",
        'conf.d/c.toml:6: service c-2: makes "c-2", which is defined twice (also in conf.d/c.toml:3)',
    ]


def test_file_that_cannot_be_read_is_named_beside_the_mistakes_of_the_others(tmp_path):
    """And what it would have defined is not missed."""
    path = files(tmp_path, main=WEB + "requires = ['db']\ngrace = 1\n", a="[service.db\n", b="\ncolour = 1\n")
    (tmp_path / "conf.d/d.toml").symlink_to("nowhere")
    (tmp_path / "conf.d/e.toml").mkdir()
    found = [(each.file.removeprefix(f"{tmp_path}/"), each.line) for each in mistakes(path)]
    assert found == [
        ("holdfast.toml", 4), ("conf.d/a.toml", 1), ("conf.d/b.toml", 2), ("conf.d/d.toml", 0), ("conf.d/e.toml", 0),
    ]  # fmt: skip


def test_without_the_main_file_the_others_mean_nothing(tmp_path):
    assert len(mistakes(files(tmp_path, main="[", a="[", b="["))) == 1


def test_mistake_of_a_default_is_said_once_and_where_it_stands(tmp_path):
    path = files(tmp_path, main="[defaults]\ngrace = 3\ncolour = 1\n" + WEB, a="[service.a]\ncommand = 'x'\nfoo = 1\n")
    found = [(each.file.removeprefix(f"{tmp_path}/"), each.line, each.key) for each in mistakes(path)]
    assert found == [
        ("holdfast.toml", 2, "defaults.grace"), ("holdfast.toml", 3, "defaults.colour"), ("conf.d/a.toml", 3, "foo")
    ]  # fmt: skip


def test_wrong_defaults_make_no_mistakes_of_services_that_rely_on_others(tmp_path):
    text = "[defaults]\nbackoff.max = '5m'\ngrace = 3\n" + WEB + "backoff.first = '2m'\n"
    assert [each.key for each in problems(tmp_path, text)] == ["defaults.grace"]


def test_default_that_does_not_fit_one_service(tmp_path):
    text = "[defaults]\nrestart = 'always'\n" + WEB + "[service.job]\ncommand = 'x'\ntype = 'oneshot'\n"
    (found,) = problems(tmp_path, text)
    assert (found.line, found.service, found.key) == (2, "job", "restart")


@needs_root
def test_root_refuses_what_everybody_may_write(tmp_path):
    path = files(tmp_path, main=WEB, a="[service.a]\ncommand = 'x'\n")
    (tmp_path / "conf.d/a.toml").chmod(0o666)
    (found,) = mistakes(path)
    assert found.file.endswith("conf.d/a.toml")
    assert "is writable by everybody" in found.message
    (tmp_path / "conf.d/a.toml").chmod(0o644)
    (tmp_path / "conf.d").chmod(0o777)
    (found,) = mistakes(path)
    assert f"lies in {tmp_path}/conf.d, where everybody may replace it" in found.message


@needs_root
def test_directory_that_somebody_else_has_put_beside_the_file_is_refused(tmp_path):
    """Beside /tmp/x.toml anybody can make a conf.d, and nobody has named it."""
    path = files(tmp_path, main=WEB, a="[service.a]\ncommand = 'x'\n")
    os.chown(tmp_path / "conf.d", 65534, 65534)
    (found,) = mistakes(path)
    assert (found.file, found.message) == (
        f"{tmp_path}/conf.d", "belongs to user 65534, who has not written the file beside it"
    )  # fmt: skip
    os.chown(path, 65534, 65534)  # who names that file trusts its owner
    assert len(load(path, environ={}).services) == 2
    os.chown(path, 0, 0)
    os.chown(tmp_path / "conf.d", 0, 0)
    (tmp_path / "conf.d").rename(tmp_path / "real")
    (tmp_path / "conf.d").symlink_to("real")
    assert len(load(path, environ={}).services) == 2
    os.chown(tmp_path / "conf.d", 65534, 65534, follow_symlinks=False)
    (found,) = mistakes(path)
    assert found.message.startswith("belongs to user 65534")


# ---- names

NAMES = """
[service.web]
replicas = 3
command = "x"
[service.db]
command = "x"
[service.db-2]
command = "x"
[group.backend]
services = ["db*", "web:[12]"]
[group.db]
services = ["db"]
[service.asks]
command = "x"
after = {words}
"""


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["db"], ["db"]),
        (["web"], ["web-1", "web-2", "web-3"]),
        (["web-2"], ["web-2"]),
        (["web:3", "db"], ["web-3", "db"]),
        (["web:web-3"], ["web-3"]),
        (["web:*"], ["web-1", "web-2", "web-3"]),
        (["web-[13]"], ["web-1", "web-3"]),
        (["backend:*"], ["db", "db-2", "web-1", "web-2"]),
        (["backend:web-*", "web"], ["web-1", "web-2", "web-3"]),
        (["db:*"], ["db"]),
        (["*"], ["web-1", "web-2", "web-3", "db", "db-2"]),  # the others
        ([], []),
    ],
)
def test_what_words_name(tmp_path, words, meant):
    config = loaded(tmp_path, NAMES.replace("{words}", json.dumps(words)))
    assert config.services["asks"].after == tuple(meant)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["bd"], 'there is no service "bd"', 'did you mean "db"?'),
        (["we"], 'there is no service "we"', 'did you mean "web"?'),
        (["web-4"], 'there is no service "web-4"', 'did you mean "web-'),
        (["backend"], 'there is no service "backend"', '"backend:*" are the services of that group'),
        (["bakend:*"], 'there is no group "bakend"', 'did you mean "backend"?'),
        (["web:4"], 'no service of the group "web" matches "4"', "in it: web-1, web-2, web-3"),
        (["backend:x*"], 'no service of the group "backend" matches "x*"', "in it: db, db-2"),
        (["x*"], 'there is no service "x*"', ""),
        (["asks"], "names the service itself", 'leave "asks" out'),
    ],
)
def test_words_that_name_nothing(tmp_path, words, message, hint):
    (found,) = problems(tmp_path, NAMES.replace("{words}", json.dumps(words)))
    assert (found.service, found.key, found.message) == ("asks", "after", message)
    assert hint in found.hint


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("[group.a]\nservices = ['wbe']", "5 group.a.services", 'there is no service "wbe"', 'did you mean "web"?'),
        ("[group.a]", "4 group.a", "has no services", "services = ["),
        ("[group.a]\nmembers = ['web']\nservices = ['web']", "5 group.a.members", "is no key", '"services"'),
        ("[group.a]\nservices = 'web'", "5 group.a.services", "must be a list of services, not a string", ""),
        ("[group.a]\nservices = ['b:*']\n[group.b]\nservices = ['web']", "5 group.a.services", '"b:*" names a gr', ""),
        ("[group.a]\nservices = ['b:*']", "5 group.a.services", 'there is no group "b"', ""),
        ("[group.'a:b']\nservices = ['web']", "4 group.a:b", '"a:b" cannot be the name of a group', "colon"),
        ("group = 1", "0", "", ""),
        ("[group]\na = 1", "5 group.a", "must be a table, not an integer", ""),
        ("[service.r]\ncommand = 'x'\nreplicas = 1\n[group.r]\nservices = ['r']", "7 group.r", "replicas", "name"),
        ("[service.r]\ncommand = 'x'\nreplicas = 1\nrequires = ['r']", "7 r requires", "names the service itself", ""),
        ("[service.r]\ncommand = 'x'\nreplicas = 2\nrequires = ['r:*']", "7 r requires", "could start first", ""),
        ("[service.r]\ncommand = 'x'\nreplicas = -1", "6 r replicas", "must be at least 0, not -1", ""),
        ("[service.r]\ncommand = 'x'\nreplicas = 1001", "6 r replicas", "must be at most 1000, not 1001", ""),
        ("[service.r]\ncommand = 'x'\nreplicas = '2'", "6 r replicas", "must be an integer", "without quotes"),
        ("[service.r]\ncommand = 'x'\nnumprocs = 2", "6 r numprocs", "is no key", 'did you mean "replicas"?'),
        ("[service.r]\ncommand = 'x'\ninstance = 2", "6 r instance", "is no key", ""),
        ("[service.r]\ncommand = 'x {indx}'\nreplicas = 2", "5 r command", "{indx} is not replaced", "{index} is;"),
        ("[service.r]\ncommand = 'x'\nreplicas = 2\nenv = { A = '{N}' }", "7 r env.A", "{N} is not replaced", "{{N}}"),
        (f"[service.{'r' * 63}]\ncommand = 'x'\nreplicas = 2", f"6 {'r' * 63} replicas", "cannot be the name", "65"),
        ("[defaults]\ncommand = 'x'", "5 defaults.command", "has no default", "in each service"),
        ("[defaults]\nreplicas = 3", "5 defaults.replicas", "has no default", "in each service"),
        ("[defaults]\ngrce = '3s'", "5 defaults.grce", "is no key", 'did you mean "grace"?'),
        ("[defaults]\nenv = { A = '{index}' }", "5 defaults.env.A", "{index} is replaced in services alone", ""),
        ("[default]\ngrace = '3s'", "4 default", "is no table", 'did you mean "defaults"?'),
        ("[groups.a]\nservices = ['web']", "4 groups", "is no table", 'did you mean "group"?'),
        ("[service.r]\ncommand = 'x'\nenv_file = 1", "6 r env_file", "must be a path or a list of paths", "web.env"),
        ("[service.r]\ncommand = 'x'\nenv_file = ['']", "6 r env_file", "is empty", ""),
        ("[service.r]\ncommand = 'x'\nenvironmentfile = 'x'", "6 r environmentfile", "is no key", '"env_file"'),
    ],
)
def test_mistake(tmp_path, text, place, message, hint):
    if text == "group = 1":
        (found,) = problems(tmp_path, f"{text}\n{WEB}")
        assert (found.line, found.key, found.message) == (1, "group", "must be a table of groups, not an integer")
        return
    (found,) = problems(tmp_path, f"{WEB}\n{text}\n")
    line, *_, key = place.split(" ")
    service = place.split(" ")[1] if place.count(" ") == 2 else ""
    assert (found.line, found.service, found.key) == (int(line), service, key)
    assert message in found.message
    assert hint in found.hint


TEXT = st.text(alphabet="aw:-*?[]12{}index", max_size=6)


@given(st.lists(TEXT, max_size=3), st.lists(TEXT, max_size=3), st.integers(0, 3))
@QUICK
def test_any_words_name_services_or_are_mistakes(tmp_path, words, members, replicas):
    data = {
        "service": {"w": {"command": "x", "replicas": replicas}, "a": {"command": "x", "after": words}},
        "group": {"aw": {"services": members}},
    }
    (tmp_path / "holdfast.toml").write_bytes(document(data).encode())
    try:
        config = load(str(tmp_path / "holdfast.toml"), environ={})
    except ConfigError as error:
        assert all(each.message and str(each).isprintable() for each in error.errors)
        return
    assert isinstance(config, Config)
    named = {*config.services["a"].after, *config.groups["aw"]}
    assert named <= set(config.services)
    assert "a" not in config.services["a"].after


WORDS = st.sampled_from(["w", "a", "w-1", "*", "g:*", "w:1", "g", "", "{index}", "{x}", "{{index}}", "${A}", "1s"])
ANYTHING = st.recursive(
    WORDS | st.integers(-1, 3) | st.booleans() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*keys_of(model.Service), "services", "x"]), inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(st.sampled_from(["w", "w-1", "a", "g", "a:b"]), ANYTHING, max_size=3)
FILE = st.dictionaries(st.sampled_from(["service", "group", "defaults", "supervisor", "x"]), TABLES | ANYTHING)


@given(FILE, st.lists(FILE, max_size=2))
@QUICK
def test_any_files_are_a_configuration_or_a_config_error(tmp_path, main, others):
    texts = {f"f{n}": document(data) for n, data in enumerate(others)} | {"main": document(main)}
    path = files(tmp_path, **{"f0": "", "f1": ""} | texts)
    try:
        config = load(path, environ={"A": "1"})
    except ConfigError as error:
        assert error.errors
        assert all(each.message and str(each).isprintable() for each in error.errors)
    else:
        assert decode(encode(config)) == config
        named = {name for names in config.groups.values() for name in names}
        named |= {name for spec in config.services.values() for name in (*spec.requires, *spec.after)}
        assert named <= set(config.services)


# ---- what check shows


def check(directory: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holdfast", "check", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, check=False, timeout=60)


def test_check_names_all_files_and_warns_of_what_is_missing_now(tmp_path):
    main = "[service.web]\nreplicas = 2\ncommand = 'x'\nenv_file = ['web.env', 'e{index}.env']\n"
    files(tmp_path, main=main, a="[service.none]\ncommand = 'x'\nreplicas = 0\n")
    (tmp_path / "web.env").write_text("A=1\n")
    (tmp_path / "e2.env").write_text("\nA='secret\n")
    done = check(tmp_path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["SERVICE", "web-1", "web-2"]
    assert done.stdout.splitlines()[-1] == "holdfast.toml, conf.d/a.toml: 2 services, no mistakes"
    assert done.stderr.replace(f"{tmp_path}/", "").splitlines() == [
        "warning: none:* names no service (replicas = 0)",
        "warning: service web-1 would not start now: env_file e1.env: there is no such file",
        "warning: service web-2 would not start now: env_file e2.env:2: the quotation of A has no end",
    ]
    data = json.loads(check(tmp_path, "--json").stdout)
    assert data["files"] == [f"{tmp_path}/holdfast.toml", f"{tmp_path}/conf.d/a.toml"]
    assert data["groups"] == {"none": [], "web": ["web-1", "web-2"]}
    assert len(data["warnings"]) == 3
