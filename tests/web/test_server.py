"""Health, metrics and the server itself: real sockets, loopback, a token for everybody else."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest

from reconciler.errors import WebError
from reconciler.web import app as web
from reconciler.web.metrics import Metrics
from reconciler.web.server import WebServer, checked_address
from tests.conftest import Repos
from tests.web.test_webhooks import Site


def test_ready_is_a_loop_that_looks(repos: Repos) -> None:
    site = Site(repos)
    site.now = site.loop.clock.now
    assert site.client.get("/healthz").status_code == 200
    assert site.client.get("/readyz").status_code == 200
    site.now += web.STALE_SECONDS + 10
    assert (site.client.get("/readyz").status_code, site.client.get("/readyz").text) == (503, "the loop is stuck\n")
    site.loop.start()
    app = web.make_app(site.loop.controller, site.loop.engine.journal, Metrics(), branch="main", secret=None, monotonic=lambda: 0.0)
    from starlette.testclient import TestClient

    assert TestClient(app).get("/readyz").status_code == 503


def test_metrics_show_the_loop_and_its_projects(repos: Repos) -> None:
    site = Site(repos)
    for event in site.loop.engine.journal.events():
        site.metrics(event)
    shown = site.client.get("/metrics").text
    assert 'flops_project_info{customer="demo",project="a",ready="True",reason="Converged",synced="True"} 1.0' in shown
    assert "flops_queue_depth 0.0" in shown
    assert 'flops_reconcile_total{result="done"} 1.0' in shown
    assert "flops_status_commits_total" in shown
    assert 'flops_reconcile_duration_seconds_count{result="done"} 1.0' in shown


def test_metrics_count_fetches_and_pushes_by_what_came_of_them(repos: Repos) -> None:
    site = Site(repos)
    before = _values(site)
    assert before["flops_status_pushes_total"] >= 1
    assert before['flops_git_fetches_total{result="failed"}'] == 0
    away = repos.origin.with_name("away.git")
    repos.origin.rename(away)
    site.loop.settle()
    away.rename(repos.origin)
    after = _values(site)
    assert after['flops_git_fetches_total{result="failed"}'] > 0
    assert after['flops_git_fetches_total{result="done"}'] == before['flops_git_fetches_total{result="done"}']
    assert after["flops_status_push_retries_total"] == 0


def _values(site: Site) -> dict[str, float]:
    lines = site.client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def test_metrics_ask_for_the_token_where_there_is_one(repos: Repos) -> None:
    site = Site(repos, token="a-long-token")
    assert site.client.get("/metrics").status_code == 401
    assert site.client.get("/metrics", headers={"authorization": "Bearer another"}).status_code == 401
    assert site.client.get("/metrics", headers={"authorization": "Bearer a-long-token"}).status_code == 200
    assert site.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("listen", "token", "code"),
    [
        ("8090", "", "FL9308"),
        ("127.0.0.1:x", "", "FL9308"),
        ("127.0.0.1:99999", "", "FL9308"),
        ("0.0.0.0:8090", "", "FL9310"),
        ("[::]:8090", "", "FL9310"),
        ("10.0.0.1:8090", "", "FL9310"),
        ("flops.example.invalid:8090", "", "FL9310"),
        ("0.0.0.0:8090", "a-token", ""),
        ("127.0.0.1:8090", "", ""),
        ("[::1]:8090", "", ""),
        ("localhost:0", "", ""),
    ],
)
def test_off_loopback_only_with_a_token(listen: str, token: str, code: str) -> None:
    if code:
        with pytest.raises(WebError, match=code):
            checked_address(listen, closed=bool(token))
    else:
        assert checked_address(listen, closed=bool(token))[1] == int(listen.rpartition(":")[2])


def test_the_server_serves_and_ends(repos: Repos) -> None:
    site = Site(repos)
    before = threading.active_count()
    with WebServer(site.client.app, "127.0.0.1", 0) as server:  # type: ignore[arg-type]
        assert httpx.get(f"http://127.0.0.1:{server.port}/healthz", timeout=10).text == "ok\n"
    assert threading.active_count() <= before


def test_a_port_that_is_taken_is_one_clear_error(repos: Repos) -> None:
    site = Site(repos)
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(WebError, match="FL9309"):
        WebServer(site.client.app, "127.0.0.1", holder.getsockname()[1]).__enter__()  # type: ignore[arg-type]
