"""Redaction: known values in every form, and what looks like a credential, whoever wrote it; nothing else is touched."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reconciler.redaction import HIDDEN, MIN_LENGTH, Redactor, Stream

CANARY = 'canary/7f+3a"9é'


@pytest.fixture
def redactor() -> Redactor:
    made = Redactor()
    made.learn(CANARY)
    return made


@pytest.mark.parametrize(
    "shown",
    [
        CANARY,
        quote(CANARY, safe=""),
        json.dumps(CANARY),
        json.dumps(CANARY, ensure_ascii=False),
        base64.b64encode(CANARY.encode()).decode(),
        base64.urlsafe_b64encode(CANARY.encode()).decode(),
    ],
)
def test_a_known_value_in_each_form(redactor: Redactor, shown: str) -> None:
    said = redactor.text(f"it is {shown}, they said")
    assert HIDDEN in said
    assert shown.strip('"') not in said
    assert said.endswith(", they said")


@pytest.mark.parametrize(
    ("text", "secret", "left"),
    [
        ("https://user:hunter22@git.example.invalid/a", "hunter22", "https://***@git.example.invalid/a"),
        ("https://ghtoken@git.example.invalid/a", "ghtoken", "https://***@git.example.invalid/a"),
        ("postgres://app:hunter22@db/x", "hunter22", "postgres://app:***@db/x"),
        ("Authorization: Bearer abc", "abc", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz", "{'authorization': 'Basic ***'}"),
        ("sent bearer eyJhbGci0.x.y to it", "eyJhbGci0", "sent bearer *** to it"),
        ("?access_token=s3cr3t&page=1", "s3cr3t", "?access_token=***&page=1"),
        ("token ghp_0123456789abcdefABCDEF refused", "ghp_0123456789abcdefABCDEF", "token *** refused"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----!", "abc", "***!"),
    ],
)
def test_what_looks_like_a_credential(text: str, secret: str, left: str) -> None:
    said = Redactor().text(text)
    assert secret not in said
    assert said == left
    assert Redactor().text(said) == said


@pytest.mark.parametrize(
    "text",
    [
        "ssh://git@git.example.invalid/team/repo.git",
        "git@git.example.invalid:team/repo.git",
        "https://git.example.invalid/team/repo.git",
        "bearer authentication is needed",
        "sha256:0123456789abcdef0123456789abcdef",
        "the token is missing",
    ],
)
def test_what_is_no_secret_stays_as_the_same_object(redactor: Redactor, text: str) -> None:
    assert redactor.text(text) is text
    document = {"a": [text, 1, None], "b": {"c": text}}
    assert redactor.data(document) is document


def test_documents_are_masked_at_any_depth(redactor: Redactor) -> None:
    document = {"a": [{"b": CANARY}], CANARY: 1, "n": 0.5}
    assert redactor.data(document) == {"a": [{"b": HIDDEN}], HIDDEN: 1, "n": 0.5}


def test_short_values_are_not_learned() -> None:
    made = Redactor()
    made.learn("x" * (MIN_LENGTH - 1))
    assert made.text("x" * 20) == "x" * 20


def test_each_line_of_a_long_secret(redactor: Redactor) -> None:
    redactor.learn("first-line-of-it\nsecond-line-of-it\n")
    assert redactor.text("a second-line-of-it b") == "a *** b"


def test_variables_by_their_names_and_urls_by_their_passwords() -> None:
    made = Redactor()
    made.learn_environment(
        {
            "FLOPS_WEB_TOKEN": "web-token-value",
            "MLFLOW_TRACKING_URI": "https://me:tracking-password@mlflow.example.invalid",
            "GIT_CONFIG_VALUE_0": "Authorization: Basic Z2l0LWhlYWRlcg==",
            "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/the/token",
            "PATH": "/usr/bin-of-mine",
        }
    )
    said = made.text("web-token-value tracking-password Z2l0LWhlYWRlcg== /var/run/the/token /usr/bin-of-mine")
    assert said == "*** *** *** /var/run/the/token /usr/bin-of-mine"


@example([5, 30, 60], b"-----BEGIN PRIVATE KEY-----")
@given(st.lists(st.integers(0, 60), max_size=6), st.binary(max_size=40))
def test_pieces_of_a_stream_give_what_the_whole_would(cuts: list[int], noise: bytes) -> None:
    redactor = Redactor()
    redactor.learn("canary-0123456789")
    whole = noise + b"a canary-0123456789 b\n\xff tail canary-0123456789"
    stream, told, start = Stream(redactor), b"", 0
    for cut in sorted(cuts):
        told += stream.feed(whole[start : max(start, cut)])
        start = max(start, cut)
    told += stream.feed(whole[start:]) + stream.flush()
    at_once = Stream(redactor)
    assert told == at_once.feed(whole) + at_once.flush()
    assert b"canary-0123456789" not in told
    assert noise or told == b"a *** b\n\xff tail ***"


@given(st.lists(st.integers(0, 200), max_size=6))
def test_a_key_that_comes_in_pieces_is_hidden_whole(cuts: list[int]) -> None:
    body = [b"MIIEvQIBADANBgkqhkiG9w0B", b"AQEFAASCBKcwggSjAgEAAoIB"]
    lines = [b"before", b"-----BEGIN PRIVATE KEY-----", *body, b"-----END PRIVATE KEY-----", b"after", b""]
    whole = b"\n".join(lines)
    stream, told, start = Stream(Redactor()), b"", 0
    for cut in [*sorted(cuts), len(whole)]:
        told += stream.feed(whole[start : max(start, cut)])
        start = max(start, cut)
    assert told == b"before\n***\nafter\n"


_PIECES = st.sampled_from(
    ["a", " ", "\n", '"', "\\", "://", "https://", "user:hunter22@", "bearer ", "abc12345678", "authorization:", "token=", "K",
     CANARY, CANARY[:6], CANARY[6:], json.dumps(CANARY), "-----BEGIN PRIVATE KEY-----", "ghp_0123456789abcdefABCDEF"]
)  # fmt: skip
_TEXTS = st.lists(_PIECES, max_size=5).map("".join)
_VALUES = _TEXTS | st.lists(_TEXTS, max_size=3) | st.dictionaries(_TEXTS, _TEXTS | st.lists(_TEXTS, max_size=2), max_size=3)
_DOCUMENTS = st.dictionaries(_TEXTS, _VALUES, max_size=4)


@given(_DOCUMENTS)
def test_a_document_is_masked_as_each_of_its_texts_is(document: dict[str, Any]) -> None:
    redactor = Redactor()
    redactor.learn(CANARY)

    def masked(value: Any) -> Any:
        if isinstance(value, dict):
            return {redactor.text(key): masked(item) for key, item in value.items()}
        return [masked(item) for item in value] if isinstance(value, list) else redactor.text(value)

    found = redactor.data(document)
    assert found == masked(document)
    assert (found is document) == (found == document)
