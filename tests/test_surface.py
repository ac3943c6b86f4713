"""The surface: public names, what an import costs in modules, the direction of imports, the size of files."""

from __future__ import annotations

import ast
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

import holdfast

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "holdfast"
PYTHON_FILES = sorted(SOURCE.rglob("*.py"))

# Who may import whom: a module may import from its own layer and from those in its set.
LAYERS = {
    "process": set(),
    "config": {"process"},  # how capabilities, priorities and CPUs are written: both take them
    "engine": {"config"},  # its specs
    "daemon": {"process", "config", "engine"},
    "control": {"process", "config", "engine", "daemon"},
    # config.places, which finds the socket, config.holder: who should answer there, process.socket_path
    "client": {"config", "process"},
    "cli": {"process", "config", "engine", "daemon", "control", "client", ""},
    "web": {"control"},
    "compat": {"config", "control"},
    "aio": {"process"},
    "": {"process"},  # the package itself: the public names
}
# Modules of the package's own folder that belong to a layer.
TOP = {"__main__": "cli", "client": "client", "connection": "client"}

# What each layer may import from outside the standard library.
THIRD_PARTY = {
    "process": set(),
    "": set(),
    "aio": {"anyio"},
    "config": {"cronsim", "msgspec"},
    "engine": {"cronsim", "msgspec"},
    "daemon": {"msgspec"},
    "control": {"msgspec", "starlette", "uvicorn"},
    "client": set(),
    "cli": {"click", "msgspec"},
}

LINES_MAX = 500
# Longer files: path -> why it is in one piece.
LONGER: dict[str, str] = {}


# ---- public names


def order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_all_is_what_the_design_froze():
    frozen = (
        "run capture pipeline spawn attach forward_waits Process Popen Runner CompletedProcess CompletedPipeline "
        "CalledProcessError TimeoutExpired SpawnError KeeperLost ExitStatus StopReport PIPE DEVNULL STDOUT"
    )
    values_inside_them = {"Member", "Usage"}
    assert set(holdfast.__all__) == set(frozen.split()) | values_inside_them


def test_all_is_sorted_and_every_name_is_there():
    assert list(holdfast.__all__) == sorted(holdfast.__all__, key=order)
    assert len(set(holdfast.__all__)) == len(holdfast.__all__)
    for name in holdfast.__all__:
        assert getattr(holdfast, name) is not None
    assert set(dir(holdfast)) == {*holdfast.__all__, "__version__"}
    scope: dict[str, object] = {}
    exec("from holdfast import *", scope)
    assert set(holdfast.__all__) <= set(scope)


def test_unknown_names_are_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'holdfast' has no attribute 'Popenn'"):
        holdfast.Popenn  # noqa: B018


def test_type_checkers_see_the_names_that_run_time_gives():
    """The lazy table, the `if TYPE_CHECKING` imports and __all__ are three lists of the same names."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    static = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            assert node.module is not None
            static.update({alias.name: node.module.removeprefix("process.") for alias in node.names})
    lazy = {name: home for home, names in holdfast._HOMES.items() for name in names}
    assert static == lazy
    assert set(lazy) == set(holdfast.__all__)


def test_public_classes_name_the_package_in_their_documentation():
    for name in holdfast.__all__:
        value = getattr(holdfast, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.startswith("holdfast."), name
            assert value.__name__ == name


def public_members():
    for name in holdfast.__all__:
        value = getattr(holdfast, name)
        if inspect.isclass(value):
            yield name, value
            for attribute, member in vars(value).items():
                if attribute.startswith("_"):
                    continue
                if isinstance(member, property):
                    yield f"{name}.{attribute}", member.fget
                elif inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)):
                    yield f"{name}.{attribute}", getattr(member, "__func__", member)
        elif inspect.isfunction(value):
            yield name, value


def test_everything_public_is_documented():
    names = dict(public_members())
    assert len(names) > 30  # the walk itself works
    missing = [name for name, value in names.items() if not (value.__doc__ or "").strip()]
    assert not missing
    for constant in (name for name in holdfast.__all__ if name.isupper()):
        assert re.search(rf"\b{constant}\b", holdfast.spawn.__doc__ or ""), f"spawn's documentation lacks {constant}"


def test_every_option_of_spawn_is_documented():
    from holdfast.process.options import make_plan

    documented = holdfast.spawn.__doc__ or ""
    for option in inspect.signature(make_plan).parameters:
        if option not in ("args", "listen_fds", "cgroups", "restore_signals"):  # for the supervisor, and for Popen
            assert re.search(rf"`{option}\b", documented), f"spawn's documentation lacks {option}"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    meson = re.search(r"version: '([^']+)'", (ROOT / "meson.build").read_text())
    assert meson
    assert holdfast.__version__ == metadata.version("holdfast") == project == meson[1]


# ---- what an import loads

LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
known = set(sys.modules)
import holdfast
light = set(sys.modules) - known
for name in holdfast.__all__:
    if name not in ("Popen", "forward_waits"):  # a subclass of the standard library's, and what changes `signal`
        getattr(holdfast, name)
full = set(sys.modules) - known
holdfast.run(["true"], capture_output=True)
with holdfast.Runner() as runner:
    runner.run(["true"])
used = set(sys.modules) - known
print(repr({
    "light": sorted(light), "full": sorted(full), "used": sorted(used),
    "files": {name: getattr(sys.modules[name], "__file__", None) for name in used},
}))
"""


