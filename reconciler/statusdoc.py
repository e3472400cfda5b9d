"""The status documents: `projects/<name>.json` and a `README.md` for people, as they stand on the status branch.

A document changes only on a *transition*. Times and durations are facts of the run that they were measured in; they are
written with it and never by themselves, so that idle cycles make no commit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from reconciler.digests import short

Document = Mapping[str, Any]
Draft = dict[str, Any]
"""A document that is being made."""
PREFIX = "projects/"
TABLE = "README.md"
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
_WIDEST = 2**63
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def path_of(project: str) -> str:
    """The path of a project's document on the status branch."""
    return f"{PREFIX}{project}.json"


class Kept(Mapping[str, Any]):
    """A document as it is kept: its JSON, read when somebody asks. Thousands of them are held at all times, and hardly one is read.

    It never changes: another state is another object. Whoever reads it must not change what is in it.
    """

    __slots__ = ("_content",)

    def __init__(self, document: Document) -> None:
        """Keep a document; whatever cannot be JSON is kept as the nearest that can."""
        document = dict(document)
        try:
            content = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError:
            content = orjson.dumps(_harmless(document), option=orjson.OPT_SORT_KEYS)
        # A copy, as what was grown step by step keeps its room: four times as much.
        self._content = bytes(memoryview(content))

    def __getitem__(self, key: str) -> Any:
        return _read(self._content)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_read(self._content))

    def __len__(self) -> int:
        return len(_read(self._content))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Kept):
            return self._content == other._content
        return _read(self._content) == other

    __hash__ = None  # type: ignore[assignment]  # as any mapping


@lru_cache(maxsize=16)
def _read(content: bytes) -> Draft:
    """Whoever reads one field of a document reads the next one soon."""
    found: Draft = orjson.loads(content)
    return found


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {_harmless(str(key)): _harmless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(item) for item in value]
    if value is None or isinstance(value, float | bool) or (isinstance(value, int) and -_WIDEST <= value < _WIDEST):
        return value
    return _harmless(str(value))


def read_documents(files: Mapping[str, bytes]) -> dict[str, Draft]:
    """The documents of a status branch by project; one that cannot be read is left out and written anew."""
    return dict(_documents(files.items()))


def keep_documents(files: Iterable[tuple[str, bytes]]) -> dict[str, Kept]:
    """The same to be kept, from files that come one by one."""
    return {name: Kept(document) for name, document in _documents(files)}


def _documents(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Draft]]:
    for path, content in files:
        if not (path.startswith(PREFIX) and path.endswith(".json")):
            continue
        try:
            document = orjson.loads(content)
        except orjson.JSONDecodeError:
            continue
        if isinstance(document, dict):
            yield path[len(PREFIX) : -len(".json")], sound(document)


def sound(document: Document) -> Draft:
    """A document without what is not of its form: whoever wrote it, reading it later cannot fail."""
    return {key: value for key, value in document.items() if key in _FORMS and _is(value, _FORMS[key])}


def same(before: Document, after: Document) -> bool:
    """Whether nothing but volatile fields differ: no transition."""
    return before == after or _alike(dict(before), dict(after))


def merge(before: Mapping[str, Document], after: Mapping[str, Document]) -> dict[str, Document]:
    """The documents to publish: the old one wherever nothing but volatile fields differ."""
    return {name: before[name] if name in before and same(before[name], document) else document for name, document in after.items()}


def render(documents: Mapping[str, Document]) -> dict[str, bytes]:
    """The files of the status branch."""
    files = {path_of(name): _rendered(document) for name, document in documents.items()}
    return files | {TABLE: readme(documents).encode()}


Identify = Callable[[bytes], str]
"""The name under which Git keeps a file of this content."""


class Rendered(Mapping[str, bytes]):
    """The files of the status branch, each rendered when it is read. `ids` are their names in Git, where somebody gave them."""

    def __init__(self, documents: Mapping[str, Document], table: bytes, ids: Mapping[str, str]) -> None:
        self._documents, self._table, self.ids = documents, table, ids

    def __getitem__(self, path: str) -> bytes:
        if path == TABLE:
            return self._table
        if not (path.startswith(PREFIX) and path.endswith(".json")):
            raise KeyError(path)
        return _rendered(self._documents[path[len(PREFIX) : -len(".json")]])

    def __iter__(self) -> Iterator[str]:
        yield from map(path_of, self._documents)
        yield TABLE

    def __len__(self) -> int:
        return len(self._documents) + 1


class Renderer:
    """Renders the files of the status branch. Of a document that is the same object as last time its file's name in Git is known,
    and its row for people; neither is worked out again, and its file is rendered for nobody."""

    def __init__(self, identify: Identify) -> None:
        self._identify = identify
        self._kept: dict[str, tuple[Document, str, str]] = {}

    def __call__(self, documents: Mapping[str, Document]) -> Rendered:
        """The files: a document each, and the table for people."""
        kept = {}
        for name in sorted(documents):
            document, found = documents[name], self._kept.get(name)
            same = found is not None and found[0] is document
            kept[name] = found if found and same else (document, self._identify(_rendered(document)), _row(name, document))
        self._kept = kept
        table = _table(row for _, _, row in kept.values()).encode()
        ids = {path_of(name): known for name, (_, known, _) in kept.items()} | {TABLE: self._identify(table)}
        return Rendered(dict(documents), table, ids)


def readme(documents: Mapping[str, Document]) -> str:
    """The table that people see when they open the status branch."""
    return _table(_row(name, document) for name, document in sorted(documents.items()))


def _rendered(document: Document) -> bytes:
    return orjson.dumps(dict(document), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


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
    changed = sorted(name for name, item in after.items() if (known := before.get(name)) is not item and known != item)
    gone = sorted(before.keys() - after.keys())
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


def _alike(before: Any, after: Any) -> bool:
    """Whether two values are equal but for volatile fields; most that are not differ early."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = before.keys() - _VOLATILE
        return names == after.keys() - _VOLATILE and all(_alike(before[name], after[name]) for name in names)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_alike, before, after))
    return bool(before == after)
