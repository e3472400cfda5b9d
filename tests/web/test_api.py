"""The API: what the loop knows, for those who may; what an operator may ask; and nothing that could hurt."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from reconciler.errors import ServingError, WebError
from reconciler.looking import ProjectView
from reconciler.plan import Stage
from reconciler.redaction import learn
from reconciler.spec import OperatorConfig
from reconciler.web import server as web_server
from reconciler.web.access import open_access
from reconciler.web.answers import HEADERS, MAX_TARGET
from reconciler.web.app import make_app
from reconciler.web.server import WebServer
from tests.conftest import Repos
from tests.web.test_webhooks import Site

VIEWER, OPERATOR = "viewer-0123456789abcdef", "operator-0123456789abcdef"
ENVIRON = {"VIEWER": VIEWER, "OPERATOR": OPERATOR}
TOKENS = OperatorConfig.model_validate(
    {
        "web": {
            "tokens": [
                {"name": "grafana", "role": "viewer", "secret_ref": {"env": "VIEWER"}},
                {"name": "anna", "role": "operator", "secret_ref": {"env": "OPERATOR"}},
            ]
        }
    }
).web.tokens


class ApiSite(Site):
    """The application with a viewer's and an operator's token."""

    def __init__(self, repos: Repos, shared: str = "", tokens: Any = TOKENS) -> None:
        super().__init__(repos)
        access = open_access(tokens, shared, environ=ENVIRON)
        app = make_app(
            self.loop.controller, self.loop.engine.journal, self.metrics, branch="main", secret=None, access=access,
            monotonic=lambda: self.now,
        )  # fmt: skip
        self.client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)

    def get(self, path: str, token: str = VIEWER) -> httpx.Response:
        return self.client.get(f"/api/v1/{path}", headers={"authorization": f"Bearer {token}"} if token else {})

    def post(self, path: str, token: str = OPERATOR, **more: Any) -> httpx.Response:
        return self.client.post(f"/api/v1/{path}", headers={"authorization": f"Bearer {token}"} if token else {}, **more)


@pytest.fixture
def site(repos: Repos) -> ApiSite:
    return ApiSite(repos)


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["code"]


def test_what_a_viewer_sees(site: ApiSite) -> None:
    journal = site.loop.engine.journal
    for number in range(5):
        journal.append("a", "note", f"number {number}")
    project = site.get("projects").json()["items"][0]
    assert (project["name"], project["synced"], project["ready"], project["reason"]) == ("a", "True", "True", "Converged")
    assert site.get("projects/a").json() == site.loop.controller.ledger.documents["a"]
    assert site.get("projects/a/plan").json()["change"] == "none"
    newest = site.get("projects/a/events?limit=2").json()
    assert ([item["message"] for item in newest["items"]], newest["more"]) == (["number 3", "number 4"], True)
    before = site.get(f"projects/a/events?limit=2&before={newest['items'][0]['id']}").json()
    assert [item["message"] for item in before["items"]] == ["number 1", "number 2"]
    after = site.get(f"projects/a/events?limit=500&after={before['items'][0]['id']}").json()
    assert ([item["message"] for item in after["items"]], after["more"]) == (["number 2", "number 3", "number 4"], False)
    runs = site.get("projects/a/history").json()["items"]
    assert [item["stage"] for item in runs][:2] == ["resolve", "build"]
    one = site.get(f"projects/a/history?limit=1&before={runs[1]['id']}").json()
    assert (one["items"], one["more"]) == ([runs[0]], False)


def test_projects_come_in_pages(site: ApiSite) -> None:
    site.loop.edit({path: text for name in "bcd" for path, text in site.loop.project(name).items()})
    site.loop.settle()
    first = site.get("projects?limit=3").json()
    assert ([item["name"] for item in first["items"]], first["more"]) == (["a", "b", "c"], True)
    rest = site.get("projects?limit=3&after=c").json()
    assert ([item["name"] for item in rest["items"]], rest["more"]) == (["d"], False)


@pytest.mark.parametrize("path", ["projects", "projects/a", "projects/a/events", "projects/a/history", "projects/a/plan"])
def test_nobody_sees_anything_without_a_token(site: ApiSite, path: str) -> None:
    for token in ("", "x", VIEWER[:-1], VIEWER + "x", "ü"):
        answer = site.client.get(f"/api/v1/{path}", headers={"authorization": f"Bearer {token}".encode()})
        assert refused(answer) == (401, "FL9307")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert site.get(path).status_code == 200
    assert site.get(path, OPERATOR).status_code == 200
    assert site.client.get("/metrics").status_code == 401
    assert site.client.get("/metrics", headers={"authorization": f"bearer {VIEWER}"}).status_code == 200


def test_only_an_operator_says_look(site: ApiSite) -> None:
    assert refused(site.post("look", "")) == (401, "FL9307")
    assert refused(site.post("look", VIEWER)) == (403, "FL9323")
    assert not site.asked
    assert (site.post("look").status_code, site.asked) == (202, True)


def test_retry_ends_the_waiting(site: ApiSite) -> None:
    broken = True

    def fail(view: ProjectView, stage: Stage) -> None:
        if broken and stage is Stage.TRAIN:
            raise ServingError("FL7010", "It does not answer.", cure="Wait.", transient=True)

    assert refused(site.post("projects/a/retry")) == (409, "FL9326")
    site.loop.before = fail
    site.loop.edit(site.loop.project("a", rounds=9))
    for _ in range(12):
        site.loop.settle()
        site.loop.clock.now += 1000
    site.loop.settle()
    queue = site.loop.controller.queue
    assert not queue.has_due(site.loop.clock.now)
    broken = False
    assert refused(site.post("projects/a/retry", VIEWER)) == (403, "FL9323")
    assert site.post("projects/a/retry").status_code == 202
    assert list(queue.due(site.loop.clock.now)) == ["a"]
    site.loop.settle()
    assert site.loop.says("a", "Synced")[0] == "True"


def test_the_shared_token_is_a_viewers(repos: Repos) -> None:
    site = ApiSite(repos, "shared-token", ())
    assert site.get("projects", "shared-token").status_code == 200
    assert refused(site.post("look", "shared-token")) == (403, "FL9323")


def test_without_tokens_loopback_may_look_on_by_its_own_name(repos: Repos) -> None:
    site = ApiSite(repos, "", ())
    assert site.get("projects", "").status_code == 200
    assert refused(site.post("look", "")) == (403, "FL9323")
    for host in ("evil.example.invalid", "127.0.0.1.example.invalid", "", "[::1"):
        answer = site.client.get("/api/v1/projects", headers={"host": host})
        assert refused(answer) == (421, "FL9329")
        assert refused(site.client.get("/metrics", headers={"host": host})) == (421, "FL9329")
    assert site.client.get("/api/v1/projects", headers={"host": "[::1]:8090"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nothing", (404, "FL9320")),
        ("projects/nobody", (404, "FL9324")),
        ("projects/nobody/events", (404, "FL9324")),
        ("projects/nobody/plan", (404, "FL9324")),
        ("projects/..%2f..%2fetc", (404, "FL9320")),
        ("projects?limit=0", (400, "FL9322")),
        ("projects?limit=501", (400, "FL9322")),
        ("projects?limit=²", (400, "FL9322")),
        ("projects?limit=1&limit=2", (400, "FL9322")),
        ("projects?other=1", (400, "FL9322")),
        ("projects/a/events?after=-1", (400, "FL9322")),
        ("projects/a/events?after=9223372036854775808", (400, "FL9322")),
        ("projects/a/events?after=1&before=2", (400, "FL9322")),
        ("projects?after=" + "x" * MAX_TARGET, (414, "FL9325")),
        ("look", (405, "FL9321")),
    ],
)
def test_what_cannot_be_asked_for(site: ApiSite, path: str, code: tuple[int, str]) -> None:
    assert refused(site.get(path)) == code


def test_a_body_is_capped(site: ApiSite) -> None:
    assert refused(site.post("look", content=b"x" * 1025)) == (413, "FL9304")
    assert refused(site.post("look", content=(b"x" * 600 for _ in range(2)))) == (413, "FL9304")
    assert site.post("look", content=b"{}").status_code == 202


def test_a_loop_that_has_not_looked_says_so(site: ApiSite) -> None:
    site.loop.controller.view = None
    assert refused(site.get("projects")) == (503, "FL9328")


def test_every_answer_is_harmless(site: ApiSite) -> None:
    learn("canary-0123456789")
    nasty = "<script>alert(1)</script>\x1b[31m\u202e\r\nX: 1 & canary-0123456789 https://me:pass@git.example.invalid"
    site.loop.engine.journal.append("a", "note", nasty, data={nasty: nasty})
    answer = site.get("projects/a/events?limit=1")
    assert not set(b"<>&\x1b\r") & set(answer.content)
    assert "\u202e" not in answer.text
    item = answer.json()["items"][0]
    assert item["message"] == "<script>alert(1)</script> [31m  \nX: 1 & *** https://***@git.example.invalid"
    for found in (answer, site.get("projects", ""), site.get("nothing"), site.client.get("/healthz"), site.client.get("/metrics")):
        assert {name: found.headers[name] for name in HEADERS} == HEADERS


def test_an_error_of_the_server_itself_says_little(site: ApiSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("with the secret text")

    monkeypatch.setattr(site.loop.engine.journal, "page", fail)
    answer = site.get("projects/a/events")
    assert refused(answer) == (500, "FL9330")
    assert "secret text" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_tokens_that_can_be_guessed_are_refused() -> None:
    with pytest.raises(WebError, match="FL9327"):
        open_access(TOKENS, "", environ=ENVIRON | {"VIEWER": "short"})


def test_a_connection_that_says_nothing_is_closed(site: ApiSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "HEAD_SECONDS", 0.2)
    with WebServer(site.client.app, "127.0.0.1", 0) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: ")
            assert slow.recv(1) == b""
        with httpx.Client() as client:
            for _ in range(2):
                assert client.get(f"http://127.0.0.1:{server.port}/healthz", timeout=20).status_code == 200


def test_the_description_names_every_route(site: ApiSite) -> None:
    described = site.client.get("/api/v1/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    source = Path(make_app.__code__.co_filename).with_name("api.py").read_text()
    routes = {"/api/v1" + path for path in re.findall(r'Route\(f"\{PREFIX\}([^"]*)"', source)}
    routes |= {"/api/v1/projects/{name}" + path for path in re.findall(r'Route\(f"\{one\}([^"]*)"', source)}
    assert set(described["paths"]) - {"/api/v1/projects/{name}"} == routes
    assert json.dumps(described)
