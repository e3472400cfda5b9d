"""Each forge by its own API: what is written, where, and how it is found again."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import NotifyError
from reconciler.notify.channels import marker
from reconciler.notify.notice import State
from reconciler.notify.origin import home
from reconciler.notify.targets import look_at
from reconciler.spec.notify import NotifyTarget
from reconciler.spec.secret_ref import SecretRef
from reconciler.web.webhooks import Forge as Receiver
from reconciler.web.webhooks import authenticate, parse
from tests.notify.forge import BOT, TOKEN, Answer, Forge
from tests.notify.sending import ENVIRON, A, B, Sending, hook, notice, target


@pytest.fixture(params=["github", "gitlab", "gitea"])
def forge(request: pytest.FixtureRequest) -> Iterator[Forge]:
    with Forge(request.param).serving() as serving:
        yield serving


@pytest.fixture
def github() -> Iterator[Forge]:
    with Forge("github").serving() as serving:
        yield serving


def test_states_are_the_forges_own_words(forge: Forge, tmp_path: Path) -> None:
    sending = Sending(forge, tmp_path)
    for number, state in enumerate(State):
        sending.put(notice(f"p{number}", state=state))
    sending.run()
    assert len(forge.statuses) == len(State)
    expected = {
        "github": ["pending", "success", "failure", "error", "error"],
        "gitea": ["pending", "success", "failure", "error", "error"],
        "gitlab": ["running", "success", "failed", "failed", "canceled"],
    }
    assert [item["state"] for item in forge.statuses] == expected[forge.kind]
    assert forge.statuses[0].get("context", forge.statuses[0].get("name")) == "flops/prod/p0"
    assert not sending.said
    assert TOKEN not in str(forge.statuses)


def test_a_link_to_a_page_of_the_project(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path, target(github, link="https://flops.example.invalid/projects/{project}"))
    sending.put(notice())
    sending.run()
    assert github.statuses[0]["target_url"] == "https://flops.example.invalid/projects/digits"


def test_gitlab_may_be_told_twice_that_something_runs(tmp_path: Path) -> None:
    with Forge("gitlab").serving() as forge:
        sending = Sending(forge, tmp_path)
        sending.put(notice(state=State.PENDING, key="one"))
        sending.run()
        sending.put(notice(state=State.PENDING, key="two"))
        sending.run()
        sending.put(notice(state=State.SUCCESS))
        sending.run()
        assert [state for state, _ in forge.of()] == ["running", "success"]
        assert not sending.said


def test_one_comment_is_kept_up_to_date(forge: Forge, tmp_path: Path) -> None:
    forge.merged[A] = 7
    forge.per_page = 2  # ours is on a later page
    for number in range(5):
        forge.say(7, "somebody", f"comment {number}")
    sending = Sending(forge, tmp_path, target(forge, comments=True, statuses=False))
    sending.put(notice("a", state=State.PENDING), notice("b"))
    sending.run()
    sending.put(notice("a"))
    sending.run()
    own = [item for item in forge.comments if item["author"] == BOT]
    assert len(own) == 1
    assert own[0]["thread"] == 7
    assert own[0]["body"].startswith(marker("prod"))
    assert own[0]["body"].count("✅") == 2
    assert not forge.statuses


def test_a_comment_is_found_again_when_the_state_directory_is_lost(forge: Forge, tmp_path: Path) -> None:
    forge.merged[A] = 7
    forge.per_page = 2
    forge.say(7, "mallory", f"{marker('prod')}\nours, says mallory")
    ours = forge.say(7, BOT, f"{marker('prod')}\nold")
    forge.say(7, BOT, f"{marker('staging')}\nanother instance's")
    sending = Sending(forge, tmp_path, target(forge, comments=True, statuses=False))
    sending.put(notice())
    sending.run()
    assert len(forge.comments) == 3
    assert "✅" in next(item["body"] for item in forge.comments if item["id"] == ours)
    assert "✅" not in forge.comments[0]["body"] + forge.comments[2]["body"]
    assert not sending.said


def test_a_deleted_comment_is_written_anew(forge: Forge, tmp_path: Path) -> None:
    forge.merged[A] = 7
    sending = Sending(forge, tmp_path, target(forge, comments=True, statuses=False))
    sending.put(notice(state=State.PENDING))
    sending.run()
    forge.comments.clear()
    sending.put(notice())
    sending.run()
    assert len(forge.comments) == 1
    assert not sending.said


def test_a_commit_without_a_request_has_nobody_to_comment_for(forge: Forge, tmp_path: Path) -> None:
    sending = Sending(forge, tmp_path, target(forge, comments=True))
    sending.put(notice())
    sending.run()
    assert len(forge.statuses) == 1
    assert not forge.comments
    assert sending.sender.step() is None
    assert not sending.said


def test_a_token_that_does_not_say_whose_it_is(github: Forge, tmp_path: Path) -> None:
    github.merged[A] = 7
    github.user_status = 403
    sending = Sending(github, tmp_path, target(github, comments=True, statuses=False))
    sending.put(notice())
    sending.run()
    assert not github.comments
    assert ["FL9411" in said for said in sending.said] == [True]
    sending = Sending(github, tmp_path, target(github, comments=True, statuses=False, author=BOT))
    sending.run()
    assert len(github.comments) == 1


def test_pages_are_counted_and_never_followed(github: Forge, tmp_path: Path) -> None:
    github.merged[A] = 7
    github.per_page = 1
    for number in range(4):
        github.say(7, "somebody", str(number))
    sending = Sending(github, tmp_path, target(github, comments=True, statuses=False))
    sending.put(notice())
    sending.run()
    pages = [item.query["page"] for item in github.requests if item.method == "GET" and item.path.endswith("/7/comments")]
    assert pages == ["1", "2", "3", "4"]


def test_a_webhook_is_signed_as_our_own_receiver_wants_it(github: Forge, tmp_path: Path) -> None:
    sending = Sending(github, tmp_path, hook(github))
    sending.put(notice(customer="demo", digest="abc", version="3"))
    sending.run()
    (seen,) = github.hooks
    authenticate(Receiver.GENERIC, seen.headers, seen.raw, TOKEN.encode())
    assert parse(Receiver.GENERIC, seen.headers, seen.raw).event == "transition"
    assert seen.headers["x-signature-256"] == "sha256=" + hmac.new(TOKEN.encode(), seen.raw, hashlib.sha256).hexdigest()
    told = seen.body
    assert (told["instance"], told["project"], told["commit"], told["state"]) == ("prod", "digits", A, "success")
    assert (told["customer"], told["digest"], told["model_version"]) == ("demo", "abc", "3")
    assert told["id"] == seen.headers["x-event-id"]
    assert isinstance(told["time"], float)
    assert TOKEN not in str(told)


def test_a_webhook_that_is_sent_again_has_the_same_id(github: Forge, tmp_path: Path) -> None:
    github.forced = [Answer(500)]
    sending = Sending(github, tmp_path, hook(github))
    sending.put(notice())
    sending.run()
    sending.pass_time(60)
    sending.run()
    sending.put(notice(state=State.FAILURE))
    sending.run()
    ids = [item.headers["x-event-id"] for item in github.requests]
    assert ids[0] == ids[1] != ids[2]


def test_doctor_looks_and_writes_nothing(forge: Forge) -> None:
    assert look_at(target(forge, comments=True), "", ENVIRON).may_write is True
    forge.may_push = False
    assert look_at(target(forge), "", ENVIRON).may_write is False
    assert "comments as flops-bot" in look_at(target(forge, comments=True), "", ENVIRON).text
    assert look_at(hook(forge), "", ENVIRON).may_write is None
    with pytest.raises(NotifyError, match="FL9403"):
        look_at(target(forge), "", {"TOKEN": "another"})
    assert not forge.writes()


@pytest.mark.parametrize(
    ("kind", "url", "api", "repository"),
    [
        ("github", "https://github.com/team/models.git", "https://api.github.com", "team/models"),
        ("github", "git@github.com:team/models.git", "https://api.github.com", "team/models"),
        ("github", "ssh://git@github.example.invalid:2222/team/models", "https://github.example.invalid/api/v3", "team/models"),
        ("gitlab", "git@gl.example.invalid:team/group/models.git", "https://gl.example.invalid/api/v4", "team/group/models"),
        ("gitea", "https://git.example.invalid:3000/team/models", "https://git.example.invalid:3000/api/v1", "team/models"),
        ("forgejo", "https://git.example.invalid/team/models/", "https://git.example.invalid/api/v1", "team/models"),
    ],
)  # fmt: skip
def test_the_forge_follows_from_the_remote(kind: str, url: str, api: str, repository: str) -> None:
    found = home(_plain(kind), url)
    assert (found.api, found.repository) == (api, repository)


@pytest.mark.parametrize("url", ["", "/srv/git/models.git", "file:///srv/git/models.git", "https://github.com/", "https://[bad"])
def test_a_remote_that_says_nothing_is_one_clear_error(url: str) -> None:
    with pytest.raises(NotifyError, match="FL9401"):
        home(_plain("github"), url)


def _plain(kind: str) -> NotifyTarget:
    return NotifyTarget(name="x", type=kind, secret_ref=SecretRef(env="TOKEN"))  # type: ignore[arg-type]


def test_another_commit_is_another_comment(forge: Forge, tmp_path: Path) -> None:
    forge.merged |= {A: 7, B: 8}
    sending = Sending(forge, tmp_path, target(forge, comments=True, statuses=False))
    sending.put(notice(state=State.PENDING))
    sending.run()
    sending.put(notice(commit=B))
    sending.run()
    assert [(item["thread"], "superseded" in item["body"], "done" in item["body"]) for item in forge.comments] == [
        (7, True, False),
        (8, False, True),
    ]
