"""YAML and JSON into plain values with the place of every key and value; anything dangerous or ambiguous is refused.

Reads the C parser's *events* and builds the values itself. So aliases, anchors, tags and depth are refused before anything is
built, and no bomb can grow. JSON is YAML, so a FLOps SLA goes the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from reconciler.errors import SpecError, SpecErrors, Where

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_DIGITS = 18
MAX_ERRORS = 100

Path = tuple[str | int, ...]
Place = tuple[int, int]

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+)([eE][-+]?[0-9]+)?$")
_TRAPS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"(y|Y|yes|Yes|YES|n|N|no|No|NO|on|On|ON|off|Off|OFF)$"), "FL1010", "YAML 1.1 reads it as true or false"),
    (re.compile(r"[-+]?0[0-7_]+$"), "FL1011", "YAML 1.1 reads it as an octal number"),
    (re.compile(r"[-+]?0[0-9]+$"), "FL1011", "it starts with a zero, and parsers differ on what that means"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$"), "FL1012", "YAML 1.1 reads it as a number to the base 60"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?$"), "FL1013", "YAML reads it as a date"),
    (re.compile(r"[-+]?(0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|[0-9]+_[0-9_]+)$"), "FL1014", "parsers differ on such numbers"),
    (re.compile(r"[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$|(NaN|-?Infinity)$"), "FL1015", "it is not a finite number"),
)
_AMBIGUOUS = re.compile(r"[-+.0-9]|(?:y|n|yes|no|on|off|nan|-?infinity)$", re.IGNORECASE)
# Beside control characters: what ends a line for some parsers only, what turns the direction of text (so that a reviewer
# reads something else than we do), and what is no character.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


@dataclass(slots=True)
class Document:
    """Values of a file, and the places (line, column; from 1) of keys and of values by path."""

    value: Any
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)


def read(data: bytes, path: str) -> Document:
    """Parse one document. Raises SpecErrors with everything that is wrong with it as text."""
    if len(data) > MAX_BYTES:
        raise _refusal("FL1001", f"The file has {len(data):,} bytes, more than {MAX_BYTES:,}.", "Take out what is no SLA.", path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _refusal("FL1002", "The file is not UTF-8.", "Save it as UTF-8.", path, (line, 0)) from error
    found = _CONTROL.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        cause = f"The file has the invisible character U+{ord(found[0]):04X}."
        raise _refusal("FL1003", cause, "Remove it.", path, (line, found.start() - text.rfind("\n", 0, found.start())))
    if text.lstrip().startswith("{"):
        # JSON writes a character beyond U+FFFF as two escapes, YAML as one.
        text = _SURROGATES.sub(_joined, text)
    return _Builder(path).build(text)


def _joined(found: re.Match[str]) -> str:
    high, low = int(found[2], 16), int(found[3], 16)
    return f"{found[1]}\\U{0x10000 + ((high - 0xD800) << 10) + low - 0xDC00:08x}"


_QUOTED = frozenset("'\"|>")


class _Builder:
    def __init__(self, path: str) -> None:
        self._path = path
        self._errors: list[SpecError] = []
        self._document = Document(None)

    def build(self, text: str) -> Document:
        try:
            events = self._events(text)
            first = next(events, None)
            if first is None:
                raise _refusal("FL1004", "The file is empty.", "Write an SLA into it, or remove it.", self._path, (1, 1))
            self._document.value = self._node(first, events, ())
            for _ in events:  # what follows the first document is looked at too, and refused
                pass
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            problem = str(getattr(error, "problem", None) or "it cannot be parsed")
            self._add("FL1005", f"This is not valid YAML: {problem}.", "Check indentation, quotes and brackets.", place)
        if self._errors:
            raise SpecErrors(self._errors)
        return self._document

    def _events(self, text: str) -> Iterator[yaml.Event]:
        """The events of one document, checked before anything is built from them."""
        depth = documents = 0
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            place = _place(event)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _refusal("FL1006", "The file has more than one document.", "Keep one; remove `---`.", self._path, place)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _refusal("FL1007", "Anchors and aliases are not allowed.", "Write the value out.", self._path, place)
            tag = getattr(event, "tag", None)
            if tag and tag != "!":
                raise _refusal("FL1008", "Tags are not allowed.", "Remove what starts with `!`.", self._path, place)
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _refusal("FL1009", f"It is nested deeper than {MAX_DEPTH} levels.", "Flatten it.", self._path, place)
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
                yield event

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], path: Path) -> Any:
        self._document.values[path] = _place(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(self._node(item, events, (*path, len(items))))
            return items
        return self._mapping(events, path)

    def _mapping(self, events: Iterator[yaml.Event], path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            place = _place(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise _refusal("FL1016", "A key is not a plain word.", "Use text as keys.", self._path, place)
            key: str = event.value
            plain = event.style not in _QUOTED
            self._refuse_controls(key, place)
            if plain and key == "<<":
                raise _refusal("FL1007", "Merge keys are not allowed.", "Write the keys out.", self._path, place)
            if plain:
                self._refuse_ambiguous(key, place)
            if key in found:
                first = self._document.keys[(*path, key)]
                self._add("FL1017", f"The key {shown(key)} stands twice, first in line {first[0]}.", "Keep one of them.", place)
            else:
                self._document.keys[(*path, key)] = place
            found[key] = self._node(next(events), events, (*path, key))
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text: str = event.value
        place = _place(event)
        self._refuse_controls(text, place)
        if event.style in _QUOTED:
            return text
        if text in {"", "~", "null", "Null", "NULL"}:
            return None
        if text in {"true", "True", "TRUE", "false", "False", "FALSE"}:
            return text.lower() == "true"
        if _INT.match(text):
            if len(text) > MAX_DIGITS:
                self._add("FL1018", "The number is too large.", f"Use at most {MAX_DIGITS} digits, or put it in quotes.", place)
                return 0
            return int(text)
        if self._refuse_ambiguous(text, place):
            return text
        if _FLOAT.match(text):
            number = float(text)
            if not math.isfinite(number):
                self._add("FL1015", f"{shown(text)} is not a finite number.", "Use a finite number.", place)
                return 0.0
            return number
        return text

    def _refuse_ambiguous(self, text: str, place: Place) -> bool:
        if not _AMBIGUOUS.match(text):  # nearly every text: one look instead of seven
            return False
        for pattern, code, why in _TRAPS:
            if pattern.match(text):
                if code == "FL1015":
                    self._add(code, f"{shown(text)} is no number to work with: {why}.", "Use a finite number.", place)
                else:
                    quoted = f'put it in quotes: "{text[:40]}"'
                    cure = f"Write true or false, or {quoted}." if code == "FL1010" else f"Write it plainly, or {quoted}."
                    self._add(code, f"{shown(text)} is ambiguous: {why}.", cure, place)
                return True
        return False

    def _refuse_controls(self, text: str, place: Place) -> None:
        found = _CONTROL.search(text)
        if found:
            cause = f"The escape for the invisible character U+{ord(found[0]):04X} stands in a text."
            self._add("FL1003", cause, "Remove it.", place)

    def _add(self, code: str, cause: str, cure: str, place: Place) -> None:
        self._errors.append(SpecError(code, cause, cure=cure, where=Where(self._path, *place)))
        if len(self._errors) == MAX_ERRORS:
            raise SpecErrors(self._errors)


def shown(value: object) -> str:
    """A value as it may stand in an error: escaped, at most 40 characters, without the credentials of a URL."""
    text = str(value)
    start, end = text.find("://"), text.rfind("@")
    if 0 <= start < end:
        text = f"{text[: start + 3]}***{text[end:]}"
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (0, 0)


def _refusal(code: str, cause: str, cure: str, path: str, place: Place = (0, 0)) -> SpecErrors:
    return SpecErrors([SpecError(code, cause, cure=cure, where=Where(path, *place))])
