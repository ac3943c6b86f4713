"""Configuration that is wrong: every mistake has a message of its own, with its place and what was meant."""

from __future__ import annotations

import os
import pathlib
import re
import stat

import pytest
from helpers_config import document, problems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_config import GARBAGE, TEXT

from holdfast.config import files, graph
from holdfast.config.hints import LATER, OTHER_WORDS
from holdfast.config.load import ConfigError, load
from holdfast.config.model import Group, Resources, Service, decode, encode, keys_of

root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not root, reason="these refusals are root's")

# Each mistake stands on a line that ends with its number.
MANY = r"""
colour = "red"                                              #1
[supervisor]
rundir = "run"                                              #2
log_dir = "${NOT_SET}/log"                                  #3
start_budget = { at_once = 0 }                              #4

[service.web]
comand = "serve"                                            #5
command = "serve $PORT"                                     #6
cwd = "~/web"                                               #7
env = { PORT = 8080 }                                       #8
user = 4294967295                                           #9
umask = 22                                                  #10
nice = 20                                                   #11
restart = "on_failure"                                      #12
type = "forkin"                                             #13
start_limit = "10"                                          #14
success_exit_codes = [0, 256]                               #15
requires = ["bd"]                                           #16
after = "db"                                                #17
stop_signal = 15                                            #18
stop_scope = "process"                                      #19
grace = 10                                                  #20
essential = "yes"                                           #21
on_owner_loss = "keeep"                                     #22
ready = { http = "/health" }                                #23

[service.web.rlimits]
nofil = 1024                                                #24
nproc = [20, 10]                                            #25
as = 1000000                                                #26

[service.web.backoff]
first = "1 s"                                               #27
jitter = 1.5                                                #28

[service.web.log]
rotate = { size = "16M" }                                   #29
cap = "16"                                                  #30
timestamp = true                                            #31

[service.db]
command = []                                                #32
requires = ["cache"]                                        #33

[service.cache]
command = "cache | logger"                                  #34
after = ["db", "cache"]                                     #35

[service."a@1"]                                             #36
command = "x"

[service.nothing]                                           #37
autorestart = true                                          #38

[service.split]
command = "echo 'a"                                         #39

[service.job]
command = ["x", 3]                                          #40
environment = {}                                            #41
stop_signal = "TREM"                                        #42
env.A = "${B"                                               #43
env.HOLDFAST_SERVICE = "x"                                  #44

[service.late]
command = "x\u0000y"                                        #45
directory = "/"                                             #46
restart = true                                              #47
grace = "2years"                                            #48
backoff.max = "9000h"                                       #49
"""