def bare_python(script: str) -> str:
    """Run a script without site and environment; its first argument is where holdfast is installed."""
    package = str(pathlib.Path(holdfast.__file__).parent.parent)
    command = [sys.executable, "-I", "-S", "-c", script, package]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def loaded():
    """New modules in an interpreter without site: what a machine preloads by .pth files is not ours."""
    return ast.literal_eval(bare_python(LOADED))


def test_import_loads_nothing_but_itself(loaded):
    assert loaded["light"] == ["__future__", "holdfast"]


@pytest.mark.parametrize("stage", ["full", "used"])
@pytest.mark.parametrize(
    "module",
    ["asyncio", "ctypes", "dataclasses", "enum", "inspect", "re", "signal", "socket", "subprocess", "typing"],
)
def test_costly_modules_stay_out(loaded, stage, module):
    """Touching every public name, and running something, loads none of them."""
    assert "holdfast.process.handle" in loaded[stage]
    assert module not in loaded[stage]


def test_no_third_party_module_is_loaded(loaded):
    standard = sys.stdlib_module_names
    strangers = [name for name in loaded["used"] if name.partition(".")[0] not in standard | {"holdfast"}]
    assert not strangers, {name: loaded["files"][name] for name in strangers}


def test_run_of_the_command_line_loads_no_click():
    """`holdfast run` is on the way of every command: click and json would cost it tens of milliseconds."""
    script = (
        "import sys; known = set(sys.modules); sys.path.insert(0, sys.argv[1]);"
        "from holdfast.cli import run; import os;"
        "os.execve = lambda *a: print(*sorted(set(sys.modules) - known));"
        "run.main(['--timeout', '1s', '--', 'true'])"
    )
    names = bare_python(script).split()
    assert "holdfast.process._native" in names
    assert not {"click", "json", "re", "argparse", "threading", "holdfast.process.keeper"} & set(names)


# ---- the direction of imports


def layer_of(module: str) -> str:
    """"holdfast.process.run" -> "process"; the package itself is ""."""
    parts = module.split(".")
    if len(parts) < 2:
        return ""
    return TOP.get(parts[1], parts[1] if parts[1] in LAYERS else "")


def imports_of(path: pathlib.Path) -> list[tuple[int, str]]:
    """Every module that the file imports, anywhere in it, by its full name."""
    relative = path.relative_to(SOURCE.parent).with_suffix("")
    package = relative.parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                child = f"{module}.{alias.name}"
                is_module = (SOURCE.parent / child.replace(".", "/")).with_suffix(".py").exists()
                is_package = (SOURCE.parent / child.replace(".", "/")).is_dir()
                found.append((node.lineno, child if is_module or is_package else module))
    return found


def test_no_layer_imports_a_higher_one():
    wrong = []
    seen = set()
    for path in PYTHON_FILES:
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        own = layer_of(name)
        for line, imported in imports_of(path):
            if imported.partition(".")[0] != "holdfast":
                continue
            target = layer_of(imported)
            seen.add((own, target))
            if target != own and target not in LAYERS[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {own or 'holdfast'} imports {imported}")
    assert not wrong
    assert {("cli", "process"), ("", "process"), ("process", "process")} <= seen  # the walk itself works


def test_third_party_imports_stay_in_their_layer():
    wrong = []
    for path in PYTHON_FILES:
        own = layer_of(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"))
        for line, imported in imports_of(path):
            top = imported.partition(".")[0]
            if top not in sys.stdlib_module_names | {"holdfast"} and top not in THIRD_PARTY[own]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {imported}")
    assert not wrong


def test_third_party_imports_are_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=!~ ]", each)[0] for each in project["dependencies"]}
    assert set().union(*THIRD_PARTY.values()) == declared


# ---- the size of files


def test_files_are_short_enough_to_hold_in_the_head():
    long = {}
    for folder in ("src", "csrc", "tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".pyi", ".c", ".h", ".sh"):
                lines = len(path.read_text().splitlines())
                if lines > LINES_MAX:
                    long[str(path.relative_to(ROOT))] = lines
    assert set(long) <= set(LONGER), long
    assert all(lines <= LINES_MAX * 1.5 for lines in long.values()), long  # an exception is no licence


def test_no_machine_paths_in_the_sources():
    """A path of somebody's machine in a source is a build that works only there."""
    pattern = re.compile(r"/(home|Users|root)/\w")
    for path in [*PYTHON_FILES, *(ROOT / "csrc").rglob("*.[ch]"), ROOT / "meson.build", ROOT / "Makefile"]:
        assert not pattern.search(path.read_text()), path


# ---- the documentation's numbers live in test_limits.py; `make lint` runs mypy and ruff


def test_doctor_json_has_the_fields_that_the_table_has():
    out = subprocess.run(
        [sys.executable, "-m", "holdfast", "doctor", "--json"], capture_output=True, text=True, cwd=os.sep, check=False
    )
    document = json.loads(out.stdout)
    assert out.returncode == (0 if document["healthy"] else 1)
    names = [finding["name"] for finding in document["findings"]]
    assert names == [
        "keeper", "pidfd", "P_PIDFD", "notifier", "PIDFD_GET_INFO exit", "clone3", "auto-reap", "group signal",
        "subreaper", "children files", "cgroup v2", "proc connector",
    ]  # fmt: skip
    for finding in document["findings"]:
        assert set(finding) == {"name", "available", "detail", "without"}
        assert finding["detail"]
        assert finding["without"]
    assert document["version"] == holdfast.__version__
    assert set(document["means"]) == {"start", "processes", "notifier", "direct children", "tree kill", "group handle"}
