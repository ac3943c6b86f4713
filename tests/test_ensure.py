"""tools/ensure: what it decides on machines where something is missing.

The machine is made up: a PATH of its own with programs that answer as told.  What apt-get would do is not
the subject, only whether and how it is called; the stand-in writes its arguments down.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEBIAN = os.path.exists("/etc/debian_version")
USED = ("sh", "cat", "mktemp", "rm", "true", "false", "chmod")
DAEMONS = ("nginx", "memcached", "redis-server", "haproxy", "lighttpd", "dnsmasq", "tinyproxy")
CHECKED = ("musl-gcc", "valgrind", "git", "curl", "bash", "dash", "setsid", "unshare", "systemd-analyze", *DAEMONS)


class Machine:
    """A PATH with the tools that the script itself uses, and what a test adds."""

    def __init__(self, path: pathlib.Path) -> None:
        self.bin = path / "bin"
        self.log = path / "apt.log"
        self.bin.mkdir()
        for name in USED:
            (self.bin / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        self.root(False)
        self.add("gcc")
        self.add("sudo")
        self.python()
        # Installing makes what was missing appear: `mend` says what.
        self.add("apt-get", f'printf "%s\\n" "$*" >>"{self.log}"; case "$*" in *install*) . "{self.bin}/mend" ;; esac')
        (self.bin / "mend").write_text("")

    def add(self, name: str, body: str = "exit 0") -> None:
        file = self.bin / name
        file.unlink(missing_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)

    def remove(self, name: str) -> None:
        (self.bin / name).unlink()

    def root(self, is_root: bool) -> None:
        self.add("id", f"echo {0 if is_root else 1000}")

    def python(self, name: str = "python3", lacks: str = "", old: bool = False) -> None:
        """An interpreter that fails for what it `lacks` ("ensurepip", "Python.h")."""
        body = f'case "$2" in *"{lacks or "nothing at all"}"*) exit 1 ;; esac\n'
        if old:
            body += 'case "$2" in *version_info*) exit 1 ;; esac\n'
        self.add(name, body + f'exec "{sys.executable}" "$@"')

    def mend(self, script: str) -> None:
        (self.bin / "mend").write_text(script)

    def ensure(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / "sh", ROOT / "tools/ensure", *(arguments or ("python3",))],
            env={"PATH": str(self.bin), **environment}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


debian = pytest.mark.skipif(not DEBIAN, reason="needs a Debian: the script looks at /etc/debian_version")


def last_line(ran: subprocess.CompletedProcess[str]) -> str:
    return ran.stderr.splitlines()[-1]


def test_nothing_missing_nothing_said(machine):
    for is_root in (False, True):
        machine.root(is_root)
        ran = machine.ensure()
        assert (ran.returncode, ran.stdout, ran.stderr, machine.calls()) == (0, "", "", [])


@debian
@pytest.mark.parametrize(
    ("python", "lacks", "package"),
    [
        ("python3", "ensurepip", "python3-venv"),
        ("python3", "Python.h", "python3-dev"),
        ("python3.13", "ensurepip", "python3.13-venv"),
        ("python3.13", "Python.h", "python3.13-dev"),
    ],
)
def test_ordinary_user_gets_the_exact_line(machine, python, lacks, package):
    machine.python(python, lacks=lacks)
    ran = machine.ensure(python)
    assert ran.returncode == 1
    assert ran.stderr == f"holdfast: missing: {package}\nRun this first:  sudo apt-get install {package}\n"
    assert not machine.calls()


@debian
def test_bare_machine_lists_everything(machine):
    machine.remove("gcc")
    machine.remove("python3")
    ran = machine.ensure()
    assert ran.returncode == 1
    packages = "gcc libc6-dev python3 python3-venv python3-dev"
    assert last_line(ran) == f"Run this first:  sudo apt-get install {packages}"


@debian
def test_compiler_that_cannot_link_counts_as_missing(machine):
    """gcc without the C library's headers (Debian's gcc without libc6-dev) compiles nothing."""
    machine.add("gcc", "exit 1")
    assert last_line(machine.ensure()).endswith("apt-get install gcc libc6-dev")


@debian
def test_what_tests_can_use_is_asked_for_only_by_ci(machine):
    assert machine.ensure().returncode == 0
    ran = machine.ensure("python3", "checks")
    assert ran.returncode == 1
    packages = "musl-tools valgrind git curl bash dash util-linux systemd clang libclang-rt-dev"
    packages += " nginx memcached redis-server haproxy lighttpd dnsmasq-base tinyproxy-bin"
    assert last_line(ran).endswith(f"apt-get install {packages}")
    for program in (*CHECKED, "clang"):
        machine.add(program)
    assert machine.ensure("python3", "checks").returncode == 0


@debian
def test_qemu_is_asked_for_only_by_make_kernels(machine):
    ran = machine.ensure("python3", "kernels")
    assert ran.returncode == 1
    assert last_line(ran).endswith("apt-get install qemu-system-x86")
    machine.add("qemu-system-x86_64")
    assert machine.ensure("python3", "kernels").returncode == 0


@debian
def test_root_installs_and_looks_again(machine):
    machine.root(True)
    machine.remove("gcc")
    machine.mend(f'printf "#!/bin/sh\\n" >"{machine.bin}/gcc"; chmod +x "{machine.bin}/gcc"\n')
    ran = machine.ensure()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "holdfast: installing gcc libc6-dev\n"
    update, install = machine.calls()
    assert update.split()[-1] == "update"
    assert install.endswith("install -y --no-install-recommends gcc libc6-dev")


@debian
def test_clang_without_its_fuzzer_runtime_counts_as_incomplete(machine):
    machine.root(True)
    for program in CHECKED:
        machine.add(program)
    machine.add("clang", f'[ -e "{machine.bin}/runtime" ]')
    machine.mend(f'>"{machine.bin}/runtime"\n')
    assert machine.ensure("python3", "checks").returncode == 0
    assert machine.calls()[1].endswith("recommends libclang-rt-dev")


@debian
@pytest.mark.parametrize("there", [False, True])
def test_daemons_are_installed_and_not_started(machine, there):
    """Debian asks policy-rc.d before it starts what it has installed; one that is there is somebody's, and stays."""
    machine.root(True)
    for program in (*CHECKED, "clang"):
        machine.add(program)
    machine.remove("lighttpd")
    machine.remove("dnsmasq")
    policy, asked, disabled = machine.bin / "policy-rc.d", machine.bin / "asked", machine.bin / "disabled"
    if there:
        policy.write_text("#!/bin/sh\nexit 7\n")
        policy.chmod(0o755)
    machine.add("systemctl", f'printf "%s\\n" "$*" >"{disabled}"')
    added = f'>"{machine.bin}/$each"; chmod +x "{machine.bin}/$each"'
    machine.mend(f'"{policy}"; echo $? >"{asked}"; for each in lighttpd dnsmasq; do {added}; done')
    ran = machine.ensure("python3", "checks", POLICY_RC_D=str(policy))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert machine.calls()[1].endswith("recommends lighttpd dnsmasq-base")
    assert asked.read_text() == ("7\n" if there else "101\n")
    assert policy.exists() == there
    assert disabled.read_text() == "--quiet disable lighttpd\n"