# number: (service, key, what the message says, what the hint says)
EXPECTED = {
    1: ("", "colour", "is no table of this file", "known: supervisor, defaults, service, group"),
    2: ("", "supervisor.rundir", "is no key", 'did you mean "run_dir"?'),
    3: ("", "supervisor.log_dir", "the variable NOT_SET is not set", "${NOT_SET:-default}"),
    4: ("", "supervisor.start_budget.at_once", "must be at least 1, not 0", ""),
    5: ("web", "comand", "is no key", 'did you mean "command"?'),
    6: ("web", "command", "`$PORT` has no braces", "${PORT}"),
    7: ("web", "cwd", "`~` is not replaced", "${HOME}"),
    8: ("web", "env.PORT", "must be a string, not an integer", "in quotes"),
    9: ("web", "user", "4294967295 is no user's number", ""),
    10: ("web", "umask", "must be a string of octal digits", 'umask = "022"'),
    11: ("web", "nice", "must be at most 19, not 20", ""),
    12: ("web", "restart", 'must be one of "always", "on-failure"', 'did you mean "on-failure"?'),
    13: ("web", "type", "must be one of", "forking"),
    14: ("web", "start_limit", "must be an integer, not a string", "without quotes"),
    15: ("web", "success_exit_codes", "must be at most 255, not 256", ""),
    16: ("web", "requires", 'there is no service "bd"', 'did you mean "db"?'),
    17: ("web", "after", "must be a list of services, not a string", '["db"]'),
    18: ("web", "stop_signal", "must be a signal's name, not a number", '"TERM"'),
    19: ("web", "stop_scope", 'must be one of "main", "group", "tree"', ""),
    20: ("web", "grace", "10 has no unit", '"10s"'),
    21: ("web", "essential", "must be true or false, not a string", ""),
    22: ("web", "on_owner_loss", 'must be one of "keep", "stop", "kill"', 'did you mean "keep"?'),
    23: ("web", "ready.http", '"/health" is no URL of http', "http://127.0.0.1:8080/health"),
    24: ("web", "rlimits.nofil", "is no resource limit", 'did you mean "nofile"?'),
    25: ("web", "rlimits.nproc", "the soft limit is above the hard one", "[soft, hard]"),
    26: ("web", "rlimits.as", "1000000 has no unit", "MB"),
    27: ("web", "backoff.first", "'1 s' is not a duration", "10s"),
    28: ("web", "backoff.jitter", "must be at most 1, not 1.5", ""),
    29: ("web", "log.rotate.size", "'16M' has an unknown unit", "16MB or 16MiB"),
    30: ("web", "log.cap", "'16' has no unit", "16MiB"),
    31: ("web", "log.timestamp", "is no key", 'did you mean "timestamps"?'),
    32: ("db", "command", "is empty", "name the program"),
    33: ("db", "requires", "nothing could start first: db -> cache -> db", ""),
    34: ("cache", "command", "`|` would be a word of the command", "shell = true"),
    35: ("cache", "after", "names the service itself", 'leave "cache" out'),
    36: ("a@1", "", '"a@1" cannot be the name of a service', "incarnation"),
    37: ("nothing", "", "has no command", "command = ["),
    38: ("nothing", "autorestart", "is no key", 'did you mean "restart"?'),
    39: ("split", "command", "cannot be split into words: no closing quotation", ""),
    40: ("job", "command", "word 2 must be a string, not an integer", "in quotes"),
    41: ("job", "environment", "is no key", 'did you mean "env"?'),
    42: ("job", "stop_signal", '"TREM" is no signal', 'did you mean "TERM"?'),
    43: ("job", "env.A", "`${` without `}`", "$${"),
    44: ("job", "env.HOLDFAST_SERVICE", "is set by the supervisor itself", ""),
    45: ("late", "command", "contains a NUL byte", ""),
    46: ("late", "directory", "is no key", 'did you mean "cwd"?'),
    47: ("late", "restart", "not a boolean", ""),
    48: ("late", "grace", "'2years' is not a duration", "10s"),
    49: ("late", "backoff.max", "must be at most 8784h, not 9000h", ""),
}


def test_many_mistakes_have_as_many_messages_at_their_places(tmp_path):
    lines = {}
    for number, line in enumerate(MANY.splitlines(), 1):
        if found := re.search(r"#(\d+)$", line):
            lines[int(found[1])] = number
    assert set(lines) == set(EXPECTED)
    wanted = {(lines[n], service, key): (message, hint) for n, (service, key, message, hint) in EXPECTED.items()}
    found = problems(tmp_path, MANY)
    assert {(each.line, each.service, each.key) for each in found} == set(wanted)
    assert len(found) == len(EXPECTED) >= 30
    for each in found:
        message, hint = wanted[each.line, each.service, each.key]
        assert message in each.message
        assert hint in each.hint
        assert each.file == str(tmp_path / "holdfast.toml")
        assert str(each).startswith(f"{each.file}:{each.line}: ")
        assert (f"service {each.service}:" in str(each)) == bool(each.service)
    assert [each.line for each in found] == sorted(each.line for each in found)


