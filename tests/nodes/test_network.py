"""Machines that are machines to each other: network namespaces, with a cable that is cut and mended."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reconciler.errors import TrainingError
from reconciler.federation.training import TrainingEvent
from tests.nodes.kit import Federation, Seen, eventually, slow


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def why_not() -> str:
    """What is missing for network namespaces; nothing when they can be made."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"flops-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, timeout=30)
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False, timeout=30)
    return ""


@dataclass
class Network:
    """Hosts on one switch, the SuperLink's among them. The switch is in a namespace of its own: nothing of this machine's."""

    prefix: str = field(default_factory=lambda: f"fl{os.getpid() % 100000}")
    hosts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")

    @property
    def switch(self) -> str:
        return f"{self.prefix}-switch"

    def host(self, number: int) -> str:
        """A host with the address 10.77.0.`number`; returns its namespace."""
        name = f"{self.prefix}-{number}"
        ip("netns", "add", name)
        self.hosts.append(name)
        ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"port{number}", "netns", self.switch)
        ip("-n", self.switch, "link", "set", f"port{number}", "master", "br0", "up")
        ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", name, "link", "set", device, "up")
        return name

    def cable(self, number: int, state: str) -> None:
        """Cuts (`down`) or mends (`up`) the cable of a host."""
        ip("-n", self.switch, "link", "set", f"port{number}", state)

    def remove(self) -> None:
        for name in [*self.hosts, self.switch]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=30)


@pytest.fixture
def network() -> Iterator[Network]:
    if missing := why_not():
        pytest.skip(missing)
    made = Network()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def distant(network: Network, tmp_path: Path) -> Iterator[Federation]:
    """A federation whose SuperLink is on host 1; the reconciler reaches it over the operator's port of this machine."""
    made = Federation(tmp_path, host="10.77.0.1", netns=network.host(1), port=9092)
    made.operator_port = made.bridge_operator()
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.mark.long
def test_a_whole_cluster_is_cut_in_cycle_1_and_healed_in_cycle_2(distant: Federation, network: Network, repo: Path) -> None:
    for number, cluster in ((2, "east"), (3, "east"), (4, "west"), (5, "west")):
        distant.node(f"n{number}", netns=network.host(number), cluster=cluster).start()
    learners: list[int] = []

    def act(event: TrainingEvent) -> None:
        if event.kind == "cluster_round" and event.message.startswith("cluster west: cycle 1, round 1"):
            for number in (4, 5):
                network.cable(number, "down")
        if event.kind == "round":
            learners.append(int(event.data["result"]["learners_fit"]))
        if event.kind == "cluster_round" and event.message.startswith("cluster east: cycle 2, round 1"):
            for number in (4, 5):
                network.cable(number, "up")

    slow(repo, 0.5)
    relay = distant.relay(repo=repo, clusters=[])
    with pytest.raises(TrainingError) as caught:
        distant.train(
            2, act, relay, repo_dir=repo, cycles=200, rounds=2, round_timeout=6.0, cancelled=lambda: 4 in learners[1:]
        )  # fmt: skip
    assert caught.value.code == "FL5001", "cancelled by the test, when both clusters were there again"
    assert learners[0] == 2, "the cluster that was cut is left out of the cycle"
    warnings = [event.message for event in distant.events if event.kind == "warning" and "left out" in event.message]
    assert warnings
    assert all(text.startswith("cluster west is left out") for text in warnings)
    failed = {event.data["node"] for event in distant.events if event.kind == "learner_failed" and "node" in event.data}
    assert failed <= {"n4", "n5"}
    back = {event.data["node"] for event in distant.events if event.kind == "learner_restarted" and "node" in event.data}
    assert back == {"n4", "n5"}


def test_four_machines_one_cut_in_round_2_and_healed_in_round_4(distant: Federation, network: Network, repo: Path) -> None:
    for number in range(2, 6):
        distant.node(f"n{number}", netns=network.host(number)).start()
    stranger = distant.node("stranger", netns=network.host(6), allow=False).start()
    seen = Seen()

    def act(event: TrainingEvent) -> None:
        seen(event)
        if event.kind == "round" and event.round == 1:
            network.cable(5, "down")
        if event.kind == "round" and event.round == 3:
            network.cable(5, "up")

    slow(repo, 0.5)
    relay = distant.relay(repo=repo)
    with pytest.raises(TrainingError) as caught:
        distant.train(3, act, relay, repo_dir=repo, rounds=500, round_timeout=8.0, cancelled=lambda: 4 in seen.learners[3:])
    assert caught.value.code == "FL5001", "cancelled by the test, when all nodes were there again"
    assert seen.learners[0] == 4
    assert seen.learners[1:3] == [3, 3]
    failed = [event.data["node"] for event in distant.events if event.kind == "learner_failed"]
    assert set(failed) == {"n5"}
    assert any(event.kind == "learner_restarted" and event.data["node"] == "n5" for event in distant.events)
    eventually(lambda: "refused: FL5803" in stranger.said())
    assert "from 10.77.0.6" in distant.server.said()
