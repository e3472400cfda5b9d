"""A federation over TLS with keys: it learns, and what fails is told, left out and let in again."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingEvent
from reconciler.nodes.superlink_server import FleetOnly
from tests.federation.test_training import same
from tests.nodes.kit import Federation, Seen, eventually, slow


def after_round(number: int, act: Callable[[], object]) -> Callable[[TrainingEvent], None]:
    """Something that is done once, when a round has ended."""
    done = threading.Event()

    def look(event: TrainingEvent) -> None:
        if event.kind == "round" and event.round == number and not done.is_set():
            done.set()
            act()

    return look


def test_two_nodes_train_a_model_and_again_the_same(federation: Federation) -> None:
    for name in ("a", "b"):
        federation.node(name).start()
    result = federation.train(2)
    assert [item.round for item in result.rounds] == [1, 2, 3]
    assert result.rounds[-1].loss < result.rounds[0].loss
    assert [item.learners_fit for item in result.rounds] == [2, 2, 2]
    assert (result.model_dir / "MLmodel").is_file()
    assert not [run for run in federation.superlink().runs() if not run.finished]

    again = federation.root / "again"
    federation.train(2, relay=federation.relay("ef" * 32), run_dir=again, digest="ef" * 32)
    assert same(federation.root / "run", again, 3), "the seed decides, not the ids that Flower gives to nodes"


def test_a_node_with_an_unknown_key_is_refused_and_written_down(federation: Federation) -> None:
    stranger = federation.node("stranger", allow=False).start()
    federation.node("a").start()
    eventually(lambda: "refused: FL5803" in stranger.said())
    refused = eventually(lambda: (federation.folder / "refused.jsonl").is_file() and federation.folder / "refused.jsonl")
    entry = json.loads(refused.read_text().splitlines()[0])
    assert entry["key"].startswith("SHA256:")
    assert entry["key"] in stranger.said()
    assert "FL5803 refused a node" in federation.server.said()
    assert [item.learners_fit for item in federation.train(1, rounds=1).rounds] == [1]
    assert "connected" not in stranger.said()


def test_the_operators_port_wants_the_secret_and_the_nodes_port_has_only_the_fleet(federation: Federation) -> None:
    import httpx

    operator = f"http://127.0.0.1:{federation.operator_port}"
    for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs"):
        assert httpx.post(operator + path, content=b"").status_code == 401
        assert httpx.post(operator + path, content=b"", headers={"x-flops-operator": "guess"}).status_code == 401
        verified = httpx.Client(verify=str(federation.folder / "ca.pem"))
        assert verified.post(f"https://127.0.0.1:{federation.port}{path}", content=b"").status_code == 404
    fleet, kind = f"https://127.0.0.1:{federation.port}/v1/fleet", {"content-type": PROTOBUF_MEDIA_TYPE}
    assert verified.post(f"{fleet}/pull-messages", content=b"", headers=kind).status_code == 401


@pytest.mark.parametrize(("length", "status"), [(b"", 411), (b"-1", 411), (str(1 << 40).encode(), 413)])
def test_a_body_without_a_size_or_of_a_size_that_cannot_be_meant_is_not_read(length: bytes, status: int) -> None:
    async def nothing(*_: object) -> None:
        raise AssertionError("it is not read, and does not reach Flower")

    answers: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        answers.append(message)

    scope = {"type": "http", "path": "/v1/fleet/push-object", "method": "POST", "headers": [(b"content-length", length)]}
    asyncio.run(FleetOnly(nothing)(scope, nothing, send))
    assert answers[0]["status"] == status


def test_nodes_with_other_tags_are_never_asked(federation: Federation) -> None:
    """Whatever they say of themselves: what counts is what is declared, and then what the node itself wants to serve."""
    federation.node("a").start()
    liar = federation.node("liar", tags="blobs", declared_tags=["other"]).start()
    shy = federation.node("shy", tags="other", declared_tags=["blobs"]).start()
    eventually(lambda: all("connected" in process.said() for process in (liar, shy)))
    result = federation.train(1, rounds=2)
    assert [item.learners_fit for item in result.rounds] == [1, 1]
    assert "run:" not in liar.said()
    assert "FL4501 This node does not serve the tags blobs" in shy.said()
    told = [event.message for event in federation.events if event.kind == "learner_failed"]
    assert told
    assert all("shy" in text for text in told)


def test_a_node_that_is_killed_is_left_out_and_let_in_again(federation: Federation, repo: Path) -> None:
    for name in ("a", "b"):
        federation.node(name).start()
    lost = federation.nodes["b"]
    seen = Seen()

    def act(event: TrainingEvent) -> None:
        seen(event)
        after_one(event)
        after_three(event)

    after_one, after_three = after_round(1, lost.kill), after_round(3, lost.start)
    slow(repo, 0.3)
    relay = federation.relay(repo=repo)
    with pytest.raises(TrainingError) as caught:
        federation.train(1, act, relay, repo_dir=repo, rounds=500, round_timeout=4.0, cancelled=lambda: 2 in seen.learners[3:])
    assert caught.value.code == "FL5001", "cancelled by the test, when both nodes were there again"
    assert seen.learners[0] == 2
    assert seen.learners[1:3] == [1, 1]
    assert "learner_restarted" in federation.kinds()


def test_the_superlink_is_killed_and_started_again(federation: Federation) -> None:
    for name in ("a", "b"):
        federation.node(name).start()

    def restart() -> None:
        federation.server.kill()
        federation.server.start()

    result = federation.train(2, after_round(2, restart), rounds=5)
    assert [item.learners_fit for item in result.rounds] == [2] * 5
    assert federation.kinds().count("submitted") == 2
    said = federation.nodes["a"].said()
    assert said.count("run: project") == 1, "the learner is kept: the run that is submitted again is the same bundle"


def test_a_run_is_taken_up_again_after_the_aggregator_died(federation: Federation) -> None:
    for name in ("a", "b"):
        federation.node(name).start()
    relay = federation.relay()
    with relay.open():
        first = relay._run_id
        relay._end = lambda _outcome: None  # type: ignore[method-assign]  # as if the reconciler had been killed here
    result = federation.train(2)
    assert "adopted" in federation.kinds()
    assert f"run {first} " in next(event.message for event in federation.events if event.kind == "adopted")
    assert len(result.rounds) == 3


def test_what_the_learners_code_says_stays_on_the_node(federation: Federation, repo: Path) -> None:
    path = repo / "model_manager.py"
    path.write_text(
        path.read_text().replace("for _ in range(10):", "raise ValueError(f'patient {self.x_train[0]}')\n        for _ in []:")
    )
    federation.node("a").start()
    with pytest.raises(TrainingError) as caught:
        federation.train(1, relay=federation.relay(repo=repo), repo_dir=repo)
    assert "ValueError" in caught.value.cause
    assert "patient" not in str(caught.value)
    assert "patient" not in (federation.root / "run" / "events.jsonl").read_text()
    assert caught.value.where is not None
    assert caught.value.where.path == "model_manager.py"
    assert "patient" in federation.nodes["a"].said()


def test_a_cancelled_run_is_stopped_and_its_learners_go(federation: Federation) -> None:
    federation.node("a").start()
    stop = threading.Event()
    with pytest.raises(TrainingError) as caught:
        federation.train(1, after_round(1, stop.set), cancelled=stop.is_set, rounds=500)
    assert caught.value.code == "FL5001"
    assert [run.finished for run in federation.superlink().runs()] == ["stopped"]
    eventually(lambda: "the run has ended" in federation.nodes["a"].said())


def test_two_learners_share_a_nodes_data_without_overlap(federation: Federation) -> None:
    federation.node("a", rows=300, partition=(0, 2)).start()
    federation.node("b", data=federation.root / "a" / "data", partition=(1, 2)).start()
    result = federation.train(2, rounds=1)
    assert result.rounds[0].learners_fit == 2
    rows = [event.data["rows"] for event in federation.events if event.kind == "node_ready"]
    assert rows == [150, 150]


def test_a_node_leaves_in_order(federation: Federation) -> None:
    node = federation.node("a").start()
    federation.superlink().allow(federation.allowed)
    eventually(lambda: "connected" in node.said())
    node.kill(signal.SIGTERM)
    assert node.process is not None
    assert node.process.returncode == 0
    assert [member.connected for member in federation.superlink().members()] == [False]


def test_a_message_takes_few_requests(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects go together; what is counted is what the reconciler asks of the SuperLink, with all that waits in it."""
    import httpx

    asked: list[str] = []
    real = httpx.Client.send

    def counted(client: httpx.Client, request: httpx.Request, **options: object) -> httpx.Response:
        answer = real(client, request, **options)  # type: ignore[arg-type]
        asked.append(f"{request.url.path.rpartition('/')[2]} {answer.status_code}")
        return answer

    monkeypatch.setattr(httpx.Client, "send", counted)
    federation.node("a").start()
    federation.train(1, rounds=3)
    messages = asked.count("push-messages 200")
    assert asked.count("together 200") >= 2 * messages, "there and back"
    assert "together 409" not in asked
    assert asked.count("push-object 200") == 0
