"""The OpenAPI document: what the table of routes says, and what the running server does, as schemathesis sees it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import pytest
import requests
import schemathesis
import urllib3
from helpers_api import connect
from helpers_control import Served
from helpers_supervisor import Running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig

from holdfast.control import app
from holdfast.control.errors import STATUS
from holdfast.control.openapi import document, refusals
from holdfast.control.routes import ROUTES

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVICES = "".join(
    f'[service.{name}]\nshell = true\ncommand = "echo on; exec sleep 1000"\ngrace = "1s"\n' for name in ("web", "db")
)
ENDS = ("/v1/shutdown", "/v1/upgrade")  # for a supervisor that only says so


# ---- the document


def test_document_is_what_is_committed():
    command = [sys.executable, str(ROOT / "tools/api_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_route_is_in_it_with_words_for_everything():
    found = {(method.upper(), path) for path, item in document()["paths"].items() for method in item}
    assert found == {(route.method, route.path) for route in ROUTES}
    names = [each["operationId"] for item in document()["paths"].values() for each in item.values()]
    assert len(set(names)) == len(names)
    for item in document()["paths"].values():
        for operation in item.values():
            assert operation["summary"].endswith(".")
            for parameter in operation.get("parameters", []):
                assert parameter["description"], parameter


def test_every_refusal_is_a_word_with_a_status():
    for route in ROUTES:
        assert set(route.refuses) <= set(STATUS)
        assert len(refusals(route)) > len(route.refuses)


def test_it_names_nothing_that_is_not_there():
    text = json.dumps(document())
    parts = document()["components"]
    for kind, name in re.findall(r'"#/components/(\w+)/([^"]+)"', text):
        assert name in parts[kind], (kind, name)
    for kind in ("schemas", "responses"):
        for name in parts[kind]:
            assert f'"#/components/{kind}/{name}"' in text, name


def test_schemas_are_json_schemas():
    for name, schema in document()["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("description"), name


def test_the_application_has_no_other_routes(tmp_path):
    with Served(tmp_path) as served:
        routes = [(route.path, route.methods - {"HEAD"}) for route in served.server._config.loaded_app.routes]
    assert routes == [(route.path, {route.method}) for route in ROUTES]
    assert "/v1/" not in pathlib.Path(app.__file__).read_text().replace("everything begins with /v1/", "")


# ---- the server


class Unix(requests.adapters.HTTPAdapter):
    """Requests by the unix socket.  Of a stream only what is there at once: the answer has no end."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def send(self, request, **_options):
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connect(self.path)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read
                connection.request(request.method, request.path_url, request.body, request.headers)
            raw = connection.getresponse()
            body = b"" if raw.getheader("content-type") == "text/event-stream" else raw.read()
            answer = urllib3.HTTPResponse(
                io.BytesIO(body), raw.getheaders(), raw.status, reason=raw.reason, preload_content=False
            )
            return self.build_response(request, answer)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Where a real supervisor listens, and one that is all in memory, which shutdown does not end."""
    directory = tmp_path_factory.mktemp("api")
    with Running(directory, SERVICES) as up, Served(tmp_path_factory.mktemp("memory")) as served:
        for name in ("web", "db"):
            up.until(name, state="running")
        yield up.run_dir / "control", served.path


CHECKED = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method",
)  # fmt: skip
# 413: a wrong value may be too large as well.
REJECTED = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 404, 413, 415]}}}
SCHEMA = schemathesis.openapi.from_dict(document(), config=SchemathesisConfig.from_dict(REJECTED))
OPERATIONS = {each.ok().label: each.ok() for each in SCHEMA.get_all_operations()}
NEVER_WRONG = (  # it takes nothing, or any text
    "GET /v1/supervisor", "GET /v1/openapi.json", "GET /v1/services/{name}", "GET /v1/services/{name}/tree",
)  # fmt: skip
NAMES = st.sampled_from(["web", "db", "w*", "*", "web@1", "?"])


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_server_does_what_the_document_says(running, label, mode):
    operation = OPERATIONS[label]
    if mode is GenerationMode.NEGATIVE and label in NEVER_WRONG:
        return
    load_all_checks()
    names = (*CHECKED, "negative_data_rejection") if mode is GenerationMode.NEGATIVE else CHECKED
    checks = CHECKS.get_by_names(list(names))
    answered = set()
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", Unix(running[operation.path in ENDS]))

        @settings(max_examples=25, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode), st.data())
        def check(case, data):
            if mode is GenerationMode.POSITIVE and data.draw(st.integers(0, 2)):
                known(case, data)
            answered.add(case.call_and_validate("http://localhost", session=session, checks=checks).status_code)

        check()
    assert answered & ({200} if mode is GenerationMode.POSITIVE else {400, 404, 415}), answered


def known(case, data):
    """Names of services that there are: any string hits none."""
    if "name" in case.path_parameters:
        case.path_parameters["name"] = data.draw(st.sampled_from(["web", "db"]))
    if case.path_parameters and "cursor" in (case.query or {}):
        del case.query["cursor"]  # any string is none of this log
    if isinstance(case.body, dict) and "cursors" in case.body:
        case.body["cursors"] = dict.fromkeys(data.draw(st.sampled_from([["web"], ["web", "db"]])))
    if isinstance(case.body, dict) and "names" in case.body:
        case.body["names"] = data.draw(st.lists(NAMES, min_size=1, max_size=3))
        if "signal" in case.body:
            case.body["signal"] = data.draw(st.sampled_from(["CONT", "SIGCONT", 18]))
    if "name" in (case.query or {}):
        case.query["name"] = data.draw(st.lists(NAMES, max_size=3))
