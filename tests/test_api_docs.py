"""docs/api.md: its examples run, its tables name what is there."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
import subprocess

import pytest
from conftest import require
from helpers_control import LogWriter, Served

from holdfast.client import Client
from holdfast.control.errors import STATUS
from holdfast.daemon.status import (
    EventRecord,
    HistoryRecord,
    LogStatus,
    ServiceStatus,
    StopSummary,
    SupervisorStatus,
)

PAGE = (pathlib.Path(__file__).resolve().parent.parent / "docs/api.md").read_text()
RUN_DIR = "/run/holdfast"


@pytest.fixture
def served(tmp_path):
    with Served(tmp_path) as served, LogWriter(tmp_path / "logs" / "web") as log:
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


def test_curl(served):
    require("curl")
    examples = re.findall(r"```console\n\$ (.*?)\n(.*?)```", PAGE, flags=re.S)
    assert len(examples) == 4
    for command, shown in examples:
        assert f"{RUN_DIR}/control " in command
        here = command.replace(RUN_DIR, served.run_dir)
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
    fields = set(re.findall(r"^\| `(\w+)` \| (?:string|boolean|number|object|array)", PAGE, flags=re.M))
    assert fields == set(ServiceStatus.__struct_fields__)
    for kind in (SupervisorStatus, EventRecord, LogStatus, HistoryRecord, StopSummary):
        for field in kind.__struct_fields__:
            assert f"`{field}`" in PAGE, field


def test_every_route_is_named(served):
    app = served.server._config.loaded_app
    paths = {route.path for route in app.routes}
    assert len(paths) == 13
    for path in paths:
        assert path.replace("{name}", "NAME") in PAGE


def test_every_method_of_the_client_is_documented():
    public = [name for name in vars(Client) if not name.startswith("_")]
    assert len(public) >= 11
    for name in public:
        assert (vars(Client)[name].__doc__ or "").strip(), name
