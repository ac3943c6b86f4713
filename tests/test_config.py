"""Configuration that is right: what each key becomes, variables, units, places, order, and what `check` shows."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tomllib
from importlib import util

import pytest
from helpers_config import document, loaded, problems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.config import forms, graph, model, places, positions, units
from holdfast.config.env_file import read_env_file
from holdfast.config.load import ConfigError, find, load
from holdfast.config.model import Backoff, Config, Log, Service, StartBudget, Supervisor, decode, encode
from holdfast.config.starter import STARTER
from holdfast.config.vars import expand

ROOT = pathlib.Path(__file__).resolve().parent.parent
WEB = '[service.web]\ncommand = ["sleep", "1h"]\n'
QUICK = settings(
    max_examples=150, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may choose a user")


def service(directory: pathlib.Path, keys: str, **environ: str) -> Service:
    return loaded(directory, f'[service.web]\ncommand = "x"\n{keys}\n', **environ).services["web"]


# ---- values


def test_least_configuration_has_the_defaults_of_the_table(tmp_path):
    config = loaded(tmp_path, WEB)
    assert config.services == {"web": Service("web", ("sleep", "1h"), cwd=str(tmp_path))}
    assert config.path == str(tmp_path / "holdfast.toml")
    spec = config.services["web"]
    assert (spec.restart, spec.grace, spec.on_owner_loss, spec.start_limit) == ("on-failure", 10.0, "keep", 10)
    assert spec.backoff == Backoff(0.0, 0.1, 2.0, 60.0, 0.1, 1.0)
    assert (spec.type, spec.stop_signal, spec.stop_scope, spec.success_exit_codes) == ("simple", 15, "group", (0,))
    assert (spec.log.rotate_size, spec.log.rotate_count, spec.log.merge) == (16 << 20, 8, True)


def test_default_cap_is_above_what_default_rotation_keeps():
    log = Log()
    assert log.cap > 2 * log.rotate_size * (log.rotate_count + 1)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("cwd = 'sub/../data'", "cwd", "{dir}/data"),
        ("cwd = '/srv/'", "cwd", "/srv"),
        ("env = { A = '1', B = '' }", "env", {"A": "1", "B": ""}),
        ("env.A = '1'", "env", {"A": "1"}),
        ("umask = '027'", "umask", 0o27),
        ("umask = '0777'", "umask", 0o777),
        ("nice = -20", "nice", -20),
        ("type = 'notify'", "type", "notify"),
        ("restart = 'unless-stopped'", "restart", "unless-stopped"),
        ("start_limit = 0", "start_limit", 0),
        ("success_exit_codes = [0, 143, 255, 0]", "success_exit_codes", (0, 143, 255)),
        ("stop_signal = 'SIGUSR1'", "stop_signal", signal.SIGUSR1),
        ("stop_signal = 'QUIT'", "stop_signal", signal.SIGQUIT),
        ("stop_signal = 'RTMIN+3'", "stop_signal", signal.SIGRTMIN + 3),
        ("stop_scope = 'tree'", "stop_scope", "tree"),
        ("grace = '1.5m'", "grace", 90.0),
        ("grace = '0s'", "grace", 0.0),
        ("essential = true", "essential", True),
        ("on_owner_loss = 'kill'", "on_owner_loss", "kill"),
        ("backoff = { first = '1s', factor = 3 }", "backoff", Backoff(first=1.0, factor=3.0)),
        ("backoff.max = '10s'", "backoff", Backoff(max=10.0)),
        ("log = { rotate = { size = '1MB', count = 2 }, cap = '1GB' }", "log", Log(10**6, 2, 10**9)),
        ("log.rotate.size = '64KiB'", "log", Log(rotate_size=1 << 16)),
        ("log = { timestamps = true, merge = false }", "log", Log(timestamps=True, merge=False)),
        ("rlimits = { nofile = 9, nproc = [1, 'unlimited'] }", "rlimits", {"nofile": (9, 9), "nproc": (1, -1)}),
        ("capabilities = ['CAP_KILL', 'bpf']", "capabilities", dict.fromkeys(("ambient", "bounding"), ("kill", "bpf"))),
        ("capabilities = { ambient = [] }", "capabilities", {"ambient": ()}),
        ("no_new_privs = true", "no_new_privs", True),
        ("ioprio = 'idle'", "ioprio", "idle"),
        ("oom_score_adj = -1000", "oom_score_adj", -1000),
        ("cpu_affinity = '2,0-1'", "cpu_affinity", (0, 1, 2)),
        ("cpu_affinity = [3, 1, 3]", "cpu_affinity", (1, 3)),
        ("rlimits = { core = '0KB', as = '1GiB' }", "rlimits", {"core": (0, 0), "as": (1 << 30, 1 << 30)}),
        ("rlimits = { cpu = ['1m', '2m'], rttime = '1ms' }", "rlimits", {"cpu": (60, 120), "rttime": (1000, 1000)}),
    ],
)
def test_value(tmp_path, text, field, value):
    if isinstance(value, str):
        value = value.replace("{dir}", str(tmp_path))
    assert getattr(service(tmp_path, text), field) == value


def test_every_limit_is_known_to_python():
    assert all(hasattr(resource, f"RLIMIT_{name.upper()}") for name in forms.LIMITS)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ('"sleep 1"', ("sleep", "1")),
        ("""'sh -c "exit 3" a\\ b'""", ("sh", "-c", "exit 3", "a b")),
        ('["a b", "", "|"]', ("a b", "", "|")),
        ('"echo a#b c"', ("echo", "a#b", "c")),
        ('"${WORDS} x"', ("two words", "x")),
        ("""["sh", "-c", "kill $$$$; echo $1 $? $"]""", ("sh", "-c", "kill $$; echo $1 $? $")),
    ],
)
def test_command(tmp_path, command, words):
    text = f"[service.web]\ncommand = {command}\n"
    assert loaded(tmp_path, text, WORDS="two words").services["web"].command == words


def test_command_of_a_shell_stays_as_it_is(tmp_path):
    """Its variables are the shell's: an unset one is no mistake, `$$` is its pid."""
    text = "[service.web]\nshell = true\ncommand = 'echo ${NOPE} $HOME $$ | cat > x'\n"
    spec = loaded(tmp_path, text).services["web"]
    assert spec.command == ("echo ${NOPE} $HOME $$ | cat > x",)
    assert spec.shell


