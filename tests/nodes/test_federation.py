"""A federation over TLS with keys: it learns, and what fails is told, left out and let in again."""

from __future__ import annotations

from tests.nodes.kit import Federation


def test_two_nodes_train_a_model(federation: Federation) -> None:
    for name in ("a", "b"):
        federation.node(name).start()
    result = federation.train(2)
    assert [item.round for item in result.rounds] == [1, 2, 3]
    assert result.rounds[-1].loss < result.rounds[0].loss
    assert [item.learners_fit for item in result.rounds] == [2, 2, 2]
    assert (result.model_dir / "MLmodel").is_file()
