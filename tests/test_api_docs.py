"""docs/api.md: its examples run, its tables name what is there."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
import subprocess

import msgspec
import pytest
from conftest import require
from helpers_api import ServedTcp
from helpers_config import loaded
from helpers_control import LogWriter

from holdfast.client import Client
from holdfast.config.tcp import HOW_TO_MAKE_ONE, TOKEN_LEAST, read_token
from holdfast.control.errors import STATUS
from holdfast.control.routes import ROUTES
from holdfast.daemon.logs import Entry, Page
from holdfast.daemon.status import (
    EventRecord,
    HistoryRecord,
    LogStatus,
    ServiceStatus,
    StopSummary,
    SupervisorStatus,
    UpdateStatus,
)

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs/api.md").read_text()
RUN_DIR = "/run/holdfast"
TOKEN_FILE = "/etc/holdfast/token"


@pytest.fixture
def served(tmp_path):
    with ServedTcp(tmp_path) as served, LogWriter(tmp_path / "logs" / "web") as log:
        log.write(b"listening on port 8080\n")
        yield served


def same(shown, real):
    """What the page shows is what came; "..." stands for the rest of an object."""
    if isinstance(shown, dict) and "..." in shown:
        return all(same(value, real[key]) for key, value in shown.items() if key != "...")
    if isinstance(shown, list):
        return len(shown) == len(real) and all(map(same, shown, real))
    if isinstance(shown, dict):
        return shown.keys() == real.keys() and all(same(value, real[key]) for key, value in shown.items())
    return shown == real


def test_the_answer_to_an_update():
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.S)
    answer = msgspec.json.decode(text, type=UpdateStatus)
    assert same(json.loads(text), msgspec.to_builtins(answer))  # all fields, and no others


def test_curl(served):
    require("curl")
    examples = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, flags=re.S)
    assert len(examples) == PAGE.count("```console") == 6
    for command, shown in examples:
        assert f"{RUN_DIR}/control " in command or "Bearer" in command
        here = command.replace(RUN_DIR, served.run_dir).replace(TOKEN_FILE, served.token_file)
        here = here.replace("127.0.0.1:9001", f"127.0.0.1:{served.port}")
        done = subprocess.run(["sh", "-c", here], capture_output=True, text=True, check=True, timeout=60)
        assert same(json.loads(shown), json.loads(done.stdout)), command


def test_python(served):
    examples = re.findall(r"```python\n(.*?)```\n\nOutput:\n\n```text\n(.*?)```", PAGE, flags=re.S)
    assert len(examples) == PAGE.count("```python") == 2
    for code, shown in examples:
        assert f'Client("{RUN_DIR}")' in code
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code.replace(RUN_DIR, served.run_dir), {})
        assert out.getvalue() == shown


def test_every_code_is_in_the_table():
    table = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, flags=re.M))
    assert {code: str(status) for code, status in STATUS.items()} == table


def test_every_field_is_named():
    kinds = (ServiceStatus, SupervisorStatus, EventRecord, LogStatus, HistoryRecord, StopSummary, Page, Entry)
    for kind in kinds:
        section = PAGE.partition(f"\n### {kind.__name__}\n")[2].partition("\n### ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, flags=re.M) == list(kind.__struct_fields__)


def test_every_link_leads_somewhere():
    headings = {each.lower().replace(" ", "-") for each in re.findall(r"^#+ (.*)", PAGE, flags=re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= headings


def test_tcp_as_it_is_shown(tmp_path):
    """The command that makes a token, and the table that names it."""
    (command,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.S)
    assert command.strip() == HOW_TO_MAKE_ONE.removeprefix("make one: ").format(path=TOKEN_FILE)
    subprocess.run(["sh", "-c", command.replace(TOKEN_FILE, str(tmp_path / "token"))], check=True, timeout=60)
    text = table.replace(TOKEN_FILE, str(tmp_path / "token")) + '[service.web]\ncommand = ["true"]\n'
    http = loaded(tmp_path, text).supervisor.http
    assert http.listen in PAGE
    assert len(read_token(http.token_file)) >= TOKEN_LEAST


def test_every_route_is_named(served):
    app = served.server._config.loaded_app
    paths = {route.path for route in app.routes}
    assert len(paths) == len(ROUTES) >= 13
    for path in paths:
        assert path.replace("{name}", "NAME") in PAGE


def test_every_method_of_the_client_is_documented():
    public = [name for name in vars(Client) if not name.startswith("_")]
    assert len(public) >= 11
    for name in public:
        assert (vars(Client)[name].__doc__ or "").strip(), name