@needs_root
def test_user_and_group_by_name_and_number(tmp_path):
    spec = service(tmp_path, "user = 'nobody'\ngroup = 4242")
    assert (spec.user, spec.group) == ("nobody", 4242)
    assert service(tmp_path, "user = '${WHO}'", WHO="nobody").user == "nobody"


def test_supervisor(tmp_path):
    text = '[supervisor]\nrun_dir = "run"\nlog_dir = "/l"\nstate_dir = "${S}/x"\nstart_budget.per_second = 2\n'
    config = loaded(tmp_path, text + WEB, S="/s")
    assert config.supervisor == Supervisor(f"{tmp_path}/run", "/l", "/s/x", StartBudget(50, 2.0))


def test_services_keep_the_order_of_the_file(tmp_path):
    text = "".join(f"[service.'{name}']\ncommand = 'x'\n" for name in ("z", "a", "_m", "0.b-c"))
    assert list(loaded(tmp_path, text).services) == ["z", "a", "_m", "0.b-c"]


def test_relative_path_of_the_file_itself(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x.toml").write_text(WEB + "cwd = 'data'\n")
    monkeypatch.chdir(tmp_path)
    config = load("sub/x.toml", environ={})
    assert config.services["web"].cwd == str(tmp_path / "sub/data")
    assert config.path == str(tmp_path / "sub/x.toml")


def test_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "holdfast.toml"
    path.write_bytes(b"\xef\xbb\xbf" + WEB.replace("\n", "\r\n").encode())
    assert "web" in load(str(path), environ={}).services


# ---- variables


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${A}", "1"),
        ("x${A}y${A}", "x1y1"),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${NOPE:-}", ""),
        ("${NOPE:-a b:-c}", "a b:-c"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$$A", "$$A"),
        ("$1 $? $ $", "$1 $? $ $"),
        ("${NOT_AGAIN}", "${A}"),
    ],
)
def test_variables(text, value):
    assert expand(text, {"A": "1", "EMPTY": "", "NOT_AGAIN": "${A}"}) == value