@pytest.mark.parametrize(
    ("keys", "key", "message", "hint"),
    [
        ("command = ''", "command", "is empty", ""),
        ("command = '  '", "command", "is empty", ""),
        ("command = ['', 'x']", "command", "is empty", ""),
        ("command = 3", "command", "must be a list of strings or a string, not an integer", ""),
        ("shell = true\ncommand = ['x']", "command", "must be one string where shell = true, not an array", "shell"),
        ("shell = true\ncommand = ' '", "command", "is empty", ""),
        ('shell = true\ncommand = "\\u0000"', "command", "contains a NUL byte", ""),
        ("shell = 1\ncommand = 'x'", "shell", "must be true or false, not an integer", ""),
        ("cwd = ''", "cwd", "is empty", ""),
        ('cwd = "a\\u0000"', "cwd", "contains a NUL byte", ""),
        ("env = 'A=1'", "env", "must be a table of strings, not a string", "env = {"),
        ("env = { 'A=B' = 'x' }", "env.A=B", "is no name of a variable", ""),
        ("env = { '' = 'x' }", "env.", "is no name of a variable", ""),
        ("env = { A = '$B' }", "env.A", "`$B` has no braces", "$$B"),
        ("env = { A = '${1}' }", "env.A", "`${…}` is no variable", "${VAR:-default}"),
        ("env = { A = '${B-x}' }", "env.A", "is no variable", ""),
        ("env = { A = '${B:-${C}}' }", "env.A", "the default of ${B} has a variable of its own", ""),
        ("user = 'no such user'", "user", "there is no user", ""),
        ("user = 'roto'", "user", 'there is no user "roto"', 'did you mean "root"?'),
        ("user = '0'", "user", "there is no user", "without quotes"),
        ("user = true", "user", "must be a name or a number, not a boolean", ""),
        ("group = 'nogruop'", "group", 'there is no group "nogruop"', 'did you mean "nogroup"?'),
        ("group = -1", "group", "-1 is no group's number", ""),
        ("capabilities = ['net_bindservice']", "capabilities", "is no capability", 'mean "net_bind_service"?'),
        ("capabilities = ['CAP_KIL']", "capabilities", '"CAP_KIL" is no capability', 'did you mean "kill"?'),
        ("capabilities = 'kill'", "capabilities", "must be a list of capabilities, not a string", "such as"),
        ("capabilities = [5]", "capabilities", "must be a string, not an integer", ""),
        ("capabilities = { ambint = [] }", "capabilities", '"ambint" is no set of', 'did you mean "ambient"?'),
        ("capabilities = { ambient = ['bfp'] }", "capabilities.ambient", '"bfp" is no capability', 'mean "bpf"?'),
        ("capabilities = { ambient = ['kill'], bounding = [] }", "capabilities", "bounding has not: kill", ""),
        ("ioprio = 'best-effort:8'", "ioprio", '"best-effort:8" is no I/O priority', '"idle"'),
        ("ioprio = 4", "ioprio", "must be a string, not an integer", ""),
        ("oom_score_adj = 1001", "oom_score_adj", "must be at most 1000", ""),
        ("cpu_affinity = []", "cpu_affinity", "[] names no CPUs, 0 to 8191", "such as"),
        ("cpu_affinity = ['0']", "cpu_affinity", '["0"] names no CPUs', "such as"),
        ("cpu_affinity = '0-'", "cpu_affinity", '"0-" names no CPUs', "such as"),
        ("cpu_affinity = [9000]", "cpu_affinity", "names no CPUs, 0 to 8191", ""),
        (f"cpu_affinity = [0x{'f' * 5000}]", "cpu_affinity", "names no CPUs, 0 to 8191", ""),
        ("cpu_affinity = 1", "cpu_affinity", "must be a list of numbers or a string, not an integer", ""),
        ("no_new_privs = 'yes'", "no_new_privs", "must be true or false", ""),
        ("extra_groups = 'adm'", "extra_groups", "must be a list of groups, not a string", ""),
        ("cap_add = ['kill']", "cap_add", "is no key", 'did you mean "capabilities"?'),
        ("umask = '9'", "umask", '"9" is no mask', ""),
        ("umask = '1777'", "umask", "is no mask", ""),
        ("rlimits = { NOFILE = 1 }", "rlimits.NOFILE", "is no resource limit", '"nofile"'),
        ("rlimits = { nofile = -1 }", "rlimits.nofile", "-1 is out of range", "unlimited"),
        ("rlimits = { nofile = '9' }", "rlimits.nofile", "must be an integer", "without quotes"),
        ("rlimits = { nofile = [1] }", "rlimits.nofile", "must be one value, or two", ""),
        ("rlimits = { nofile = ['unlimited', 3] }", "rlimits.nofile", "above the hard one", ""),
        ("rlimits = { cpu = 3 }", "rlimits.cpu", "3 has no unit", "3s"),
        ("rlimits = { zzz = 3 }", "rlimits.zzz", "is no resource limit", "known: as, core"),
        ("type = 'oneshot'\nrestart = 'always'", "restart", "would run a oneshot again and again", "on-failure"),
        ("success_exit_codes = []", "success_exit_codes", "is empty", ""),
        ("success_exit_codes = 0", "success_exit_codes", "must be a list of exit codes", ""),
        ("success_exit_codes = [true]", "success_exit_codes", "must be an integer, not a boolean", ""),
        ("requires = ['web']", "requires", "names the service itself", ""),
        ("requires = [1]", "requires", "each must be a string", ""),
        ("stop_signal = 'STOP'", "stop_signal", "STOP only pauses a process", "TERM"),
        ("stop_signal = 'term'", "stop_signal", '"term" is no signal', 'did you mean "TERM"?'),
        ("stop_signal = 'RTMIN+99'", "stop_signal", "is no signal", ""),
        ("grace = '-1s'", "grace", "is not a duration", ""),
        ("grace = ''", "grace", "is not a duration", ""),
        ("grace = true", "grace", "must be a duration", ""),
        ("backoff = '1s'", "backoff", "must be a table, not a string", ""),
        ("backoff.max = '1ms'", "backoff.then", "is longer than backoff.max", ""),
        ("backoff.factor = 0.5", "backoff.factor", "must be at least 1", ""),
        (f"nice = 0x{'f' * 5000}", "nice", "must be at most 19, not a number of more than 64 bits", ""),
        (f"grace = 0x{'f' * 5000}", "grace", "a number of more than 64 bits has no unit", ""),
        (f"log.cap = 0x{'f' * 5000}", "log.cap", "a number of more than 64 bits has no unit", ""),
        (f"user = 0x{'f' * 5000}", "user", "a number of more than 64 bits is no user's number", ""),
        (f"rlimits.nofile = 0x{'f' * 5000}", "rlimits.nofile", "a number of more than 64 bits is out of range", ""),
        (f"backoff.factor = {'9' * 400}", "backoff.factor", "must be at most 100, not a number of more", ""),
        ("backoff.factor = nan", "backoff.factor", "must be at least 1", ""),
        ("log.rotate = '1MB'", "log.rotate", "must be a table, not a string", "size, count"),
        ("log.rotate.count = 0", "log.rotate.count", "must be at least 1", ""),
        ("log.cap = '1MiB'", "log.cap", "1MiB is smaller than one file: log.rotate.size is 16MiB", ""),
        ("log.rotate.size = '1GiB'", "log.cap", "512MiB is smaller than one file: log.rotate.size is 1GiB", ""),
        ("log.rotate.size = '100MiB'", "log.cap", "less than what rotation keeps (900MiB)", "fit together"),
        ("nice = 1.0", "nice", "must be an integer, not a float", ""),
        ("start_limit = 1979-05-27", "start_limit", "must be an integer, not a date or time", ""),
    ],
)
def test_mistake(tmp_path, keys, key, message, hint):
    text = f"[service.web]\n{keys}\n" if "command" in keys else f"[service.web]\ncommand = 'x'\n{keys}\n"
    (found,) = problems(tmp_path, text)
    assert (found.service, found.key) == ("web", key)
    assert message in found.message
    assert hint in found.hint
    assert found.line >= 1


