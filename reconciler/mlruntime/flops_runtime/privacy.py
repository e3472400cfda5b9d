"""Differential privacy through Flower: its strategy wrappers on the aggregator's side, its mods on the learner's.

The noise comes from the operating system and never from the run's seed: the seed is in Git, and noise that anybody can compute
again protects nothing. So a run with privacy is the one kind that is not repeatable bit by bit.

Flower's message API has no secure aggregation (SecAgg+ exists for its older API only), so there is none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from flops_runtime.failures import Failure

_WRAPPERS = {
    "central-fixed": flower.DifferentialPrivacyServerSideFixedClipping,
    "central-adaptive": flower.DifferentialPrivacyServerSideAdaptiveClipping,
    "client-fixed": flower.DifferentialPrivacyClientSideFixedClipping,
    "client-adaptive": flower.DifferentialPrivacyClientSideAdaptiveClipping,
}


def wrap(strategy: Strategy, privacy: Mapping[str, Any] | None, sampled: int) -> Strategy:
    """The strategy with Flower's wrapper around it. `sampled` learners answer in a round. Raises `Failure`."""
    if privacy is None or privacy["mechanism"] == "local":
        return strategy
    mechanism = str(privacy["mechanism"])
    norm = "initial_clipping_norm" if mechanism.endswith("adaptive") else "clipping_norm"
    options = {"noise_multiplier": privacy["noise_multiplier"], "num_sampled_clients": sampled, norm: privacy["clipping_norm"]}
    try:
        return _WRAPPERS[mechanism](strategy, **options)
    except ValueError as error:
        raise Failure("FL5703", f"Flower refuses the privacy settings: {error}", cure="Correct `privacy`.") from error


def mods(privacy: Mapping[str, Any] | None) -> list[Any]:
    """What wraps a learner's answers to training messages."""
    if privacy is None:
        return []
    mechanism = str(privacy["mechanism"])
    if mechanism == "client-fixed":
        return [_of_training(fixedclipping_mod)]
    if mechanism == "client-adaptive":
        return [_of_training(adaptiveclipping_mod)]
    if mechanism != "local":
        return []
    norm = float(privacy["clipping_norm"])
    # Two neighbouring data sets move a clipped update by at most twice its norm.
    return [_of_training(LocalDpMod(norm, 2 * norm, float(privacy["epsilon"]), float(privacy["delta"]))), _fresh_noise]


def aggregate_train(strategy: Strategy, number: int, replies: list[Message]) -> Any:
    """`strategy.aggregate_train`; a wrapper of privacy sees the usable answers only and draws fresh noise."""
    if not is_wrapper(strategy):
        return strategy.aggregate_train(number, replies)
    np.random.seed(None)
    return strategy.aggregate_train(number, [reply for reply in replies if not reply.has_error()])


def is_wrapper(strategy: Strategy) -> bool:
    """Whether it is one of Flower's wrappers, with the real strategy inside as `strategy`."""
    return isinstance(strategy, tuple(_WRAPPERS.values()))


def _of_training(mod: Any) -> Any:
    def only_training(message: Message, context: Context, call_next: Any) -> Message:
        if not message.metadata.message_type.startswith("train"):
            return call_next(message, context)
        return mod(message, context, call_next)

    return only_training


def _fresh_noise(message: Message, context: Context, call_next: Any) -> Message:
    """The innermost mod: after the ML repo's seeded work, and before the noise, the generator is made unpredictable."""
    answer = call_next(message, context)
    np.random.seed(None)
    return answer