@given(st.text(), st.text(alphabet="ABC${}:-_ $", max_size=30))
@QUICK
def test_variables_of_any_text(value, text):
    """What `$$` protects comes back; anything else is a value or a ValueError with words."""
    assert expand(value.replace("$", "$$"), {}) == value
    try:
        expand(text, {"A": value})
    except ValueError as error:
        assert str(error)


# ---- units


@given(st.integers(0, 10**10))
@QUICK
def test_durations_and_sizes_are_read_as_they_are_written(number):
    assert units.milliseconds(units.duration_text(number / 1000)) == number
    assert units.size(units.size_text(number)) == number


@given(st.integers(0, 10**5), st.sampled_from(["ms", "s", "m", "h"]))
@QUICK
def test_duration_is_number_times_unit(number, unit):
    assert units.milliseconds(f"{number}{unit}") == number * {"ms": 1, "s": 1000, "m": 60000, "h": 3600000}[unit]


@pytest.mark.parametrize(
    ("text", "number"),
    [("64KB", 64000), ("1.5MB", 1500000), ("1GB", 10**9), ("1KiB", 1024), ("0.5MiB", 1 << 19), ("2GiB", 2 << 30)],
)
def test_size(text, number):
    assert units.size(text) == number


@given(st.text(alphabet="0123456789.eKMGiBsmh -", max_size=40))
@QUICK
def test_units_of_any_text_are_numbers_or_words(text):
    for read in (units.milliseconds, units.size):
        try:
            assert read(text) >= 0
        except ValueError as error:
            assert repr(text) in str(error)


# ---- the accepted form

NAMES = st.from_regex(re.compile(model.SERVICE_NAME, re.A), fullmatch=True)
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SPECS = st.builds(
    Service,
    name=NAMES,
    command=st.lists(TEXT, min_size=1).map(tuple),
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    user=st.none() | TEXT | st.integers(0, 2**32 - 2),
    rlimits=st.dictionaries(st.sampled_from(forms.LIMITS), st.tuples(st.integers(-1, 2**63 - 1), st.integers(-1, 9))),
    backoff=st.builds(Backoff, factor=st.floats(1, 100)),
    grace=st.floats(0, 1e7),
    requires=st.lists(NAMES, max_size=3).map(tuple),
    stop_signal=st.integers(1, 64),
)


@given(st.lists(SPECS, max_size=4))
@QUICK
def test_what_was_accepted_comes_back(specs):
    config = Config("/x", Supervisor("/r", "/l", "/s"), {spec.name: spec for spec in specs})
    again = decode(encode(config))
    assert again == config
    assert list(again.services) == list(config.services)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"path": 1}', b"[" * 100_000])
def test_what_is_no_accepted_form_is_a_value_error(data):
    with pytest.raises(ValueError, match="not an accepted configuration"):
        decode(data)


# ---- order


def graph_of(**requires: str) -> dict[str, Service]:
    return {name: Service(name, ("x",), requires=tuple(needs.split())) for name, needs in requires.items()}


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=80))
@QUICK
def test_start_order_has_all_requirements_first(pairs):
    """Edges from the higher to the lower number have no cycle."""
    needs: dict[str, set[str]] = {f"s{n}": set() for n in range(30)}
    for a, b in pairs:
        if a != b:
            needs[f"s{max(a, b)}"].add(f"s{min(a, b)}")
    services = graph_of(**{name: " ".join(sorted(each)) for name, each in reversed(needs.items())})
    order = graph.start_order(services)
    assert sorted(order) == sorted(needs)
    assert all(order.index(other) < order.index(name) for name, each in needs.items() for other in each)
    assert graph.cycles(services) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20))