def test_a_terminal_is_its_own_stdin_and_one_stream(tmp_path):
    text = '[service.web]\ncommand = "x"\npty = true\nstdin = "pipe"\nlog.merge = false\n'
    found = [(p.key, p.message) for p in problems(tmp_path, text)]
    assert found == [("stdin", "is the terminal's where pty = true"), ("log.merge", "cannot be false where pty = true")]


def test_rotation_and_cap_that_were_both_given_are_meant(tmp_path):
    text = "[service.web]\ncommand = 'x'\nlog = { cap = '1MiB', rotate = { size = '512KiB' } }\n"
    assert not problems(tmp_path, text)


@pytest.mark.parametrize("key", sorted(LATER))
def test_keys_of_later_versions(tmp_path, key):
    (found,) = problems(tmp_path, f"[service.web]\ncommand = 'x'\n{key} = 1\n")
    assert (found.line, found.key, found.message) == (3, key, "is not in this version")


def test_words_of_others_lead_to_ours_and_none_is_ours():
    keys = set(keys_of(Service))
    assert set(OTHER_WORDS.values()) <= keys | set(keys_of(Group)) | {"defaults", "service"}
    assert not (set(OTHER_WORDS) | set(LATER)) & keys
    assert not set(OTHER_WORDS) & set(LATER)


