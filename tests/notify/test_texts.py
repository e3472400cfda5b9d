"""What tenants write ends in other people's pages, and does nothing there."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.commands.plan import as_markdown
from reconciler.errors import SpecErrors
from reconciler.notify import texts
from reconciler.notify.channels import MAX_ROWS, body
from reconciler.notify.notice import Notice, State, notice
from reconciler.plan import Action, Change, InputChange, Plan, ProjectPlan, Stage, Verb
from reconciler.spec import load_operator_config
from tests.notify import sending

HOSTILE = [
    "@everyone look", "`@everyone`", "``` @team", "a | b | c", "\\| @x |", "<img src=x onerror=alert(1)>",
    "<!-- flops-gitops status of prod -->",
    "[x](javascript:alert(1))", "line\nbreak\r\n| a | b |", "\x1b[31mred\x07", "‮gnp.exe", "\ud800half", "#123 !45 ~label",
    "\\`@x`", "a\u200b@\u200bb", "\u2028| x |", "x" * 5000, "closes #1", "https://evil.example.invalid/",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_comment_is_a_table_whatever_stands_in_it(text: str) -> None:
    made = body([_notice(text), _notice("plain")])
    made.encode()
    rows = made.split("\n")[2:]
    assert len(rows) == 4
    for row in rows[2:]:
        assert row.count("|") == 5
        # Outside of code spans there is nothing of the tenant's.
        outside = re.sub(r"`[^`]*`", "", row)
        assert re.fullmatch(r"\| +\| ✅ done \| +\| +\|", outside), outside
        assert not re.search(r"@\w", row)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_plan_in_a_comment_is_tables_whatever_stands_in_them(text: str) -> None:
    """As `ci/plan_comment.py` posts it: an SLA of a pull request names nobody, and refers to nothing."""
    item = ProjectPlan(text, Change.TRAIN, text, "d" * 64, (Action(Stage.TRAIN, Verb.RUN, text),), (InputChange(text, text, ""),))
    made = as_markdown(Plan((item,)))
    made.encode()
    for row in made.split("\n"):
        outside = re.sub(r"`[^`]*`", "", row)
        if row.startswith("<details>"):
            inside = row.removeprefix("<details><summary>").removesuffix(": stages</summary>")
            assert not set("<>") & set(inside)
        else:
            assert re.fullmatch(r"[ |a-z-]*|### Plan|</details>|Plan: 1 train\.", outside), outside
        assert not re.search(r"@\w", row)


@given(st.text(max_size=300))
def test_any_text_stays_in_its_cell(text: str) -> None:
    shown = texts.code(text)
    shown.encode()
    assert shown.count("`") in (0, 2)
    assert "|" not in shown
    assert "\n" not in shown


@given(st.text(max_size=400))
def test_a_description_is_one_line_that_github_takes(text: str) -> None:
    made = texts.description(text)
    made.encode()
    assert len(made) <= 140
    assert made.isprintable() or not made


@pytest.mark.parametrize("text", HOSTILE)
def test_context_and_description_are_plain(text: str) -> None:
    item = _notice(text)
    for shown in (item.context, item.description):
        shown.encode()
        assert not re.search(r"[\x00-\x1f\x7f\u202e\u2028]", shown)
    assert len(item.description) <= 140
    kept = _notice(text, "digits")
    assert Notice.from_json(kept.to_json()) == kept


def test_a_comment_has_an_end() -> None:
    made = body([_notice("x" * 5000, f"p{number}") for number in range(500)])
    assert made.count("\n| `p") == MAX_ROWS
    assert len(made) < 65_536
    assert "400 more" in made


def _notice(text: str, project: str = "") -> Notice:
    document = {"conditions": [{"type": "Ready", "status": "True", "reason": text, "message": text}, _SYNCED], "customer": text}
    return notice("prod", project or text, sending.A, document, 0.0)


_SYNCED = {"type": "Synced", "status": "True", "reason": "Converged", "message": ""}


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([("Synced", "True", "Converged"), ("Ready", "True", "Healthy")], State.SUCCESS),
        ([("Synced", "True", "Converged"), ("Ready", "False", "Unhealthy")], State.FAILURE),
        ([("Synced", "False", "InvalidSLA"), ("Ready", "True", "Healthy"), ("Stalled", "True", "InvalidSLA")], State.FAILURE),
        ([("Synced", "False", "NotApplied"), ("Ready", "True", "Healthy"), ("Reconciling", "True", "Progressing")], State.PENDING),
        ([("Synced", "False", "FoughtOver"), ("Ready", "True", "Healthy"), ("Reconciling", "True", "FoughtOver")], State.ERROR),
        ([("Synced", "False", "Suspended"), ("Ready", "True", "Healthy"), ("Suspended", "True", "Suspended")], State.SUCCESS),
        ([], State.ERROR),
    ],
)
def test_states_follow_from_conditions(conditions: list[tuple[str, str, str]], state: State) -> None:
    document = {"conditions": [{"type": a, "status": b, "reason": c, "message": ""} for a, b, c in conditions]}
    assert notice("prod", "digits", sending.A, document, 0.0).state is state


def test_what_is_no_transition_has_the_same_key() -> None:
    first = {"conditions": [{"type": "Ready", "status": "True", "reason": "Healthy", "message": "at 127.0.0.1:1"}], "seconds": 1}
    again = {"conditions": [{"type": "Ready", "status": "True", "reason": "Healthy", "message": "at 127.0.0.1:2"}], "seconds": 2}
    other = {**first, "model": {"version": "2"}}
    keys = [notice("prod", "digits", sending.A, item, 0.0).key for item in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("notify: [{name: a, type: github, secret_ref: {env: T}}, {name: a, type: gitlab, secret_ref: {env: T}}]", "FL1024"),
        ("notify: [{name: a, type: webhook, secret_ref: {env: T}}]", "FL1024"),
        ("notify: [{name: a, type: webhook, url: 'http://hooks.example.invalid/', secret_ref: {env: T}}]", "FL1024"),
        ("notify: [{name: a, type: webhook, url: 'https://u:p@hooks.example.invalid/', secret_ref: {env: T}}]", "FL1024"),
        (
            "notify: [{name: a, type: webhook, url: 'https://h.example.invalid/', api: 'https://h/', secret_ref: {env: T}}]",
            "FL1024",
        ),
        ("notify: [{name: a, type: github, url: 'https://h.example.invalid/', secret_ref: {env: T}}]", "FL1024"),
        ("notify: [{name: a, type: github, statuses: false, secret_ref: {env: T}}]", "FL1024"),
        ("notify: [{name: a, type: github, api: 'ftp://h/', secret_ref: {env: T}}]", "FL1024"),
        ("notify: [{name: a, type: github, repository: '../x', secret_ref: {}}]", "FL1024"),
        ("notify: [{name: a, type: github}]", "FL1022"),
        ("notify: [{name: a, type: github, token: canary, secret_ref: {env: T}}]", "FL1021"),
        ("notify: [{name: a, type: mail, secret_ref: {env: T}}]", "FL1023"),
        ("notify: [{name: a, type: github, secret_ref: canary-5d1f}]", "FL1025"),
    ],
)
def test_settings_that_cannot_be(text: str, code: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        load_operator_config(text.encode(), "flops.yaml")
    assert code in [error.code for error in caught.value.errors]
    assert "canary" not in str(caught.value)
