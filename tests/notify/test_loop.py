"""Through the loop: what is merged is told of, once, on the commit that it was merged as; an idle loop tells nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from reconciler.errors import NotifyError
from reconciler.notify import notifier, outbox
from reconciler.notify.notifier import Notifier
from reconciler.notify.outbox import Outbox
from reconciler.notify.sender import Sender
from reconciler.notify.targets import channels
from reconciler.source import GitRepo
from reconciler.spec import OperatorConfig
from reconciler.statusdoc import Document
from tests.conftest import Repos
from tests.controller.looping import Looping
from tests.notify.forge import BOT, TOKEN, Answer, Forge
from tests.notify.sending import ENVIRON, Sending, hook, target

BAD = "customerID: demo\nunknown: 1\n"


class Site(Looping):
    """A loop that tells a forge."""

    def __init__(self, repos: Repos, forge: Forge, **keys: object) -> None:
        self.forge = forge
        super().__init__(repos, OperatorConfig(instance="prod", notify=[target(forge, **keys), hook(forge)]))

    def tell(self) -> None:
        """Until loop and senders are quiet."""
        self.settle()
        self.controller.notifier.flush(20)

    def restart(self, state: str = "state") -> None:
        """The process ends and another one begins."""
        self.controller.notifier.close()
        self.start(state)


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", TOKEN)


@pytest.fixture
def forge() -> Iterator[Forge]:
    with Forge("github").serving() as serving:
        yield serving


@pytest.fixture
def site(repos: Repos, forge: Forge) -> Iterator[Site]:
    made = Site(repos, forge, comments=True)
    yield made
    made.controller.notifier.close()


def until(what: Callable[[], object], seconds: float = 20) -> None:
    """Wait for a condition of real threads."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_merged_is_told_on_its_commit(site: Site, forge: Forge) -> None:
    merged = site.edit(site.project("digits"))
    forge.merged[merged] = 7
    site.tell()
    assert {item["sha"] for item in forge.statuses} == {merged}
    assert {item["context"] for item in forge.statuses} == {"flops/prod/digits"}
    assert forge.of()[-1] == ("success", "Healthy: answers at 127.0.0.1:1")
    assert [(item["author"], item["thread"]) for item in forge.comments] == [(BOT, 7)]
    assert "`digits` | ✅ done | `Healthy`" in forge.comments[0]["body"]
    told = [item.body for item in forge.hooks]
    assert (told[-1]["project"], told[-1]["state"], told[-1]["model_version"]) == ("digits", "success", "1")
    assert not site.warnings


def test_an_invalid_sla_fails_on_each_commit_that_has_it(site: Site, forge: Forge) -> None:
    first = site.edit({"projects/digits/sla.yaml": BAD})
    site.tell()
    assert [state for state, _ in forge.of(first)] == ["failure"]
    assert "FL1022" in forge.of(first)[0][1]
    second = site.edit({"projects/digits/sla.yaml": BAD + "# still\n"})
    site.tell()
    assert [state for state, _ in forge.of(second)] == ["failure"]
    mended = site.edit(site.project("digits"))
    site.tell()
    assert forge.of(mended)[-1][0] == "success"
    assert len(forge.of(first)) == len(forge.of(second)) == 1


def test_idle_nothing_is_sent(site: Site, forge: Forge) -> None:
    site.edit(site.project("a") | site.project("b"))
    site.tell()
    before = len(forge.requests)
    for _ in range(5):
        site.tell()
    site.edit({"README.md": "Something else\n"})
    site.tell()
    assert len(forge.requests) == before


def test_a_restart_sends_nothing_twice(site: Site, forge: Forge) -> None:
    site.edit(site.project("a") | {"projects/b/sla.yaml": BAD})
    site.tell()
    before = len(forge.requests)
    site.restart()
    site.tell()
    assert len(forge.requests) == before
    site.restart("another-state")
    site.tell()
    assert len(forge.requests) == before, "what the status branch says already is no transition"
    changed = site.edit(site.project("a", rounds=5))
    site.tell()
    assert forge.of(changed)[-1][0] == "success"
    assert {item["sha"] for item in forge.statuses[-len(forge.of(changed)) :]} == {changed}


