"""The package as others get it: built from the sources alone, installed into a clean environment, run.

Everything is built from a copy of what git tracks (so nothing that lies about in the checkout helps)
and run from another directory, as we are and, if we are root, as an ordinary user.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest
from conftest import require

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT = 100  # seconds; a guard against hanging, not a measurement
ROOT_USER = os.geteuid() == 0
USERS = ["we", "nobody"]


def tool(command: list[object], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment's tools (meson, ninja) found first."""
    env = {**os.environ, "PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"]}
    for name in ("HOLDFAST_NO_SKIPS", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        env.pop(name, None)
    options = {"check": True, "env": env, "umask": 0o022, **options}
    try:
        return subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=LIMIT, **options
        )  # type: ignore[call-overload]
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"{command} failed:\n{error.stdout}\n{error.stderr}") from None


def source_files() -> list[str]:
    """What git would commit; where this is not a checkout, everything that is not made by a build."""
    try:
        listed = tool(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT
        )
        return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    except (AssertionError, FileNotFoundError):
        made = re.compile(r"(^|/)(\.venv|\.git|build|dist|__pycache__|\.\w+_cache|\.hypothesis)(/|$)|\.so$")
        files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        return [str(path) for path in files if not made.search(str(path))]


def copy_sources(to: pathlib.Path) -> pathlib.Path:
    for name in source_files():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name)
    return to