@pytest.mark.parametrize("key", keys_of(Resources))
def test_a_limit_beside_its_table_leads_there(tmp_path, key):
    if key != "optional":
        (found,) = problems(tmp_path, f"[service.web]\ncommand = 'x'\n{key} = 1\n")
        assert (found.message, found.hint) == ("is no key", 'did you mean "resources"?')


@pytest.mark.parametrize("key", ["user", "group"])
def test_identity_is_roots_to_give(tmp_path, key, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    (found,) = problems(tmp_path, f"[service.web]\ncommand = 'x'\n{key} = 0\n")
    assert found.message == f"only root may choose the {key}"


def test_groups_are_roots_to_give(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        (found,) = problems(tmp_path, "[service.web]\ncommand = 'x'\nextra_groups = ['nogruop']\n")
        assert (found.message, found.hint) == ('there is no group "nogruop" on this machine', 'did you mean "nogroup"?')
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    for groups in ("['nogruop']", "[]"):
        (found,) = problems(tmp_path, f"[service.web]\ncommand = 'x'\nextra_groups = {groups}\n")
        assert found.message == "only root may choose the groups"
        assert "leave `extra_groups` out" in found.hint


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "letters, digits"), ("a b", "letters, digits"), ("ä", "letters, digits"), ("a/b", "letters, digits"),
        (".", "hidden"), ("..", "hidden"), (".a", "hidden"), ("-a", "option"), ("a@b", "incarnation"),
        ("a*", "patterns"), ("a?", "patterns"), ("a[1]", "patterns"), ("a:b", "a group"), ("a" * 65, "65 characters"),
        ("a\n", "letters, digits"),
    ],
)  # fmt: skip
def test_names_that_cannot_be(tmp_path, name, why):
    (found,) = problems(tmp_path, document({"service": {name: {"command": "x"}}}))
    assert found.service == name
    assert "cannot be the name of a service" in found.message
    assert why in found.hint
    assert str(found).isprintable()


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("", 0, "has no service", "[service.NAME]"),
        ("[service]\n", 0, "has no service", ""),
        ("[services.web]\ncommand = 'x'\n", 1, "is no table of this file", 'did you mean "service"?'),
        ("[program.web]\ncommand = 'x'\n", 1, "is no table of this file", 'did you mean "service"?'),
        ("[include]\nfiles = []\n", 1, "is not in this version", "conf.d"),
        ("service = 3\n", 1, "must be a table of services, not an integer", ""),
        ("[[service]]\nname = 'x'\n", 1, "must be a table of services, not an array", ""),
        ("[service]\ncommand = 'x'\n", 2, "must be a table, not a string", "[service.NAME]"),
        ("\n[service]\nweb = 'x'\n", 3, "must be a table, not a string", "[service.web]"),
        ("supervisor = []\n[service.a]\ncommand = 'x'\n", 1, "must be a table, not an array", ""),
        ("a = \n", 1, "is not TOML: invalid value", ""),
        ("[service.web]\ncommand = 'x'\n[service.web]\n", 3, "is not TOML: cannot declare", "stands above"),
        ("[service.web]\ncommand = 'x'\ncommand = 'y'\n", 3, "is not TOML: cannot overwrite", "stands above"),
        ("a = {\n b = 1 }\n", 1, "is not TOML", ""),
        ("a = {b = 1,\n c = 1 }\n", 1, "is not TOML", ""),
        ("a = [\n", 1, "is not TOML: invalid value at the end of the file", ""),
        ("[program:web]\ncommand=x\n", 1, "is not TOML", ""),
        ("a = " + "[" * 20_000, 0, "is nested too deeply", ""),
        ("a = " + "9" * 20_000, 0, "is not TOML", ""),
        ("a = 2024-13-45\n", 1, "is not TOML", ""),
        ("a = '\0'\n", 1, "is not TOML", ""),
        (b"a = 1\nb = '\xff'\n", 2, "is not UTF-8: byte 0xff", ""),
    ],
)
def test_mistake_of_the_file_as_such(tmp_path, text, line, message, hint):
    (found,) = problems(tmp_path, text)
    assert message in found.message
    assert hint in found.hint
    assert found.line == line