@QUICK
def test_cycles_are_paths_of_the_graph(pairs):
    needs: dict[str, set[str]] = {f"s{n}": set() for n in range(6)}
    for a, b in pairs:
        if a != b:
            needs[f"s{a}"].add(f"s{b}")
    found = graph.cycles(graph_of(**{name: " ".join(sorted(each)) for name, each in needs.items()}))
    for path in found:
        assert path[0] == path[-1] == min(path)
        assert len(set(path)) == len(path) - 1
        assert all(there in needs[here] for here, there in itertools.pairwise(path))
    for path in found:  # without one edge of each, nothing is circular
        needs[path[-2]].discard(path[-1])
    assert graph.cycles(graph_of(**{name: " ".join(sorted(each)) for name, each in needs.items()})) == []


# ---- lines


def test_lines_of_keys():
    text = (
        '# comment = "x"\n[a]\nb = [\n  [1],\n  "]", # ]\n]\nc = """\n[no]\nd = 1\n"""\n'
        "e = { f = 1, g.h = { i = '}' } }\n[ \"x.y\" . z ]\nk.l = 2 \n'quoted = ' = 1\n[[t]]\nu = '''\n'''\n"
        "v = 2024-01-01\n"
    )
    tomllib.loads(text)
    lines = positions.lines(text)
    assert lines == {
        ("a",): 2, ("a", "b"): 3, ("a", "c"): 7, ("a", "e"): 11, ("a", "e", "f"): 11, ("a", "e", "g"): 11,
        ("a", "e", "g", "h"): 11, ("a", "e", "g", "h", "i"): 11, ("x.y",): 12, ("x.y", "z"): 12,
        ("x.y", "z", "k"): 13, ("x.y", "z", "k", "l"): 13, ("x.y", "z", "quoted = "): 14, ("t",): 15, ("t", "u"): 16,
        ("t", "v"): 18,
    }  # fmt: skip
    assert positions.line_of(lines, ("a", "b", "zz")) == 3
    assert positions.line_of(lines, ("nowhere",)) == 0


GARBAGE = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.dates() | st.times() | st.datetimes() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(TEXT, GARBAGE, max_size=6))
@QUICK
def test_lines_of_any_document(data):
    """Keys of the top stand on the lines on which they were written."""
    text = document(data)
    assert set(tomllib.loads(text)) == set(data)
    lines = positions.lines(text)
    assert [lines[key,] for key in data] == list(range(1, len(data) + 1))


# ---- places

NOBODY = {"HOME": "/home/me"}


def place(monkeypatch, environ: dict[str, str], uid: int = 1000) -> list[str]:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    return [each(environ) for each in (places.default_run_dir, places.default_state_dir, places.default_log_dir)]


def test_places_of_root(monkeypatch):
    given = {"HOME": "/root", "XDG_RUNTIME_DIR": "/x", "XDG_STATE_HOME": "/y"}
    assert place(monkeypatch, given, uid=0) == ["/run/holdfast", "/var/lib/holdfast", "/var/log/holdfast"]


def test_places_of_others(monkeypatch):
    state = "/home/me/.local/state/holdfast"
    assert place(monkeypatch, NOBODY) == [f"{state}/run", state, f"{state}/log"]
    given = NOBODY | {"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_STATE_HOME": "/s"}
    assert place(monkeypatch, given) == ["/run/user/1000/holdfast", "/s/holdfast", "/s/holdfast/log"]
    relative = NOBODY | {"XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": "s"}  # to be ignored, says the specification
    assert place(monkeypatch, relative) == [f"{state}/run", state, f"{state}/log"]


