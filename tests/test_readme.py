"""What the README shows is what happens, and `make run` does what it says.  How it is compared: helpers_readme.py."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import Self

import pytest
from helpers_readme import Numbers, Player, blocks, steps
from helpers_supervisor import HOLDFAST, LIMIT, Running

from holdfast.client import Client, ClientError

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


class Reader(Running):
    """A shell of somebody who reads the README in an empty directory; what is left in the end is found by its mark."""

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__(directory, "")
        self.file.unlink()
        self.environment["PATH"] = f"{pathlib.Path(HOLDFAST).parent}:{os.environ['PATH']}"
        for name in ("HOLDFAST_RUN_DIR", "HOLDFAST_NOTIFIER"):
            self.environment.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.file.exists():
            self.holdfast("down", check=None)
        super().__exit__(*exc)

    def player(self, patience: float = 15) -> Player:
        return Player(
            self.directory, self.environment, patience=patience, may_kill=lambda pid: pid > 1 and pid in self.marked()
        )


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the README's commands print here; the test proper is that this does not fail."""
    with Reader(tmp_path_factory.mktemp("demo")) as reader:
        player = reader.player()
        player.play(README)
        return player.printed


def test_the_readme(printed):
    commands = [command for command, _ in steps(README)]
    assert len(commands) == len(printed) >= 17
    assert sum(command.startswith("kill -9 ") for command in commands) == 2
    shown = ["check", "up", "status", "logs", "events", "history", "upgrade", "restart", "stop", "start", "down", "run"]
    for word in shown:
        assert any(command.startswith(f"holdfast {word}") for command in commands), word


def test_its_python(tmp_path):
    code = [body for language, body in blocks(README) if language == "python"]
    assert code
    for each in code:
        done = subprocess.run([sys.executable, "-c", each], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("hello\n")


def test_every_block_is_of_a_kind_that_is_tried():
    kinds = [language for language, _ in blocks(README)]
    assert set(kinds) == {"sh", "toml", "console", "python"}
    assert len(kinds) * 2 == README.count("```")
    makes = [line.split()[1] for language, body in blocks(README) if language == "sh" for line in body.splitlines()]
    makefile = (ROOT / "Makefile").read_text()
    for target in makes:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


# ---- a README that is wrong is found out


def agree(text: str, printed: list[str]) -> bool:
    numbers = Numbers()
    return all(
        numbers.same(shown, real)
        for (command, shown), real in zip(steps(text), printed, strict=True)
        if command != "toml"
    )


def test_every_line_that_is_shown_counts(printed):
    """Each line of each output: left out, said twice, one letter or single digit changed."""
    assert agree(README, printed)
    tried = 0
    for _, body in [each for each in blocks(README) if each[0] == "console"]:
        for line in body.splitlines(keepends=True):
            if line.startswith("$ ") or not line.strip():
                continue
            letter = re.search(r"[A-Za-z](?=\w)", line) or re.search(r"\b\d\b", line)
            wrong = [body.replace(line, "", 1), body.replace(line, line * 2, 1)]
            if letter:
                other = "9" if letter[0].isdigit() else "x"
                wrong.append(body.replace(line, line[: letter.start()] + other + line[letter.end() :], 1))
            for each in wrong:
                assert not agree(README.replace(body, each), printed), each
                tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("exited with code 0\n", "exited with code 1\n"),
        ("$ echo $?\n3\n", "$ echo $?\n4\n"),
        ("$ echo $?\n124\n", "$ echo $?\n125\n"),
        ("(exit 124)", "(exit 137)"),
        ("restarts 1, up", "restarts 0, up"),
        ("web@2            starting", "web@3            starting"),
        ("killed by SIGKILL\n", "killed by SIGTERM\n"),
        # worker's pid in the second status: that it is the same one is the point.
        ("worker   running     4642  1.9s", "worker   running     4643  1.9s"),
        ("supervisor pid 4746, held by anchor 4631, restarts 1, up 0.1s", "supervisor pid 4632, held by anchor 4631, "
         "restarts 1, up 0.1s"),
        ("0.0s  3.2 MiB  keeper 4641", "0.0s  3.2  keeper 4641"),
    ],
)  # fmt: skip
def test_a_wrong_figure_is_found(printed, right, wrong):
    assert right in README
    assert not agree(README.replace(right, wrong, 1), printed)