def build_wheel(source: pathlib.Path, out: pathlib.Path, *settings: str) -> pathlib.Path:
    tool([
        sys.executable, "-m", "pip", "wheel", "-qq", "--disable-pip-version-check", "--no-build-isolation", "--no-deps",
        *(f"--config-settings={each}" for each in settings), "--wheel-dir", out, source,
    ], cwd=out.parent)  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built once, also when several workers want it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    out = base / "wheel"
    with open(base / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            build_wheel(copy_sources(base / "wheel sources"), base / "wheel.new")
            (base / "wheel.new").rename(out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def place():
    """A directory that every user may read (pytest's own are the owner's alone)."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_user(who: str) -> dict[str, object]:
    """Options of subprocess that make the child an ordinary user, in a directory that is not ours."""
    options: dict[str, object] = {"cwd": "/", "env": {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}}
    if who == "nobody":
        if not ROOT_USER:
            pytest.skip("only root can become another user")
        options |= {"user": "nobody", "group": 65534, "extra_groups": []}
    return options


def python_for_everybody() -> str:
    """A base Python that ordinary users may run, too: root's own may lie in a home of root's."""
    probe = f"import sys, venv; sys.exit(sys.version_info < {sys.version_info[:2]})"
    for python in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"):
        for who in USERS if ROOT_USER else USERS[:1]:
            try:
                tool([python, "-I", "-c", probe], **as_user(who))
            except (AssertionError, OSError):
                break
        else:
            return python
    pytest.skip("no Python that an ordinary user may run")


def needed(name: str, found: set[str] | None = None) -> set[str]:
    """The distributions that one requires, and what those require, as they are installed here."""
    found = set() if found is None else found
    for requirement in importlib.metadata.requires(name) or ():
        other = re.match(r"[\w.-]+", requirement)[0].lower()
        if "extra ==" not in requirement and other not in found:
            try:
                importlib.metadata.distribution(other)
            except importlib.metadata.PackageNotFoundError:
                continue  # for another Python or system
            found.add(other)
            needed(other, found)
    return found


def install(wheel: pathlib.Path, venv: pathlib.Path) -> pathlib.Path:
    """A clean environment with the wheel and what it says it needs; its bin directory."""
    tool([python_for_everybody(), "-m", "venv", "--without-pip", venv])
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "--disable-pip-version-check"]
    tool([*pip, "install", "-qq", "--no-deps", "--no-index", "--no-compile", wheel], cwd=venv)
    (site,) = venv.glob("lib/python3.*/site-packages")
    before = os.umask(0o022)
    try:
        for name in needed("holdfast"):
            for file in importlib.metadata.files(name) or ():
                if ".." not in file.parts and file.suffix != ".pyc":
                    (site / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file.locate(), site / file)
    finally:
        os.umask(before)
    tool([*pip, "check"], cwd=venv)
    return venv / "bin"


@pytest.fixture(scope="module")
def installed(wheel, place) -> pathlib.Path:
    return install(wheel, place / "venv")


def keeper_of(bin_dir: pathlib.Path) -> pathlib.Path:
    (keeper,) = bin_dir.parent.glob("lib/python3.*/site-packages/holdfast/process/holdfast-keeper")
    return keeper


def doctor(bin_dir: pathlib.Path) -> dict[str, object]:
    ran = tool([bin_dir / "holdfast", "doctor", "--json"], **{**as_user("we"), "check": False})
    return json.loads(ran.stdout)


def finding(document: dict[str, object], name: str) -> dict[str, object]:
    (found,) = (each for each in document["findings"] if each["name"] == name)
    return found


# ---- what is in it


def test_wheel_has_everything_and_nothing_else(wheel):
    # The tag names the Python that built it: what is published is built by 3.11 and serves all later ones.
    tag = f"cp3{sys.version_info.minor}-abi3"
    assert re.fullmatch(rf"holdfast-[0-9.]+-{tag}-(manylinux_\d+_\d+_\w+|linux_\w+)\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        version = wheel.name.split("-")[1]
        info, scripts = f"holdfast-{version}.dist-info/", f"holdfast-{version}.data/scripts/"
        package = {name[4:] for name in source_files() if re.match(r"src/holdfast/.*\.pyi?$", name)}
        package |= {"holdfast/py.typed", "holdfast/process/_native.abi3.so", "holdfast/process/holdfast-keeper"}
        assert {name for name in entries if name.startswith("holdfast/")} == package
        others = {name for name in entries if name not in package}
        about = {info + name for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
        assert others == {*about, scripts + "holdfast"}
        for name, wanted in (("holdfast/process/holdfast-keeper", 0o755), (scripts + "holdfast", 0o755)):
            assert stat.S_IMODE(entries[name].external_attr >> 16) == wanted, name
        assert archive.read("holdfast/process/holdfast-keeper").startswith(b"\x7fELF")
        assert archive.read(scripts + "holdfast").startswith(b"#!python\n")
        described = archive.read(info + "METADATA").decode()
        assert "\nRequires-Python: >=3.11\n" in described
        assert re.search(r"\nRequires-Dist: click ?>=8\n", described)
        assert b"Root-Is-Purelib: false" in archive.read(info + "WHEEL")


def test_extension_keeps_to_the_limited_api(installed):
    """abi3 is a promise: what the extension takes from Python exists in 3.11's stable ABI by that name."""
    require("nm")
    extension = keeper_of(installed).with_name("_native.abi3.so")
    wanted = {line.split()[-1] for line in tool(["nm", "-D", "--undefined-only", extension]).stdout.splitlines()}
    python = {name for name in wanted if re.match(r"_?Py", name)}
    assert "PyModuleDef_Init" in python or "PyModule_Create2" in python
    # Names with an underscore that are part of the stable ABI, because macros of its headers use them.
    stable = {"_PyArg_ParseTuple_SizeT", "_Py_BuildValue_SizeT", "_Py_Dealloc", "_Py_NoneStruct"}
    assert {name for name in python if name.startswith("_")} <= stable | {"_Py_TrueStruct", "_Py_FalseStruct"}


def test_sdist_has_the_sources_and_builds(tmp_path, wheel):
    require("git")
    source = copy_sources(tmp_path / "source")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "a release"]):
        tool([*git, *arguments], cwd=source)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check"]
    tool([*build, "--outdir", tmp_path, source])
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        # Asked for where it exists (3.11.4): later versions warn without.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    needed = {name for name in source_files() if name.startswith(("csrc/", "src/", "tests/", "tools/"))}
    assert needed | {"meson.build", "meson_options.txt", "pyproject.toml", "LICENSE", "Makefile"} <= names
    again = build_wheel(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "out")
    assert again.name == wheel.name
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


# ---- it runs