@pytest.mark.parametrize("uid", [0, 1000])
def test_places_of_systemd_come_first(monkeypatch, uid):
    given = NOBODY | {"RUNTIME_DIRECTORY": "/run/a:/run/b", "STATE_DIRECTORY": "/st", "LOGS_DIRECTORY": "/lg"}
    assert place(monkeypatch, given, uid) == ["/run/a", "/st", "/lg"]


def test_find_looks_upward(tmp_path):
    deep = tmp_path / "a/b"
    deep.mkdir(parents=True)
    (tmp_path / "a/holdfast.toml").mkdir()  # a directory is no configuration
    assert find(str(deep)) is None
    (tmp_path / "holdfast.toml").touch()
    assert find(str(deep)) == str(tmp_path / "holdfast.toml")
    (deep / "holdfast.toml").touch()
    assert find(str(deep)) == str(deep / "holdfast.toml")


def test_run_dir_of_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_RUNTIME_DIR": "/run/me", "RUNTIME_DIRECTORY": "/run/unit", "WHERE": "there"}
    assert places.run_dir_for(None, None, environ) == "/run/unit"
    (tmp_path / "holdfast.toml").write_text('[supervisor]\nrun_dir = "here"\n' + WEB)
    other = tmp_path / "other.toml"
    other.write_text('[supervisor]\nrun_dir = "${WHERE}"\n')
    assert places.run_dir_for(None, None, environ) == str(tmp_path / "here")
    assert places.run_dir_for("other.toml", None, environ) == str(tmp_path / "there")
    given = environ | {"HOLDFAST_RUN_DIR": "/by/env"}
    assert places.run_dir_for(None, None, given) == "/by/env"
    assert places.run_dir_for(str(other), None, given) == str(tmp_path / "there")
    assert places.run_dir_for(str(other), "flag", given) == str(tmp_path / "flag")
    other.write_text(WEB)
    assert places.run_dir_for(str(other), None, environ) == "/run/unit"
    assert places.control_path("/x") == "/x/control"


@pytest.mark.parametrize("text", ["run_dir = [", "[supervisor]\nrun_dir = 3", "supervisor = 1 # run_dir", None])
def test_run_dir_of_a_file_that_does_not_say_it(tmp_path, text):
    path = tmp_path / "holdfast.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"holdfast\.toml: "):
        places.run_dir_for(str(path), None, {})


def test_places_load_nothing_heavy(tmp_path):
    """`status` passes here, and has a tenth of a second for everything."""
    (tmp_path / "holdfast.toml").write_text(WEB)
    package = util.find_spec("holdfast")
    assert package
    script = (
        "import os, sys; known = set(sys.modules); sys.path.insert(0, sys.argv[1]);"
        "from holdfast.config import places; places.run_dir_for(None, None, {});"
        "print(*sorted(set(sys.modules) - known))"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(pathlib.Path(str(package.origin)).parent.parent)]
    names = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert set(names) <= {
        "__future__", "stat", "holdfast", "holdfast.config", "holdfast.config.files", "holdfast.config.places"
    }  # fmt: skip


# ---- documents, starter file, commands


