"""The status documents: `projects/<name>.json` and a `README.md` for people, as they stand on the status branch.

A document changes only on a *transition*. Times and durations are facts of the run that they were measured in; they are
written with it and never by themselves, so that idle cycles make no commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from reconciler.digests import short

Document = dict[str, Any]
PREFIX = "projects/"
_VOLATILE = frozenset({"seconds", "commit", "latency_p50_ms", "latency_p95_ms", "throughput", "restarts"})
_ANY = object
_TEXTS = {str: str}
_FORMS: dict[str, Any] = {
    **dict.fromkeys(("name", "customer", "digest", "serving_digest", "commit", "change", "deletion_policy"), str),
    **dict.fromkeys(("inputs", "ml_repo", "service"), _TEXTS),
    **{key: {str: _ANY} for key in ("lock", "dataset", "training", "verification", "gate", "error", "stalled")},
    "model": {str: _ANY, "holdout": {str: _ANY}, "metrics": {str: _ANY}, "name": str, "version": str, "digest": str},
    "stages": [{str: _ANY}],
    "problems": [{str: _ANY}],
    "conditions": [_TEXTS],
}
"""The forms of the fields that are read again; `str:` stands for every key that is not named."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def path_of(project: str) -> str:
    """The path of a project's document on the status branch."""
    return f"{PREFIX}{project}.json"


def read_documents(files: Mapping[str, bytes]) -> dict[str, Document]:
    """The documents of a status branch by project; one that cannot be read is left out and written anew."""
    found: dict[str, Document] = {}
    for path, content in files.items():
        if not (path.startswith(PREFIX) and path.endswith(".json")):
            continue
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError:
            continue
        if isinstance(document, dict):
            found[path[len(PREFIX) : -len(".json")]] = sound(document)
    return found


def sound(document: Document) -> Document:
    """A document without what is not of its form: whoever wrote it, reading it later cannot fail."""
    return {key: value for key, value in document.items() if key in _FORMS and _is(value, _FORMS[key])}


def same(before: Document, after: Document) -> bool:
    """Whether nothing but volatile fields differ: no transition."""
    return before == after or bool(_stable(before) == _stable(after))


def merge(before: Mapping[str, Document], after: Mapping[str, Document]) -> dict[str, Document]:
    """The documents to publish: the old one wherever nothing but volatile fields differ."""
    return {
        name: before[name] if name in before and _stable(before[name]) == _stable(document) else document
        for name, document in after.items()
    }


def render(documents: Mapping[str, Document]) -> dict[str, bytes]:
    """The files of the status branch."""
    return Renderer()(documents)


class Renderer:
    """Renders the files of the status branch; a document that is the same object as last time is not rendered again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Document, bytes, str]] = {}

    def __call__(self, documents: Mapping[str, Document]) -> dict[str, bytes]:
        """The files: a document each, and the table for people."""
        kept = {}
        for name, document in sorted(documents.items()):
            found = self._kept.get(name)
            kept[name] = found if found and found[0] is document else (document, _rendered(document), _row(name, document))
        self._kept = kept
        files = {path_of(name): content for name, (_, content, _) in kept.items()}
        files["README.md"] = _table(row for _, _, row in kept.values()).encode()
        return files


def readme(documents: Mapping[str, Document]) -> str:
    """The table that people see when they open the status branch."""
    return _table(_row(name, document) for name, document in sorted(documents.items()))


def _rendered(document: Document) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


def _table(rows: Iterable[str]) -> str:
    columns = ("project", "synced", "ready", "model", "accuracy", "serves at", "says")
    head = f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|\n"
    return (
        "# Status\n\nWritten by the reconciler, one commit a transition. What is declared is on the main branch.\n\n"
        + head
        + "\n".join(rows)
        + "\n"
    )


def subject(before: Mapping[str, Document], after: Mapping[str, Document]) -> str:
    """The subject of a status commit: what changed, in one line."""
    changed = [name for name in sorted(after) if before.get(name) != after[name]]
    gone = [name for name in sorted(before) if name not in after]
    parts = [f"{name}: {headline(after[name])}" for name in changed[:3]] + [f"{name}: removed" for name in gone[:3]]
    more = len(changed) + len(gone) - len(parts)
    return "; ".join(parts) + (f" and {more} more" if more > 0 else "")


def headline(document: Document) -> str:
    """A project's state in a few words."""
    for kind in ("Stalled", "Suspended", "Reconciling"):
        found = condition(document, kind)
        if found and found.get("status") == "True":
            return f"{kind} ({found.get('reason', '')})"
    ready = condition(document, "Ready") or {}
    model = document.get("model") or {}
    version = f", version {model['version']}" if model.get("version") else ""
    return f"{'Ready' if ready.get('status') == 'True' else 'not Ready'} ({ready.get('reason', '')}){version}"


def condition(document: Document, kind: str) -> dict[str, str] | None:
    """One condition of a document, or None."""
    conditions: Sequence[dict[str, str]] = document.get("conditions", ())
    return next((item for item in conditions if item.get("type") == kind), None)


def clean(text: object) -> str:
    """Text that is safe on a terminal: one line, no control or direction characters."""
    return _UNSAFE.sub(" ", str(text))


def plain(text: object) -> str:
    """Text that is safe in a cell of a Markdown table."""
    return re.sub(r"([\\|`<>\[\]*_])", r"\\\1", clean(text))


def _is(value: Any, form: Any) -> bool:
    if isinstance(form, list):
        return isinstance(value, list) and all(_is(item, form[0]) for item in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_is(item, form.get(key, form[str])) for key, item in value.items())
    return isinstance(value, form)


def _row(name: str, document: Document) -> str:
    model = document.get("model") or {}
    metrics = model.get("holdout") or model.get("metrics") or {}
    accuracy = f"{metrics['accuracy']:.4f}" if isinstance(metrics.get("accuracy"), float) else ""
    version = f"{model.get('version', '')} ({short(str(model.get('digest', '')))})" if model.get("version") else ""
    service = (document.get("service") or {}).get("address", "")
    says = next(
        (
            item.get("message", "")
            for kind in ("Stalled", "Suspended", "Reconciling", "Ready")
            if (item := condition(document, kind))
        ),
        "",
    )
    cells = [name, _mark(document, "Synced"), _mark(document, "Ready"), version, accuracy, service, says]
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def _mark(document: Document, kind: str) -> str:
    found = condition(document, kind) or {}
    return f"{found.get('status', '')} ({found.get('reason', '')})"


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _stable(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value