@pytest.mark.parametrize("who", USERS)
def test_commands_of_the_installed_wheel(installed, who):
    user = as_user(who)
    version = tool([installed / "holdfast", "--version"], **user).stdout
    assert version == tool([installed / "python", "-m", "holdfast", "--version"], **user).stdout
    assert re.fullmatch(r"holdfast \d+\.\d+\.\d+\n", version)
    ran = tool([installed / "holdfast", "run", "--", "sh", "-c", "id -u; exit 7"], **{**user, "check": False})
    uid = 65534 if who == "nobody" else os.getuid()
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, f"{uid}\n", "")
    late = tool([
        installed / "holdfast", "run", "--timeout", "300ms", "--grace", "200ms", "--",
        "sh", "-c", 'trap "" TERM; (setsid sleep 99 &); sleep 99',
    ], **{**user, "check": False})  # fmt: skip
    assert late.returncode == 124
    assert "timed out" in late.stderr
    assert "tree empty" in late.stderr


@pytest.mark.parametrize("who", USERS)
def test_library_of_the_installed_wheel(installed, who):
    script = (
        "import holdfast, os\n"
        "done = holdfast.run(['sh', '-c', 'echo out; exit 3'], capture_output=True, text=True)\n"
        "assert (done.returncode, done.stdout) == (3, 'out\\n')\n"
        "with holdfast.spawn(['sleep', '99']) as process:\n"
        "    report = process.stop()\n"
        "assert report.empty and process.status.signal == 15\n"
        "with holdfast.Runner() as runner:\n"
        "    assert runner.run(['true']).status.ok\n"
        "print(holdfast.__file__)\n"
    )
    printed = tool([installed / "python", "-c", script], **as_user(who)).stdout.strip()
    assert printed.startswith(f"{installed.parent}/lib/")


def test_doctor_of_the_installed_wheel(installed):
    document = doctor(installed)
    assert document["healthy"] is True
    assert str(keeper_of(installed)) in finding(document, "keeper")["detail"]


def test_keeper_is_static_where_musl_is(installed):
    require("musl-gcc")
    assert finding(doctor(installed), "keeper")["detail"].startswith("static, ")
    with open(keeper_of(installed), "rb") as keeper:
        assert b"/ld-" not in keeper.read(4096)


@pytest.mark.parametrize("path", ["with space/hold fast", "long" * 60], ids=["spaces", "long"])
def test_launcher_works_in_any_path(wheel, place, path):
    """The kernel ends an interpreter's path at a space and at 255 bytes; tools/launcher mends the script."""
    bin_dir = install(wheel, place / path / "venv")
    for _ in range(2):  # twice is as good as once
        tool(["sh", ROOT / "tools/launcher", bin_dir.parent])
        ran = tool([bin_dir / "holdfast", "run", "--", "sh", "-c", 'echo "$1"', "sh", "a  b'c\"$d"], **as_user("we"))
        assert ran.stdout == "a  b'c\"$d\n"
        assert tool([bin_dir / "holdfast", "--version"], **as_user("we")).stdout.startswith("holdfast ")
    assert finding(doctor(bin_dir), "keeper")["available"]
    if ROOT_USER:
        assert tool([bin_dir / "holdfast", "run", "--", "id", "-un"], **as_user("nobody")).stdout == "nobody\n"


# ---- a keeper that was harmed on the way

START = (
    "import holdfast, sys\n"
    "for start in (lambda: holdfast.run(['true']), lambda: holdfast.spawn(['true']), holdfast.Runner):\n"
    "    try:\n"
    "        start()\n"
    "    except holdfast.SpawnError as error:\n"
    "        print(error.errno, error.stage, error.filename, error)\n"
)


def test_keeper_without_execute_permission_says_how_to_mend_it(installed):
    """Some copies and archives lose the bit; the first use must say so and not guess."""
    keeper = keeper_of(installed)
    keeper.chmod(0o644)
    try:
        lines = tool([installed / "python", "-c", START], **as_user("we")).stdout.splitlines()
        assert len(lines) == 3
        for line in lines:
            assert line.startswith(f"13 launch {keeper} ")
            assert "chmod +x" in line
        ran = tool([installed / "holdfast", "run", "--", "true"], **{**as_user("we"), "check": False})
        assert ran.returncode == 125
        assert ran.stdout == ""
        assert f"chmod +x {keeper}" in ran.stderr
        assert "Traceback" not in ran.stderr
        document = doctor(installed)
        assert document["healthy"] is False
        assert "chmod +x" in finding(document, "keeper")["detail"]
        table = tool([installed / "holdfast", "doctor"], **{**as_user("we"), "check": False})
        assert table.returncode == 1
        assert "is not executable" in table.stdout
        assert "without it: nothing can be started" in table.stdout
    finally:
        keeper.chmod(0o755)
    assert tool([installed / "holdfast", "run", "--", "true"], **as_user("we")).returncode == 0