def test_reference_is_what_the_model_says():
    command = [sys.executable, str(ROOT / "tools/config_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def fenced(page: str) -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```$", (ROOT / page).read_text(), flags=re.M | re.S)


def test_example_of_the_reference_loads_and_is_complete(tmp_path):
    text = fenced("docs/configuration.md")[0]
    config = loaded(tmp_path, text)
    assert list(config.services) == ["migrate", "db", "web-1", "web-2", "cache", "report", "backup"]
    assert config.services["web-2"].env["GREETING"] == "costs $5"
    used = {key for table in tomllib.loads(text)["service"].values() for key in table}
    assert used == set(model.keys_of(Service)) - {"user", "group", "extra_groups", "capabilities"}  # those are root's


@pytest.mark.parametrize("text", [*fenced("docs/configuration.md"), *fenced("docs/terminal.md")])
def test_every_example_of_the_reference_loads(tmp_path, text):
    assert loaded(tmp_path, text).services


def test_example_of_an_env_file_is_one(tmp_path):
    page = (ROOT / "docs/configuration.md").read_text()
    (text,) = re.findall(r"^```sh\n(# web\.env\n.*?)^```$", page, flags=re.M | re.S)
    (tmp_path / "web.env").write_text(text)
    values = {"PORT": "8080", "GREETING": 'said "hello"', "PASSWORD": "anything $but a single quote\\"}
    assert read_env_file(str(tmp_path / "web.env")) == values


def test_messages_of_the_reference_are_what_is_printed(tmp_path):
    page = (ROOT / "docs/configuration.md").read_text()
    shown = re.findall(r"^holdfast\.toml:\d+: .*$", page, flags=re.M)
    text = "[service.db]\ncommand = 'x'\n[service.web]\ngrace = 10\nrequires = ['bd']\ncommand = 'x'\n"
    assert [str(each).removeprefix(f"{tmp_path}/") for each in problems(tmp_path, text)] == shown


def holdfast(*words: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holdfast", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=60)


def test_init_writes_a_file_that_check_accepts_and_never_overwrites(tmp_path):
    first = holdfast("init", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "holdfast.toml"
    assert path.read_text() == STARTER
    path.write_text(STARTER + "# mine\n")
    second = holdfast("init", cwd=tmp_path)
    assert second.returncode == 1
    assert "is there already" in second.stderr
    assert path.read_text() == STARTER + "# mine\n"
    checked = holdfast("check", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    lines = checked.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["SERVICE", "prepare", "clock", "worker"]
    assert lines[-1] == "holdfast.toml: 3 services, no mistakes"
    assert holdfast("init", "no/such/x.toml", cwd=tmp_path).returncode == 1


def test_commented_keys_of_the_starter_file_are_right(tmp_path):
    """Each example that is commented out can be taken in."""
    text = re.sub(r"^# (\w+ = )", r"\1", STARTER, flags=re.M).replace('user = "www-data"', "")
    taken = loaded(tmp_path, text).services["clock"]
    assert taken == Service(
        "clock", ("tail", "-f", "/dev/null"), cwd=str(tmp_path), env={"PORT": "8080"}, requires=("prepare",),
        essential=True,
    )  # what it shows are the defaults  # fmt: skip


def test_check_prints_the_order_as_json_without_values_of_env(tmp_path):
    text = WEB + "requires = ['db']\nenv = { SECRET = 'hush' }\n[service.db]\ncommand = 'x'\n"
    (tmp_path / "c.toml").write_text(text)
    done = holdfast("check", "-c", "c.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert (result["valid"], result["errors"], result["file"]) == (True, [], "c.toml")
    assert [each["name"] for each in result["services"]] == ["db", "web"]
    assert result["services"][1]["env"] == ["SECRET"]
    assert "hush" not in done.stdout


def test_check_of_a_bad_file(tmp_path):
    (tmp_path / "holdfast.toml").write_text(WEB + "grace = 3\nkind = 1\n")
    done = holdfast("check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert [line.split(": ")[:3] for line in done.stderr.splitlines()] == [
        ["holdfast.toml:3", "service web", "grace"],
        ["holdfast.toml:4", "service web", "kind"],
    ]
    result = json.loads(holdfast("check", "--json", cwd=tmp_path).stdout)
    assert not result["valid"]
    assert [(each["line"], each["service"], each["key"]) for each in result["errors"]] == [
        (3, "web", "grace"), (4, "web", "kind")
    ]  # fmt: skip


def test_check_without_a_file(tmp_path):
    missing = holdfast("check", "-c", "none.toml", cwd=tmp_path)
    assert missing.returncode == 78
    assert missing.stderr == "none.toml: there is no such file (`holdfast init` writes one)\n"