def test_mistakes_of_the_graph_name_its_path(tmp_path):
    names = "abcdef"
    needs = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["f"], "f": []}
    text = "".join(f"[service.{n}]\ncommand = 'x'\nrequires = {needs[n]}\n" for n in names) + "after = ['e']\n"
    found = problems(tmp_path, text)
    assert [(each.line, each.service, each.key) for each in found] == [(3, "a", "requires"), (15, "e", "requires")]
    assert [each.message.partition(": ")[2] for each in found] == ["a -> b -> c -> a", "e -> f -> e"]


def test_value_that_no_message_may_show(tmp_path):
    """What stands in `env` may be a secret, and a control character a command to the terminal."""
    text = "[service.web]\ncommand = 'x'\nenv = { A = 4711, B = '${hush', C = '${A.hush}' }\n"
    text += 'restart = "\\u001b[2J"\n"\\u0007" = 1\n'
    found = problems(tmp_path, text)
    assert len(found) == 5
    assert all(str(each).isprintable() for each in found)
    assert not any("4711" in str(each) or "hush" in str(each) for each in found)


def test_variable_that_is_not_text(tmp_path):
    """accepted.json could not hold it."""
    found = problems(tmp_path, "[service.web]\ncommand = 'x'\nenv = { A = '${B}' }\n", B="\udcff")
    assert [each.message for each in found] == ["the value of the variable B is not UTF-8"]


# ---- nothing else comes out

