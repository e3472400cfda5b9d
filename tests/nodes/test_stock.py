"""A SuperLink that exists already: Flower's own command, with TLS and node authentication, and Flower's own SuperNode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes.kit import eventually
from tests.nodes.stock import StockFederation


@pytest.fixture(params=[pytest.param(False, marks=pytest.mark.long), True], ids=["open", "with-a-secret"])
def stock(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StockFederation]:
    made = StockFederation(tmp_path, with_secret=request.param)
    try:
        yield made.start()
    finally:
        made.stop()


def test_our_nodes_train_over_flowers_own_superlink(stock: StockFederation) -> None:
    stranger = stock.node("stranger", allow=False).start()
    for name in ("a", "b"):
        stock.node(name, test_fraction=0.2).start()
    result = stock.train(2, rounds=2)
    assert [item.learners_fit for item in result.rounds] == [2, 2]
    assert result.holdout["rows"] == 80
    eventually(lambda: "refused: FL5803" in stranger.said())
    assert [run.finished for run in stock.superlink().runs()] == ["completed"]


def test_flowers_own_supernode_joins_and_is_left_out_where_it_cannot_serve(tmp_path: Path) -> None:
    """It has neither the run's environment nor our sandbox: the run goes on with the nodes that have."""
    federation = StockFederation(tmp_path)
    try:
        federation.start()
        federation.node("a").start()
        federation.supernode("stock").start()
        eventually(lambda: {m.name for m in federation.superlink().members() if m.connected} == {"a", "stock"}, 120)
        result = federation.train(1, rounds=2)
        assert [item.learners_fit for item in result.rounds] == [1, 1]
        told = [event.message for event in federation.events if event.kind == "learner_failed"]
        assert told
        assert all(text.startswith("node stock:") for text in told)
    finally:
        federation.stop()