def test_figures_of_the_moment_may_differ(printed):
    for shown, other in (("up 0.9s", "up 2m 10s"), ("19 MiB", "512.5 KiB"), ("04:42:42", "23:59:59"), ("45399", "80")):
        assert agree(README.replace(shown, other), printed)


@pytest.mark.parametrize(
    "text",
    [
        "$ echo hello\nhallo\n",
        "$ echo hello\n",
        "$ false\n$ echo $?\n0\n",
        "$ holdfast status\nholdfast: all is well\n",
        "$ kill -9 1\n",
        "$ kill -9 4711\n",
    ],
)
def test_a_wrong_readme_fails_when_it_is_played(tmp_path, text):
    with Reader(tmp_path) as reader, pytest.raises(AssertionError):
        reader.player(patience=0.1).play(f"```console\n{text}```\n")


# ---- make run


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Terminal:
    """A program on a terminal of its own; what it writes is collected."""

    def __init__(self, command: list[str], directory: pathlib.Path, environment: dict[str, str]) -> None:
        self.text = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(directory)
                os.execvpe(command[0], command, environment)
            finally:
                os._exit(127)
        self.pidfd = os.pidfd_open(self.pid)

    def read(self, seconds: float) -> bool:
        """What there is, after waiting so long at most; False at the end."""
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            self.text += data.decode("utf-8", "replace")
            return bool(data)
        return True

    def close(self) -> int:
        """Its exit status; killed if it does not end."""
        deadline = time.monotonic() + LIMIT
        while self.read(0.1) and time.monotonic() < deadline:
            pass
        if not select.select([self.pidfd], [], [], 5)[0]:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.close(self.pidfd)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_make_run(tmp_path):
    """The five services of examples/ come up on a terminal, answer, and are gone after Ctrl-C, with status 0."""
    recipe = ["make", "--no-print-directory", "-n", "run"]
    wanted = subprocess.run(recipe, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert wanted.stdout.splitlines()[-1] == "exec sh examples/run.sh .venv/bin/holdfast"
    examples = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", examples, ignore=shutil.ignore_patterns(".holdfast"))
    port = free_port()
    for name in ("holdfast.toml", "run.sh"):
        text = (examples / name).read_text()
        assert "8017" in text
        (examples / name).write_text(text.replace("8017", str(port)))
    with Reader(tmp_path) as marked:
        terminal = Terminal(["sh", "examples/run.sh", HOLDFAST], tmp_path, {**marked.environment, "TERM": "xterm"})
        try:
            deadline = time.monotonic() + LIMIT
            states: dict[str, bool] = {}
            while not (len(states) == 5 and all(states.values())):
                assert time.monotonic() < deadline, (states, terminal.text)
                terminal.read(0.05)
                with contextlib.suppress(ClientError):
                    states = {s["name"]: s["ready"] for s in Client(str(examples / ".holdfast/run")).services()}
            while True:  # "ready" of a service is that it runs; its port is open a moment later
                assert time.monotonic() < deadline, terminal.text
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                        assert b"worker.sh" in answer.read()
                    break
                except OSError:
                    terminal.read(0.05)
        finally:
            os.write(terminal.fd, b"\x03")
            status = terminal.close()
        assert status == 0, terminal.text
        assert not marked.marked()
    said = terminal.text.replace("\r\n", "\n")
    assert f"http://127.0.0.1:{port}/" in said
    assert said.splitlines()[-1].endswith("everything is stopped")
    for name in ("prepare", "web", "announcer", "worker", "flaky"):
        assert re.search(rf"{name}@1 .*\x1b\[32m(ready|completed) *\x1b\[0m .*[\d.]+ m?s after its start", said), name
    order = [said.index(f"{name}@1 ") for name in ("prepare", "announcer", "worker")]
    assert order == sorted(order)
    stopped = [said.rindex(f" {word}") for word in ("worker@1 ", "announcer@1 ")]
    assert stopped == sorted(stopped)