def test_a_remote_that_was_down_gets_the_newest_state_once(site: Site, forge: Forge) -> None:
    forge.down = Answer(503)
    site.edit(site.project("a"))
    site.tell()
    newest = site.edit(site.project("a", rounds=4) | {"projects/b/sla.yaml": BAD})
    site.tell()
    assert site.says("a", "Ready")[0] == "True", "nothing waits for it"
    assert not forge.statuses
    forge.down = None
    until(lambda: len(forge.of(newest)) == 2 and not sum(site.controller.notifier.waiting().values()))
    assert sorted(state for state, _ in forge.of(newest)) == ["failure", "success"]
    assert ["FL9407" in said for said in site.warnings if "status 503" in said].count(True) <= 3


def test_down_over_a_restart(site: Site, forge: Forge) -> None:
    forge.down = Answer(503)
    merged = site.edit(site.project("a"))
    site.tell()
    site.restart()
    forge.down = None
    site.tell()
    assert [state for state, _ in forge.of(merged)] == ["success"]


def test_a_project_that_is_removed_says_so_on_the_commit_that_did_it(site: Site, forge: Forge) -> None:
    site.edit(site.project("a") | site.project("b"))
    site.tell()
    site.remove("a")
    removed = GitRepo(site.user).resolve("HEAD")
    site.tell()
    assert forge.of(removed, "a") == [("success", "Pruned: not declared any more; its service is removed")]
    assert not forge.of(removed, "b")


def test_a_service_that_dies_and_is_mended(site: Site, forge: Forge) -> None:
    merged = site.edit(site.project("a"))
    site.tell()
    before = len(forge.of(merged))
    site.world.remove("inference-a")
    site.tell()
    assert forge.of(merged)[-1][0] == "success"
    assert len(forge.of(merged)) <= before + 2
    assert {item["sha"] for item in forge.statuses} == {merged}


def test_the_secret_is_nowhere(site: Site, forge: Forge) -> None:
    forge.forced = [Answer(401, {"message": f"bad {TOKEN}"}), Answer(401, {"message": f"bad {TOKEN}"})]
    forge.merged[site.edit(site.project("a"))] = 7
    site.tell()
    until(lambda: not sum(site.controller.notifier.waiting().values()))
    shown = [str(event) for event in site.engine.journal.events()] + site.warnings + [str(site.status("a"))]
    shown += [item["body"] for item in forge.comments] + [str(item.body) for item in forge.hooks] + [repr(site.engine.config)]
    assert site.warnings
    assert not [text for text in shown if TOKEN in text]
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in site.repos.root.rglob("journal.db*"))


def test_metrics_count_by_target_and_result(site: Site, forge: Forge) -> None:
    from reconciler.publishing import Publisher
    from reconciler.web.metrics import Metrics

    metrics = Metrics()
    metrics.watch(site.controller, Publisher(site.engine.status, print), lambda: 0.0)
    forge.forced = [Answer(422, {"message": "no"}), Answer(422, {"message": "no"})]
    site.edit(site.project("a"))
    site.tell()
    shown = metrics.text().decode()
    assert 'flops_notifications_total{result="refused",target="' in shown
    assert 'flops_notifications_total{result="sent",target="hook"}' in shown
    assert 'flops_notifications_waiting{target="github/comments"} 0.0' in shown
    assert "flops_notifications_dropped_total 0.0" in shown


def test_another_reconciler_that_took_over_tells(site: Site, forge: Forge) -> None:
    site.edit(site.project("a"))
    site.tell()
    site.controller.leadership.lose()
    before = len(forge.requests)
    site.controller.notifier.offer({"a": {"conditions": []}}, "c" * 40, changed=True)
    site.controller.notifier.flush(0.2)
    assert len(forge.requests) == before


