"""Whoever accepts a connection and never answers – a customer's tracking server, a registry, the remote – delays only its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import pytest

from bench.null_world import NullImages, World
from reconciler.asking import Asking
from reconciler.images.reference import Reference
from reconciler.images.registry import Registry as ImageRegistry
from reconciler.observe import Registry
from reconciler.plan import DesiredProject
from reconciler.registries import LIMIT, Registries
from reconciler.tracking import Tracking
from tests.conftest import Repos, git
from tests.controller.looping import Looping

MOMENT = 0.3


class Silence:
    """A server on loopback that accepts and never answers; `asked` is set by the first connection."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.asked = threading.Event()
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self._kept.append(self._socket.accept()[0])
            except OSError:  # it ends
                return
            self.asked.set()

    def end(self) -> None:
        """Close everything: whoever waits gets an error."""
        with suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._kept:
            connection.close()


@pytest.fixture
def silence() -> Iterator[Silence]:
    server = Silence()
    yield server
    server.end()


class Site(Looping):
    """Two customers; the tracking server of `silent` can be put to silence."""

    def __init__(self, repos: Repos) -> None:
        super().__init__(repos)
        self.edit(self.project("loud") | self.project("quiet", customer="silent"))

    def hush(self, silence: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
        def tracking_if_any(customer: str) -> Registry:
            return Tracking(f"http://127.0.0.1:{silence.port}") if customer == "silent" else self.world

        monkeypatch.setattr(self.controller._looker._registries, "_registry", tracking_if_any)
        self.controller._looker.be_patient(MOMENT)
        self.world.generation += 1

    def speak(self, silence: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server is itself again; what hung ends."""
        monkeypatch.setattr(self.controller._looker._registries, "_registry", lambda _customer: self.world)
        self.world.generation += 1
        silence.end()
        self.answered()
        self.settle()

    def answered(self) -> None:
        """Nothing is on its way any more."""
        self.controller._looker._servers.rest(30)


@pytest.fixture
def site(repos: Repos) -> Site:
    return Site(repos)


def test_a_silent_tracking_server_keeps_only_its_own_customer_waiting(
    site: Site, silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.settle()
    commits = site.commits()
    site.hush(silence, monkeypatch)
    began = time.monotonic()
    for _ in range(6):
        site.world.services.pop("inference-loud", None)
        site.clock.now += 100.0  # so that it is no fight
        site.settle()
        assert "inference-loud" in site.world.services, "it is mended while the other one's server is silent"
    assert silence.asked.is_set()
    assert time.monotonic() - began < 14, "looks wait for it a moment, once, and not for its limit of 15 s each"
    assert [name for name, _ in site.world.trained] == ["loud", "quiet"]
    assert site.says("quiet", "Synced")[:2] == ("False", "NotApplied"), "minutes of silence are told"
    assert "FL9022" in site.says("quiet", "Synced")[2]
    assert "inference-quiet" in site.world.services
    assert site.commits() > commits
    site.speak(silence, monkeypatch)
    assert site.says("quiet", "Synced")[:2] == ("True", "Converged")
    assert len(site.world.trained) == 2
    assert site.world.doubles == 0


def test_a_short_silence_is_told_to_nobody(site: Site, silence: Silence, monkeypatch: pytest.MonkeyPatch) -> None:
    site.settle()
    commits = site.commits()
    site.hush(silence, monkeypatch)
    for _ in range(int(LIMIT) - 2):
        site.step()
    assert silence.asked.is_set()
    assert site.says("quiet", "Synced")[:2] == ("True", "Converged")
    assert site.commits() == commits


def test_nothing_is_trained_or_removed_for_a_customer_whose_server_is_silent(
    site: Site, silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.edit(site.project("doomed", customer="silent", more="deletion_policy: delete\n"))
    site.settle()
    site.hush(silence, monkeypatch)
    site.edit(site.project("quiet", rounds=5, customer="silent") | site.project("new", rounds=4, customer="silent"))
    site.remove("doomed")
    actions = site.world.actions
    for _ in range(10):
        site.settle()
    assert site.world.actions == actions
    assert {name for _, name, _ in site.world.runs} == {"loud", "quiet", "doomed"}
    assert "FL9022" in site.says("new", "Synced")[2]
    site.speak(silence, monkeypatch)
    assert sorted(name for name, _ in site.world.trained) == ["doomed", "loud", "new", "quiet", "quiet"]
    assert {name for _, name, _ in site.world.runs} == {"loud", "quiet", "new"}
    assert site.world.doubles == 0


def test_a_server_that_is_silent_from_the_start_is_not_an_empty_one(
    site: Site, silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.settle()
    site.start("elsewhere")
    site.hush(silence, monkeypatch)
    site.edit(site.project("loud", rounds=7))
    site.settle()
    assert [name for name, _ in site.world.trained] == ["loud", "quiet", "loud"]
    site.speak(silence, monkeypatch)
    assert len(site.world.trained) == 3


def test_a_silent_remote_keeps_no_service_from_being_mended(site: Site, silence: Silence) -> None:
    site.settle()
    git(site.clone, "remote", "set-url", "--push", "origin", str(site.repos.origin))
    git(site.clone, "remote", "set-url", "origin", f"http://127.0.0.1:{silence.port}/repo.git")
    site.start()
    looker = site.controller._looker
    looker.be_patient(MOMENT)
    began = time.monotonic()
    for _ in range(10):
        site.world.services.clear()
        site.clock.now += 100.0
        site.settle()
        assert site.world.services.keys() == {"inference-loud", "inference-quiet"}
    assert silence.asked.is_set()
    assert looker._remote.since("origin") is not None, "the fetch is still on its way"
    assert site.engine.repo.fetches == 1, "one at a time"
    looker.close(seconds=10)
    assert looker._remote.since("origin") is None, "Git ends with the loop"
    assert time.monotonic() - began < 30


def test_what_is_pushed_while_a_fetch_is_on_its_way_is_fetched_after_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.settle()
    began, go_on = threading.Event(), threading.Event()
    repo, fetch = site.engine.repo, site.engine.repo.fetch

    def slow(cancelled: Callable[[], bool]) -> None:
        fetch(cancelled)
        began.set()
        go_on.wait(30)

    monkeypatch.setattr(repo, "fetch", slow)
    looker = site.controller._looker
    looker.be_patient(MOMENT)
    site.step()
    assert began.wait(30)
    site.edit(site.project("loud", rounds=9))
    site.step()
    go_on.set()
    looker._remote.rest(30)
    site.controller.wake(fetch=False)
    site.controller.step()
    looker._remote.rest(30)
    site.settle()
    assert [name for name, _ in site.world.trained][-1] == "loud"
    assert len(site.world.trained) == 3


class SilentImages(NullImages):
    """A store whose registry is asked for every image, and never answers."""

    def __init__(self, world: World, host: str) -> None:
        super().__init__(world)
        self._host = host

    def due(self, names: Iterable[str]) -> list[str]:
        return list(names)

    def recheck(self, names: Iterable[str]) -> None:
        with ImageRegistry(self._host) as registry:
            for name in names:
                registry.digest_of(Reference.parse(f"{self._host}/{name}"))


def test_a_silent_registry_of_images_is_no_reason_to_wait_or_to_build(site: Site, silence: Silence) -> None:
    site.settle()
    actions = site.world.actions
    site.engine.images = SilentImages(site.world, f"127.0.0.1:{silence.port}")
    site.controller._looker.be_patient(MOMENT)
    began = time.monotonic()
    for _ in range(10):
        site.step()
    assert silence.asked.is_set()
    assert time.monotonic() - began < 14
    assert site.world.actions == actions
    assert site.says("loud", "Synced")[:2] == ("True", "Converged")


# --- asking


def test_who_was_slow_is_not_waited_for_and_its_answer_asks_for_a_look() -> None:
    ended, go_on = threading.Event(), threading.Event()
    asking: Asking[str] = Asking(ended.set, patience=MOMENT)
    asking.ask("slow", lambda: str(go_on.wait(30)))
    asking.ask("quick", lambda: "here")
    assert asking.answers() == {"quick": "here"}
    began = time.monotonic()
    asking.ask("slow", lambda: "a second question is not put")
    assert asking.answers() == {}
    assert time.monotonic() - began < MOMENT
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(30)
    assert asking.answers(wait=False) == {"slow": "True"}
    asking.ask("slow", lambda: "again")
    asking.rest(30)
    asking.answers()
    asking.ask("slow", lambda: "quick now")
    assert asking.answers() == {"slow": "quick now"}


def test_the_slow_have_at_most_half_of_the_questions() -> None:
    go_on = threading.Event()
    asking: Asking[bool] = Asking(patience=MOMENT, threads=4)
    for number in range(4):
        asking.ask(f"slow {number}", lambda: go_on.wait(30))
    assert asking.answers() == {}
    go_on.set()
    asking.rest(30)
    go_on.clear()
    asking._slow.update(f"slow {number}" for number in range(20))
    for number in range(20):
        asking.ask(f"slow {number}", lambda: go_on.wait(30))
    asking.ask("quick", lambda: True)
    assert asking.answers()["quick"]
    assert sum(whom.startswith("slow") for whom in asking._busy) == 2
    go_on.set()
    asking.rest(30)
    assert len(asking.answers()) == 20


def test_more_that_hang_than_there_are_places_keep_nobody_waiting() -> None:
    go_on = threading.Event()
    asking: Asking[bool] = Asking(patience=MOMENT, threads=4)
    for number in range(10):
        asking.ask(f"hangs {number}", lambda: go_on.wait(30))
    asking.ask("well", lambda: True)
    began = time.monotonic()
    while "well" not in asking.answers():
        go_on.wait(0.01)
    assert time.monotonic() - began < 10 * MOMENT, "four at a time are found out, and hold no place any more"
    assert sum(whom.startswith("hangs") for whom in asking._busy) == 10
    go_on.set()
    asking.rest(30)
    assert len(asking.answers()) == 10


def test_there_is_an_end_to_how_many_hang() -> None:
    go_on = threading.Event()
    asking: Asking[bool] = Asking(patience=MOMENT, threads=2, most=5)
    for number in range(20):
        asking.ask(f"hangs {number}", lambda: go_on.wait(30))
    for _ in range(4):
        asking.answers()
        assert len(asking._busy) <= 5
    go_on.set()
    asking.rest(30)
    assert len(asking.answers()) == 20


def test_a_bug_in_a_question_is_raised_where_answers_are_taken() -> None:
    asking: Asking[int] = Asking()
    asking.ask("a", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        asking.answers()
    asking.ask("a", lambda: 1)
    assert asking.answers() == {"a": 1}


def test_what_was_said_before_work_ended_does_not_count() -> None:
    """Else a model that was registered while a slow server was being asked would be trained again."""
    world, desired = World(), DesiredProject("a", "demo", {"seed": "1"})
    asked, go_on = threading.Event(), threading.Event()
    asking: Asking = Asking(patience=MOMENT)

    class Slow(World):
        def versions(self, customer: str) -> list:
            found = world.versions(customer)
            asked.set()
            go_on.wait(30)
            return found

    registries = Registries(lambda _: Slow(), lambda _: None, lambda _: None, asking)
    wanted = {desired.customer: [desired]}
    registries.ask(wanted, frozenset({"a"}))
    assert asked.is_set()
    assert registries.late == {desired.customer}
    world.register("a", desired.customer, desired.run_digest, desired.gate_digest)
    registries.doubt(desired.customer)
    go_on.set()
    asking.rest(30)
    registries.ask(wanted, frozenset({"a"}))
    asking.rest(30)
    registries.ask(wanted, frozenset({"a"}))
    assert not registries.late
    assert [item.digest for item in registries.answer(desired.customer).versions["a"]] == [desired.run_digest]


def test_an_answer_that_makes_no_sense_is_an_error_of_its_customer() -> None:
    class Odd(World):
        def versions(self, customer: str) -> list:
            raise KeyError("name")

    registries = Registries(lambda customer: Odd() if customer == "odd" else World(), lambda _: None, lambda _: None, Asking())
    registries.ask({"odd": [], "even": []}, frozenset())
    error = registries.answer("odd").error
    assert error is not None
    assert error.code == "FL9023"
    assert registries.answer("even").error is None
