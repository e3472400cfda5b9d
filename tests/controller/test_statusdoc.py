"""Status documents change on transitions only, and are safe to show."""

from __future__ import annotations

from reconciler.statusdoc import clean, merge, plain, read_documents, readme, render, subject


def document(**fields: object) -> dict[str, object]:
    return {"name": "mnist", "conditions": [{"type": "Ready", "status": "True", "reason": "Healthy", "message": "ok"}], **fields}


def test_a_new_duration_is_not_a_transition() -> None:
    before = {"mnist": document(stages=[{"stage": "train", "seconds": 1.0}], commit="a")}
    after = {"mnist": document(stages=[{"stage": "train", "seconds": 2.0}], commit="b")}
    assert merge(before, after) == before


def test_a_new_version_is_a_transition() -> None:
    before = {"mnist": document(model={"version": "1", "digest": "d"})}
    after = {"mnist": document(model={"version": "2", "digest": "e"})}
    assert merge(before, after) == after
    assert subject(before, after) == "mnist: Ready (Healthy), version 2"


def test_a_project_that_is_gone_is_gone() -> None:
    assert merge({"mnist": document()}, {}) == {}
    assert subject({"mnist": document()}, {}) == "mnist: removed"


def test_files_and_documents_are_the_same_thing() -> None:
    documents = {"mnist": document()}
    assert read_documents(render(documents)) == documents


def test_a_damaged_document_is_left_out() -> None:
    assert read_documents({"projects/a.json": b"{", "projects/b.json": b"[]", "README.md": b""}) == {}


def test_markup_and_control_characters_are_neutralised() -> None:
    evil = {"mnist": document(conditions=[{"type": "Stalled", "status": "True", "message": "a|b\x1b[31m\n<img>\u202ex"}])}
    text = readme(evil)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<img>" not in text.replace("\\<", "")
    assert plain("a|b") == "a\\|b"
    assert clean("a\nb") == "a b"
