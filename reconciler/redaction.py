"""Redaction: the one place that knows what must not be shown, and masks it in whatever leaves the process.

Values that were resolved as secrets are *learned* here (`learn`), and masked in each form in which they are likely to turn up: as
they are, line by line, percent-encoded, as JSON and as base64. What merely looks like a credential – the user part of a URL, an
`Authorization` header, a bearer token, a private key – is masked whoever wrote it. The journal, the ledger of status documents, the
logs of children, the web and every command's output go through it, so that no other module has to think of it.

Invariant: masking is idempotent, and text without a secret comes back as the same object. Standard library only: a service's
supervisor masks the log of its server with it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
MIN_LENGTH = 8
"""Shorter values are words as well: masking them would tell where they stand. Settings that hold secrets refuse them."""
MAX_LINE = 64 * 1024

_SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = tuple(
    (hints, re.compile(pattern, re.IGNORECASE | re.DOTALL), mask)
    for hints, pattern, mask in (
        (("://",), r"\b((?:https?|wss?)://)(?!\*\*\*@)[^/\s@\"'<>]+@", rf"\1{HIDDEN}@"),
        (("://",), r"\b([a-z][a-z0-9+.-]*://[^/\s:@\"'<>]*:)(?!\*\*\*@)[^/\s@\"'<>]+@", rf"\1{HIDDEN}@"),
        (
            ("authorization",),
            r"\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token|digest|negotiate)\s+)?+)[a-z0-9._~+/=-]{3,}",
            rf"\1{HIDDEN}",
        ),
        (("bearer",), r"\b(bearer\s+)(?=\S*\d)[a-z0-9._~+/=-]{8,}", rf"\1{HIDDEN}"),
        (
            ("gh", "glpat-", "xox", "akia", "age-secret-key-"),
            r"\b(?:gh[pousr]_[a-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|akia[0-9a-z]{16}"
            r"|age-secret-key-1[0-9a-z]{20,})",
            HIDDEN,
        ),
        (("private key",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", HIDDEN),
        (
            ("password=", "passwd=", "secret=", "token=", "key="),
            r"\b((?:password|passwd|(?:client[_-]?)?secret|(?:access|api|private)[_-]?(?:key|token)|token)=)(?!\*\*\*)[^\s&\"';,]{4,}",
            rf"\1{HIDDEN}",
        ),
    )
)
_OPEN_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(?!.*-----END [A-Z ]*PRIVATE KEY-----)", re.IGNORECASE | re.DOTALL)
"""A key whose end is still to come."""
_HINTED = re.compile("|".join(re.escape(hint) for hints, _, _ in _SHAPES for hint in hints))
"""Most texts have none of them, and no text costs more than that question."""
_SECRET_NAME = re.compile(r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|PRIVATE_KEY|AGE_KEY)(?:_|$)")
_PLACE_NAME = re.compile(r"_(?:FILE|PATH|DIR|ID)$")
_HEADER = re.compile(r"\S+\s*$")


class Redactor:
    """Known values, and the mask over them. Values may be learned in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: set[str] = set()
        self._known: re.Pattern[str] | None = None

    def learn(self, value: str) -> None:
        """Mask a value from now on; one of fewer than `MIN_LENGTH` characters is not kept."""
        forms = set(_forms(value))
        with self._lock:
            if forms <= self._forms:
                return
            self._forms |= forms
            # The longest first: a secret may begin with another one.
            ordered = sorted(self._forms, key=lambda form: (-len(form), form))
            self._known = re.compile("|".join(map(re.escape, ordered)))

    def learn_url(self, url: str) -> None:
        """Mask the password of a URL wherever it stands alone; a token may stand where the user does."""
        try:
            parts = urlsplit(url)
            found = (parts.password, parts.username if parts.scheme in {"http", "https"} and parts.password is None else None)
        except ValueError:
            return
        for value in found:
            if value:
                self.learn(unquote(value))
                self.learn(value)

    def learn_environment(self, environ: Mapping[str, str]) -> None:
        """Mask the values of variables that are named as secrets are, and of headers that Git is given."""
        for name, value in environ.items():
            if _SECRET_NAME.search(name.upper()) and not _PLACE_NAME.search(name.upper()):
                self.learn(value.strip())
            elif name.startswith("OTEL_EXPORTER_OTLP_") and name.endswith("HEADERS"):
                for header in value.split(","):
                    self.learn(unquote(header.partition("=")[2]).rpartition(" ")[2].strip())
            elif name.startswith("GIT_CONFIG_VALUE_") and "authorization" in value.lower() and (found := _HEADER.search(value)):
                self.learn(found[0].strip())
            elif "://" in value and "@" in value:
                self.learn_url(value)

    def text(self, text: str) -> str:
        """The text without secrets; the same object when it has none."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        lower = text.lower()
        if _HINTED.search(lower) is None:
            return text
        for hints, pattern, mask in _SHAPES:
            if any(hint in lower for hint in hints):
                text = pattern.sub(mask, text)
        return text

    def data(self, value: Any) -> Any:
        """The same for JSON values, keys included; what has no secret comes back as the same object."""
        if isinstance(value, dict):
            # One question for all of its texts: what is found in one of them is found in all of them, each on lines of its own.
            whole = "\n".join(_texts(value))
            if _HINTED.search(whole.lower()) is None and (self._known is None or self._known.search(whole) is None):
                return value
        return self._data(value)

    def _data(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict | Mapping):
            made = {self.text(str(key)): self._data(item) for key, item in value.items()}
            same = len(made) == len(value) and all(
                key == old and made[key] is item for key, (old, item) in zip(made, value.items(), strict=True)
            )
            return value if same else made
        if isinstance(value, list | tuple):
            items = [self._data(item) for item in value]
            return value if all(new is old for new, old in zip(items, value, strict=True)) else items
        return value

    def snapshot(self) -> frozenset[str]:
        """What is known, for `restore`; for tests, which share one process."""
        return frozenset(self._forms)

    def restore(self, forms: Iterable[str]) -> None:
        """Know these forms and no others."""
        with self._lock:
            self._forms = set(forms)
            ordered = sorted(self._forms, key=lambda form: (-len(form), form))
            self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None


class Stream:
    """Masks what comes in pieces: a secret that is cut by the end of a piece is still found.

    What comes is held back to its line's end, and a private key, which has many lines, to its last one.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Everything up to the last line's end, masked; a line, or a key, longer than `MAX_LINE` goes in two."""
        held = self._rest + chunk
        end = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
        if opened := _OPEN_KEY.search(held, 0, end):
            end = opened.start()
        if len(held) - end > MAX_LINE:
            end = len(held)
        self._rest = held[end:]
        return self._masked(held[:end])

    def flush(self) -> bytes:
        """What was held back."""
        rest, self._rest = self._rest, b""
        return self._masked(rest)

    def _masked(self, data: bytes) -> bytes:
        text = data.decode("utf-8", "surrogateescape")
        found = self._redactor.text(text)
        return data if found is text else found.encode("utf-8", "surrogateescape")


class Masked:
    """A text stream that masks what is written to it; in everything else it is the stream behind it."""

    def __init__(self, stream: TextIO, redactor: Redactor) -> None:
        self._stream, self._redactor = stream, redactor

    def write(self, text: str) -> int:
        """Write, masked."""
        self._stream.write(self._redactor.text(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines, masked."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_output() -> None:
    """Mask what this process prints, tracebacks and the logs of libraries included, and learn what its environment holds."""
    REDACTION.learn_environment(os.environ)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Masked):
            setattr(sys, name, Masked(stream, REDACTION))


def _texts(value: Any) -> list[str]:
    """All texts of JSON values, keys included, in no order."""
    found: list[str] = []
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict | Mapping):
            found.extend(map(str, item))
            left.extend(item.values())
        elif isinstance(item, list | tuple):
            left.extend(item)
    return found


def _forms(value: str) -> Iterable[str]:
    """In which forms a value may turn up."""
    parts = {value, value.strip(), *(line.strip() for line in value.splitlines())}
    for part in parts:
        if len(part) < MIN_LENGTH:
            continue
        raw = part.encode("utf-8", "surrogateescape")
        yield part
        yield quote(part, safe="", errors="surrogateescape")
        yield json.dumps(part)[1:-1]
        yield json.dumps(part, ensure_ascii=False)[1:-1]
        for coded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
            yield coded.decode().rstrip("=")


REDACTION = Redactor()
"""The one of this process: a secret that any part has resolved is masked by every other."""
learn = REDACTION.learn
learn_url = REDACTION.learn_url
learn_environment = REDACTION.learn_environment
mask = REDACTION.text
mask_data = REDACTION.data