def test_missing_keeper_is_named(installed):
    keeper = keeper_of(installed)
    away = keeper.with_name("away")
    keeper.rename(away)
    try:
        lines = tool([installed / "python", "-c", START], **as_user("we")).stdout.splitlines()
        assert len(lines) == 3
        assert all(line.startswith(f"2 launch {keeper} ") for line in lines)
        ran = tool([installed / "holdfast", "run", "--", "true"], **{**as_user("we"), "check": False})
        assert ran.returncode == 125
        assert str(keeper) in ran.stderr
        document = doctor(installed)
        assert document["healthy"] is False
        assert "reinstall" in finding(document, "keeper")["detail"]
    finally:
        away.rename(keeper)


# ---- other ways to build


def test_keeper_without_musl_is_dynamic_and_works(tmp_path, place):
    built = build_wheel(copy_sources(tmp_path / "source"), tmp_path / "out", "setup-args=-Dmusl=disabled")
    bin_dir = install(built, place / "glibc")
    detail = finding(doctor(bin_dir), "keeper")["detail"]
    assert detail.startswith("dynamic ")
    assert "musl-tools" in detail
    with open(keeper_of(bin_dir), "rb") as keeper:
        assert b"/ld-" in keeper.read(4096)
    for who in USERS if ROOT_USER else USERS[:1]:
        ran = tool([
            bin_dir / "holdfast", "run", "--timeout", "300ms", "--grace", "200ms", "--",
            "sh", "-c", 'trap "" TERM; (setsid sleep 99 &); sleep 99',
        ], **{**as_user(who), "check": False})  # fmt: skip
        assert (ran.returncode, "tree empty" in ran.stderr) == (124, True)
        script = "import holdfast; print(holdfast.run(['sh', '-c', 'exit 5']).returncode)"
        assert tool([bin_dir / "python", "-c", script], **as_user(who)).stdout == "5\n"


def test_musl_that_is_demanded_and_missing_stops_the_build(tmp_path):
    """`-Dmusl=enabled` must not fall back in silence: PATH here has no musl-gcc."""
    source = copy_sources(tmp_path / "source")
    (tmp_path / "bin").mkdir()
    for name in ("gcc", "cc", "ld", "as", "ar", "sh", "uname"):
        program = shutil.which(name)
        if program:
            (tmp_path / "bin" / name).symlink_to(program)
    meson = pathlib.Path(sys.executable).with_name("meson")
    env = {"PATH": f"{tmp_path}/bin", "HOME": str(tmp_path), "NINJA": str(meson.with_name("ninja"))}
    ran = tool([sys.executable, meson, "setup", "-Dmusl=enabled", source / "build", source], check=False, env=env)
    assert ran.returncode != 0
    assert "musl-gcc" in ran.stdout + ran.stderr


def test_build_for_windows_stops_with_one_clear_line(tmp_path):
    cross = tmp_path / "other.ini"
    cross.write_text(
        "[binaries]\nc = 'gcc'\nar = 'ar'\n"
        "[host_machine]\nsystem = 'windows'\ncpu_family = 'x86_64'\ncpu = 'x86_64'\nendian = 'little'\n"
    )
    meson = pathlib.Path(sys.executable).with_name("meson")
    source = copy_sources(tmp_path / "source")
    ran = tool([sys.executable, meson, "setup", "--cross-file", cross, tmp_path / "build", source], check=False)
    assert ran.returncode != 0
    errors = [line for line in (ran.stdout + ran.stderr).splitlines() if "ERROR" in line]
    assert len(errors) == 1
    assert errors[0].endswith("; see docs/platforms.md")
    assert (ROOT / "docs/platforms.md").exists()
    assert not (tmp_path / "build" / "build.ninja").exists()
