"""The model card: what a registered version was made of, as Markdown that MLflow's pages show.

All values come from users. Each stands as a code span, in which Markdown and HTML mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reconciler.tracking.failures import redacted
from reconciler.tracking.model import RunRecord

LIMIT = 4500
"""Characters; MLflow keeps 5,000 of a version's description."""
VALUE_LIMIT = 200
_NAMES = {
    "flops.dataset": "Data",
    "flops.commit": "Commit of the SLA",
    "flops.ml_repo_url": "ML repo",
    "flops.ml_repo_commit": "ML repo commit",
    "flops.lock_digest": "Lock of its environment",
}


def model_card(record: RunRecord) -> str:
    """The card of the model of a finished run."""
    lines = [
        f"### {_code(record.project)} of {_code(record.customer)}",
        "",
        f"Federated training, {len(record.rounds)} rounds; the model of round {record.best_round}.",
        "",
        *_section("Measured on the learners in that round", _numbers(record.best_metrics())),
        *_section("Measured on held-out data", _numbers(record.holdout)),
        *_section("Made of", _origin(record)),
        *_section("Settings", record.params),
    ]
    text = ""
    for line in lines:
        if len(text) + len(line) + 1 > LIMIT:
            break
        text += line + "\n"
    return text


def _section(title: str, values: Mapping[str, str]) -> Iterator[str]:
    if values:
        yield f"**{title}**"
        yield ""
        yield from (f"- {name if name in _NAMES.values() else _code(name)}: {_code(value)}" for name, value in values.items())
        yield ""


def _origin(record: RunRecord) -> dict[str, str]:
    named = {title: record.tags[tag] for tag, title in _NAMES.items() if record.tags.get(tag)}
    return {**named, "digest": record.digest}


def _numbers(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in values.items()}


def _code(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in redacted(str(text))).replace("`", "'").strip()
    return f"`{shown[:VALUE_LIMIT] or ' '}`"