@debian
def test_python_without_its_own_tests_counts_as_incomplete(machine):
    for program in (*CHECKED, "clang"):
        machine.add(program)
    machine.python(lacks="test_subprocess")
    package = f"libpython{sys.version_info[0]}.{sys.version_info[1]}-testsuite"
    assert last_line(machine.ensure("python3", "checks")).endswith(f"apt-get install {package}")


@debian
def test_python_that_apt_cannot_mend_is_named(machine):
    """A Python from elsewhere still lacks its headers after Debian's were installed: no building without."""
    machine.root(True)
    machine.python(lacks="Python.h")
    ran = machine.ensure()
    assert ran.returncode == 1
    assert "still missing after that: python3-dev" in ran.stderr
    assert last_line(ran).endswith("try: make PYTHON=/usr/bin/python3")


@debian
def test_failure_of_apt_is_shown(machine):
    machine.root(True)
    machine.remove("gcc")
    machine.add("apt-get", 'echo "E: no network" >&2; exit 100')
    ran = machine.ensure()
    assert ran.returncode == 1
    assert "E: no network" in ran.stderr
    assert last_line(ran) == "holdfast: apt-get update failed"


@pytest.mark.parametrize("is_root", [False, True])
def test_old_python_stops_before_anything_is_installed(machine, is_root):
    machine.root(is_root)
    machine.python(old=True)
    machine.remove("gcc")
    ran = machine.ensure()
    assert ran.returncode == 1
    assert ran.stderr.startswith("holdfast: needs Python 3.11 or newer")
    assert "make PYTHON=" in ran.stderr
    assert not machine.calls()


@debian
def test_without_sudo_the_line_uses_what_is_there(machine):
    machine.remove("sudo")
    machine.remove("gcc")
    assert last_line(machine.ensure()) == "Run this first:  su -c 'apt-get install gcc libc6-dev'"


def test_nothing_is_left_in_the_temporary_directory(machine, tmp_path):
    (tmp_path / "tmp").mkdir()
    env = {"PATH": str(machine.bin), "TMPDIR": str(tmp_path / "tmp")}
    subprocess.run([machine.bin / "sh", ROOT / "tools/ensure", "python3"], env=env, check=True, timeout=60)
    assert list((tmp_path / "tmp").iterdir()) == []


# ---- the Makefile's own decisions


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    """A checkout in a path with a space, in which everything counts as built."""
    copy = tmp_path / "hold fast"
    copy.mkdir()
    for name in ("Makefile", "pyproject.toml", "meson.build", "meson_options.txt"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("src", "csrc", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".venv").mkdir()
    for when, name in enumerate(("ready", "installed", "test-ready")):
        (copy / ".venv" / name).touch()
        os.utime(copy / ".venv" / name, (2e9 + when, 2e9 + when))
    return copy


def would_do(checkout: pathlib.Path, goal: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "-n", "-j4", goal]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=True).stdout


def test_second_make_does_nothing(checkout):
    assert "up to date" in would_do(checkout, ".venv/test-ready")
    assert "pip" not in would_do(checkout, "run")


@pytest.mark.parametrize("name", ["src/holdfast/cli/run.py", "csrc/keeper/main.c", "csrc/common/wire.h", "meson.build"])
def test_change_of_a_source_builds_again(checkout, name):
    os.utime(checkout / name, (2.1e9, 2.1e9))
    done = would_do(checkout, ".venv/test-ready")
    assert "--force-reinstall" in done
    assert "-m venv" not in done


def test_removal_of_a_source_builds_again(checkout):
    """What was removed must not live on in the installation."""
    (checkout / "src/holdfast/config/units.py").unlink()
    os.utime(checkout / "src/holdfast/config", (2.1e9, 2.1e9))
    assert "--force-reinstall" in would_do(checkout, ".venv/installed")


def test_python_caches_are_no_sources(checkout):
    cache = checkout / "src/holdfast/__pycache__"
    cache.mkdir()
    os.utime(checkout / "src/holdfast", (1e9, 1e9))
    (cache / "x.pyc").touch()
    for path in (cache / "x.pyc", cache):
        os.utime(path, (2.1e9, 2.1e9))
    assert "up to date" in would_do(checkout, ".venv/installed")