KEYS = st.sampled_from(sorted(set(keys_of(Service)) | {"rotate", "size", "first", "nofile", "core", "cpu", "ready"}))
STRINGS = TEXT | st.sampled_from(["10s", "1MB", "web", "db", "${A}", "on-failure", "TERM", "unlimited", "a | b", "'"])
VALUES = GARBAGE | st.recursive(
    STRINGS | st.booleans() | st.integers(-3, 300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=4,
)
SERVICES = st.dictionaries(st.sampled_from(["web", "db", "x"]) | TEXT, st.dictionaries(KEYS | TEXT, VALUES) | VALUES)
ANY = settings(max_examples=150, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@given(SERVICES | GARBAGE, st.dictionaries(st.sampled_from(["run_dir", "start_budget"]) | TEXT, VALUES) | VALUES)
@ANY
def test_any_toml_is_a_configuration_or_a_config_error(tmp_path, services, supervisor):
    path = tmp_path / "holdfast.toml"
    path.write_bytes(document({"service": services, "supervisor": supervisor}).encode())
    try:
        config = load(str(path), environ={"A": "1"})
    except ConfigError as error:
        assert error.errors
        assert all(str(each).isprintable() and each.message for each in error.errors)
    else:
        assert decode(encode(config)) == config
        assert sorted(graph.start_order(config.services)) == sorted(config.services)


@given(st.binary() | st.text(alphabet="[]{}=\"'\n#.,a1\\x0 servic", max_size=60).map(str.encode))
@ANY
def test_any_bytes_are_a_config_error(tmp_path, data):
    path = tmp_path / "holdfast.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load(str(path), environ={})


# ---- files that are none, or that others could have written


def refusal(path: pathlib.Path) -> str:
    with pytest.raises(ConfigError) as error:
        load(str(path), environ={})
    (found,) = error.value.errors
    assert (found.line, found.service, found.key) == (0, "", "")
    return found.message


GOOD = "[service.web]\ncommand = 'x'\n"


def test_files_that_are_none(tmp_path):
    assert refusal(tmp_path) == "is a directory, not a file"
    assert refusal(tmp_path / "missing") == "there is no such file"
    assert refusal(tmp_path / "missing/x") == "there is no such file"
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == "is not a regular file"  # and nobody waits for a writer
    assert refusal(pathlib.Path("/dev/null")) == "is not a regular file"
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "loop").startswith("cannot be read: Too many levels")
    assert refusal(tmp_path / ("x" * 300)).startswith("cannot be read: File name too long")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(files.FILE_MAX + 1)
    assert refusal(tmp_path / "large") == f"is larger than {files.FILE_MAX} bytes"


@pytest.mark.skipif(root, reason="root may read everything")
def test_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "x"
    path.write_text(GOOD)
    path.chmod(0)
    assert refusal(path) == "cannot be read: Permission denied"


@needs_root
def test_root_refuses_a_file_that_everybody_may_write(tmp_path):
    path = tmp_path / "x"
    path.write_text(GOOD)
    path.chmod(0o666)
    assert "is writable by everybody" in refusal(path)
    path.chmod(0o664)
    assert load(str(path), environ={}).services


@needs_root
@pytest.mark.parametrize("where", ["shared", "above"])
def test_root_refuses_a_directory_that_everybody_may_write(tmp_path, where):
    shared = tmp_path / "shared"
    (shared / "sub").mkdir(parents=True)
    path = shared / "x" if where == "shared" else shared / "sub/x"
    path.write_text(GOOD)
    shared.chmod(0o777)
    assert f"lies in {shared}, where everybody may replace it" in refusal(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert f"lies in {shared}" in refusal(link)
    (tmp_path / "around").symlink_to("shared")
    assert f"lies in {shared}" in refusal(tmp_path / "around" / path.relative_to(shared))
    assert f"lies in {shared}" in refusal(shared / "sub/../x" if where == "shared" else path)
    shared.chmod(0o1777)
    assert load(str(path), environ={}).services
    assert load(str(link), environ={}).services


@needs_root
def test_root_refuses_a_link_that_everybody_may_replace(tmp_path):
    """The file is safe, the way to it is not."""
    shared, safe = tmp_path / "shared", tmp_path / "safe"
    shared.mkdir()
    safe.write_text(GOOD)
    (shared / "x").symlink_to(safe)
    assert load(str(shared / "x"), environ={}).services
    shared.chmod(0o777)
    assert f"lies in {shared}" in refusal(shared / "x")


@needs_root
@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_root_refuses_what_others_have_put_into_a_sticky_directory(tmp_path, what):
    """Else /tmp/holdfast.toml, found upward from a directory in /tmp, would be anybody's way to root."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "own").mkdir()
    target = {"file": shared / "x", "directory": shared / "sub/x", "link": tmp_path / "own/x"}[what]
    target.parent.mkdir(exist_ok=True)
    target.write_text(GOOD)
    path = target
    if what == "link":
        path = shared / "link"
        path.symlink_to(target)
    entry = {"file": path, "directory": path.parent, "link": path}[what]
    assert load(str(path), environ={}).services
    os.chown(entry, 65534, 65534, follow_symlinks=False)
    said = refusal(path)  # of a link the kernel itself says so first, with fs.protected_symlinks
    assert f"{entry} belongs to user 65534" in said or (what == "link" and said == "cannot be read: Permission denied")


@needs_root
def test_root_reads_what_belongs_to_another_in_his_own_directory(tmp_path):
    path = tmp_path / "his/x"
    path.parent.mkdir()
    path.write_text(GOOD)
    for each in (path.parent, path):
        os.chown(each, 65534, 65534)
    assert load(str(path), environ={}).services


@needs_root
def test_file_that_is_replaced_between_open_and_check_is_refused(tmp_path, monkeypatch):
    """What was checked is what is read: by descriptor."""
    path = tmp_path / "x"
    path.write_text(GOOD)
    real = os.fstat

    def replaced(fd: int) -> os.stat_result:
        (tmp_path / "new").write_text(GOOD)
        (tmp_path / "new").rename(path)
        return real(fd)

    monkeypatch.setattr(os, "fstat", replaced)
    assert refusal(path) == "was replaced while it was read"


def test_others_read_what_they_are_given(tmp_path, monkeypatch):
    """Whoever is not root risks his own rights alone, and may have reasons."""
    path = tmp_path / "x"
    path.write_text(GOOD)
    path.chmod(0o666)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert load(str(path), environ={}).services


@pytest.mark.parametrize("name", ["holdfast.log", "holdfast.log.1"])
def test_the_place_of_our_own_log_is_no_service(tmp_path, name):
    file = tmp_path / "holdfast.toml"
    file.write_text(f'[service."{name}"]\ncommand = "true"\n')
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    assert "own log" in str(caught.value)
