"""Webhooks: only signed ones say "look", strangers are cheap, and a replay does nothing."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from reconciler.errors import WebError
from reconciler.web import app as web
from reconciler.web.access import open_access
from reconciler.web.metrics import Metrics
from reconciler.web.webhooks import MAX_BODY, Forge, Hook, authenticate, checked_secret, concerns, parse
from tests.conftest import Repos
from tests.controller.looping import Looping

SECRET = b"0123456789abcdef0123456789abcdef"
PUSH = json.dumps({"ref": "refs/heads/main", "repository": {"clone_url": "https://git.example.invalid/a.git"}}).encode()


def signature(body: bytes, secret: bytes = SECRET) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def headers(forge: str, body: bytes = PUSH, event: str = "push") -> dict[str, str]:
    """What each forge sends."""
    return {
        "github": {"x-hub-signature-256": f"sha256={signature(body)}", "x-github-event": event},
        "gitlab": {"x-gitlab-token": SECRET.decode(), "x-gitlab-event": "Push Hook" if event == "push" else event},
        "gitea": {"x-gitea-signature": signature(body), "x-gitea-event": event},
        "forgejo": {"x-forgejo-signature": signature(body), "x-forgejo-event": event},
        "generic": {"x-signature-256": f"sha256={signature(body)}"},
    }[forge]


class Site:
    """The application over a real loop."""

    def __init__(self, repos: Repos, *, secret: bytes | None = SECRET, token: str = "") -> None:
        self.loop = Looping(repos)
        self.loop.edit(self.loop.project("a"))
        self.loop.settle()
        self.now = 0.0
        self.metrics = Metrics()
        self.metrics.watch(self.loop.controller, self.loop.controller._publisher, self.loop.clock)
        access = open_access((), token, environ={})
        app = web.make_app(
            self.loop.controller, self.loop.engine.journal, self.metrics, branch="main", secret=secret, access=access,
            monotonic=lambda: self.now,
        )  # fmt: skip
        self.client = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)

    @property
    def asked(self) -> bool:
        return self.loop.controller._asked is not None


@pytest.fixture
def site(repos: Repos) -> Site:
    return Site(repos)


@pytest.mark.parametrize("forge", list(Forge))
def test_a_signed_push_says_look(site: Site, forge: Forge) -> None:
    answer = site.client.post(f"/webhooks/{forge}", content=PUSH, headers=headers(forge))
    assert (answer.status_code, answer.json()) == (202, {"result": "accepted"})
    assert site.asked


@pytest.mark.parametrize("forge", list(Forge))
@pytest.mark.parametrize("wrong", ["none", "other secret", "other body", "empty", "not ascii"])
def test_what_is_not_signed_with_our_secret_does_nothing(site: Site, forge: Forge, wrong: str) -> None:
    made: dict[str, str | bytes] = dict(headers(forge))
    key = next(name for name in made if "signature" in name or "token" in name)
    made[key] = {
        "none": "",
        "other secret": "sha256=" + signature(PUSH, b"another"),
        "other body": "sha256=" + signature(b"{}"),
        "empty": "sha256=",
        "not ascii": "sha256=ü".encode("latin-1"),
    }[wrong]
    answer = site.client.post(f"/webhooks/{forge}", content=PUSH, headers=made)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (401, "FL9302")
    assert not site.asked


def test_a_signature_of_one_forge_is_none_of_another(site: Site) -> None:
    answer = site.client.post("/webhooks/github", content=PUSH, headers=headers("gitea"))
    assert answer.status_code == 401


def test_a_replay_looks_and_nothing_else(site: Site) -> None:
    actions, commits = site.loop.world.actions, site.loop.commits()
    for _ in range(20):
        site.client.post("/webhooks/github", content=PUSH, headers=headers("github"))
        site.now += 1
        site.loop.settle()
    assert (site.loop.world.actions, site.loop.commits()) == (actions, commits)


def test_a_body_that_is_too_large_is_refused_before_its_signature_is_made(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[bytes] = []
    monkeypatch.setattr(web, "authenticate", lambda *given: computed.append(given[2]))
    body = b"x" * (MAX_BODY + 1)
    announced = site.client.post("/webhooks/github", content=body)
    chunked = site.client.post("/webhooks/github", content=(body[start : start + 65536] for start in range(0, len(body), 65536)))
    lying = site.client.post("/webhooks/github", content=b"{}", headers={"content-length": "-1"})
    assert [answer.status_code for answer in (announced, chunked, lying)] == [413, 413, 413]
    assert computed == []


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 400), (b'"a"', 400), (b"\xff\xfe", 400), (b"", 202), (b"{}", 202)]
)
def test_bodies_that_are_no_object(site: Site, body: bytes, status: int) -> None:
    assert site.client.post("/webhooks/github", content=body, headers=headers("github", body)).status_code == status


@pytest.mark.parametrize(
    ("event", "ref", "looks"),
    [
        ("push", "refs/heads/main", True),
        ("push", "refs/heads/status/default", False),
        ("push", "refs/tags/v1", True),
        ("push", "", True),
        ("ping", "", False),
        ("issues", "", False),
        ("star", "refs/heads/main", False),
    ],
)
def test_only_what_may_matter_is_looked_at(event: str, ref: str, looks: bool) -> None:
    assert concerns(Hook(event, ref), "main") is looks


def test_a_flood_is_told_to_come_back_and_others_are_let_in_later(site: Site) -> None:
    answers = [
        site.client.post("/webhooks/github", content=PUSH, headers=headers("github")).status_code for _ in range(web.BURST + 10)
    ]
    assert answers[: web.BURST] == [202] * web.BURST
    assert set(answers[web.BURST :]) == {503}
    site.now += 10
    assert site.client.post("/webhooks/github", content=PUSH, headers=headers("github")).status_code == 202


def test_without_a_secret_there_are_no_webhooks(repos: Repos) -> None:
    site = Site(repos, secret=None)
    assert site.client.post("/webhooks/github", content=PUSH, headers=headers("github")).status_code == 404
    assert site.client.post("/webhooks/unknown", content=PUSH).status_code == 404
    assert site.client.get("/webhooks/github").status_code == 405


@pytest.mark.parametrize("secret", ["", "   ", "\n", "short", "fifteen-letters"])
def test_secrets_that_can_be_guessed_are_refused(secret: str) -> None:
    with pytest.raises(WebError, match="secret"):
        checked_secret(secret)


@given(
    st.binary(max_size=300),
    st.sampled_from(list(Forge)),
    st.dictionaries(st.sampled_from(["x-github-event", "x-event"]), st.text()),
)
def test_no_body_makes_the_parser_fail_otherwise(body: bytes, forge: Forge, given_headers: dict[str, str]) -> None:
    hook = Hook("")
    with contextlib.suppress(WebError):
        hook = parse(forge, given_headers, body)
    assert all(len(url) <= 500 for url in hook.urls)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_payload_of_strange_types_does(value: object) -> None:
    body = json.dumps({"ref": value, "repository": value, "project": {"web_url": value}}).encode()
    assert isinstance(concerns(parse(Forge.GITLAB, {}, body), "main"), bool)


@given(st.binary(max_size=200), st.text(max_size=80))
def test_nobody_gets_in_by_luck(body: bytes, text: str) -> None:
    for forge in Forge:
        made = dict.fromkeys(headers(forge), text)
        with pytest.raises(WebError):
            authenticate(forge, made, body, SECRET)