class Documents:
    """A notifier without a loop: documents by hand, real commits."""

    def __init__(self, repos: Repos, sending: Sending) -> None:
        self.sending = sending
        self.repo = GitRepo(repos.root / "user")
        senders = [
            Sender(
                item.name, channels(item, "", sending.outbox, ENVIRON), sending.outbox, sending.said.append, monotonic=sending.clock
            )
            for item in sending.targets
        ]
        self.notifier = Notifier(
            "prod", senders, Outbox(sending.journal, sending.wall), self.repo, sending.said.append,
            clock=sending.wall, background=False,
        )  # fmt: skip
        self.notifier.begin({})

    def offer(self, documents: dict[str, Document]) -> list[tuple[str, str]]:
        """What is told then: project and commit."""
        self.notifier.offer(documents, self.repo.resolve("HEAD"), changed=True)
        found = []
        while waiting := self.sending.outbox.next("github"):
            found.append((waiting.notice.project, waiting.notice.commit))
            self.sending.outbox.sent([waiting])
        return found


def document(digest: str, status: str = "True") -> Document:
    """A project that is well or not."""
    conditions = [{"type": kind, "status": status, "reason": "Any", "message": ""} for kind in ("Synced", "Ready")]
    return {"serving_digest": digest, "conditions": conditions}


def test_which_commit_is_told(repos: Repos, site: Site, forge: Forge, tmp_path: object) -> None:
    first = site.edit({"projects/a/x": "1", "projects/b/x": "1"})
    by_hand = Documents(repos, Sending(forge, repos.root / "by-hand"))
    assert by_hand.offer({"a": document("1"), "b": document("1")}) == [("a", first), ("b", first)]
    second = site.edit({"projects/a/x": "2"})
    site.edit({"README.md": "later"})
    assert by_hand.offer({"a": document("2"), "b": document("1")}) == [("a", second)]
    assert by_hand.offer({"a": document("2"), "b": document("1", "False")}) == [("b", first)], (
        "drift is told on the declaring commit"
    )
    assert by_hand.offer({"a": document("3"), "b": document("1", "False")}) == [("a", second)], "a new digest without any commit"
    plans = site.edit({"build_plans/server.yaml": "x"})
    assert by_hand.offer({"a": document("4"), "b": document("1", "False")}) == [("a", plans)], "changed from outside of its folder"


def test_a_history_that_was_rewritten(repos: Repos, site: Site, forge: Forge) -> None:
    site.edit({"projects/a/x": "1"})
    by_hand = Documents(repos, Sending(forge, repos.root / "by-hand"))
    by_hand.offer({"a": document("1")})
    by_hand.notifier._head = "0" * 40  # not there any more
    anew = site.edit({"projects/a/x": "2"})
    assert by_hand.offer({"a": document("2")}) == [("a", anew)]


def test_what_is_dropped_is_said_and_counted(repos: Repos, site: Site, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 3)
    by_hand = Documents(repos, Sending(forge, repos.root / "by-hand"))
    told = by_hand.offer({f"p{number}": document("1") for number in range(5)})
    assert [name for name, _ in told] == ["p2", "p3", "p4"]
    assert by_hand.notifier.dropped == 2
    assert "FL9412" in by_hand.sending.said[0]


def test_many_are_written_down_in_parts(repos: Repos, site: Site, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "PART", 2)
    by_hand = Documents(repos, Sending(forge, repos.root / "by-hand"))
    documents = {f"p{number}": document("1") for number in range(5)}
    take, parts = by_hand.notifier._outbox.take, [0]

    def full_disk(*arguments: object) -> int:
        parts[0] += 1
        if parts[0] == 3:  # the first one was the baseline
            raise NotifyError("FL9413", "The disk is full.", cure="Make space.", transient=True)
        return take(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(by_hand.notifier._outbox, "take", full_disk)
    assert [name for name, _ in by_hand.offer(documents)] == ["p0", "p1"]
    assert "FL9413" in by_hand.sending.said[0]
    assert [name for name, _ in by_hand.offer(documents)] == ["p2", "p3", "p4"]
    assert by_hand.offer(documents) == []


def test_one_project_that_cannot_be_told_is_in_nobodys_way(repos: Repos, site: Site, forge: Forge) -> None:
    site.edit({"projects/a/x": "1"})
    by_hand = Documents(repos, Sending(forge, repos.root / "by-hand"))
    told = by_hand.offer({"\ud800": document("1"), "bad": {"conditions": [7]}, "a": document("1")})
    assert [name for name, _ in told] == ["a"]
    assert by_hand.sending.said
