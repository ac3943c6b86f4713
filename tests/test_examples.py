"""What the references show: every TOML of every page loads, what docs/cli.md shows is what happens, and no block of a
reference is of a kind that nobody tries."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from helpers_readme import blocks, steps
from test_readme import Reader, agree
from test_schema import VALIDATORS

from holdfast.cli.commands import COMMANDS
from holdfast.config import model
from holdfast.config.load import load
from holdfast.config.model import Keys, keys_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
CLI = PAGES["docs/cli.md"]
TOML = [(page, body) for page in sorted(PAGES) for language, body in blocks(PAGES[page]) if language == "toml"]

# Who tries the blocks of a reference, by their language.
TRIED = {
    "README.md": {"toml": "here", "console": "test_readme.py", "python": "test_readme.py", "sh": "test_readme.py"},
    "docs/configuration.md": {"toml": "here", "": "test_config.py", "sh": "test_config.py"},
    "docs/cli.md": {"toml": "here", "console": "here", "text": "here"},
    "docs/api.md": {
        "toml": "here", "console": "test_api_docs.py", "python": "test_api_docs.py", "text": "test_api_docs.py",
        "sh": "test_api_docs.py", "json": "test_api_docs.py",
    },
}  # fmt: skip


# ---- TOML


def whole(text: str) -> str:
    """A piece of a file as a file."""
    least = '[service.example]\ncommand = ["true"]\n'
    if re.search(r"^\[service\.", text, flags=re.M):
        return text
    return text + least if text.startswith("[") else least + text


@pytest.mark.parametrize(("page", "text"), TOML, ids=[page for page, _ in TOML])
def test_every_toml_is_good(tmp_path, page, text):
    """For the loader, and for the schemas of editors."""
    file, token = tmp_path / "holdfast.toml", tmp_path / "token"
    token.write_text("0123456789abcdef" * 2)
    token.chmod(0o600)
    text = text.replace("/etc/holdfast/token", str(token))
    file.write_text(whole(text))
    if os.geteuid() != 0 and re.search(r"^(user|group|extra_groups) =", text, flags=re.M):
        pytest.skip("only root may choose a user")
    assert load(str(file), environ={}).services
    for validator in VALIDATORS:
        assert not [error.message for error in validator.iter_errors(tomllib.loads(whole(text)))]


def names(keys: Keys, prefix: str = "") -> set[str]:
    """Dotted, as the text nests them."""
    found = set()
    for name, key in keys.items():
        if isinstance(key, dict):
            found |= names(key, f"{prefix}{name}.")
        elif key.about.form == "table":
            assert isinstance(key.type, type)
            found |= names(keys_of(key.type), f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def used(table: dict[str, object], prefix: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        found.add(prefix + name)
        if isinstance(value, dict):
            found |= used(value, f"{prefix}{name}.")
    return found


def test_every_key_has_an_example():
    files = [tomllib.loads(whole(text)) for _, text in TOML]
    services = set().union(*(used(table) for file in files for table in file.get("service", {}).values()))
    assert names(keys_of(model.Service)) - services == {"group"}  # one that is there on every machine is none
    assert names(keys_of(model.Supervisor)) <= set().union(*(used(file.get("supervisor", {})) for file in files))


# ---- the command line


def test_commands_of_the_reference_are_those_of_the_program():
    tool = [sys.executable, str(ROOT / "tools/cli_reference.py"), "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the commands of docs/cli.md print here; the test proper is that this does not fail."""
    with Reader(tmp_path_factory.mktemp("cli")) as reader:
        player = reader.player()
        player.play(CLI)
        return player.printed


def test_what_the_page_shows_happens(printed):
    assert len(printed) == len(list(steps(CLI))) > 25
    assert agree(CLI, printed)
    for right, wrong in (("restarts 0", "restarts 1"), ("$ echo $?\n69", "$ echo $?\n70"), ("reloaded\n", "started\n")):
        assert right in CLI
        assert not agree(CLI.replace(right, wrong, 1), printed)


def test_every_command_has_an_example():
    shown = {word for command, _ in steps(CLI) for word in re.findall(r"\bholdfast ([a-z]+)", command)}
    assert {"run", *COMMANDS} <= shown


def test_every_exit_code_of_the_table_is_seen():
    """But 2, 78 and 130, which other tests see: each is asked for by `echo $?` on the page, or is the success."""
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", CLI, flags=re.M)}
    asked = {int(output) for command, output in steps(CLI) if command == "echo $?"}
    assert asked - {124} <= table
    assert table - asked == {0, 2, 78, 130}


def test_every_variable_that_is_read_is_on_the_page():
    found = set()
    for path in (ROOT / "src/holdfast").rglob("*.py"):
        text = path.read_text()
        found |= set(re.findall(r'environ\.get\("([A-Z_]+)"', text))
        found |= set(re.findall(r'"([A-Z_]+_(?:DIRECTORY|HOME))"', text))
    assert {"HOLDFAST_RUN_DIR", "NO_COLOR", "LOGS_DIRECTORY", "NOTIFY_SOCKET"} <= found  # the search itself works
    assert not [name for name in found if not re.search(rf"`{name}\b", CLI)]


# ---- all


@pytest.mark.parametrize("page", TRIED)
def test_every_block_of_a_reference_is_tried(page):
    text = PAGES[page]
    fences = re.findall(r"^```(\w*)$", text, flags=re.M)
    assert len(fences) % 2 == 0
    assert set(fences[::2]) == set(TRIED[page])
    assert not any(fences[1::2])
