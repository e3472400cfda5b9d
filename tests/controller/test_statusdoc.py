"""Status documents change on transitions only, and are safe to show."""

from __future__ import annotations

from reconciler.statusdoc import Kept, Renderer, clean, keep_documents, merge, plain, read_documents, readme, render, same, subject


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


def test_a_kept_document_is_the_document() -> None:
    made = document(model={"version": "1"}, stages=[{"stage": "train", "seconds": 1.0}])
    kept = Kept(made)
    assert kept == made
    assert made == kept
    assert dict(kept) == made
    assert kept == Kept(dict(reversed(made.items())))
    assert kept != Kept(made | {"commit": "a"})
    assert kept.get("nothing") is None
    assert keep_documents(render({"a": made}).items()) == {"a": made}


def test_whatever_a_document_holds_it_can_be_kept() -> None:
    odd = {"name": "a\udcff", "lock": {1: 2**80, "set": frozenset({1}), "pair": ("x", None)}, "gate": {"value": float("nan")}}
    kept = Kept(odd)
    assert kept["name"] == "a?"
    assert kept["lock"] == {"1": str(2**80), "set": "frozenset({1})", "pair": ["x", None]}
    assert kept["gate"] == {"value": None}
    assert Kept(kept) == kept


def test_volatile_fields_alone_make_no_difference_at_any_depth() -> None:
    before = document(stages=[{"stage": "train", "seconds": 1.0}], verification={"latency_p50_ms": 1.0, "ok": True})
    assert same(before, document(stages=[{"stage": "train", "seconds": 2.0}], verification={"ok": True}))
    assert not same(before, document(stages=[{"stage": "train", "seconds": 1.0}], verification={"ok": False}))
    assert not same(before, document(stages=[], verification={"ok": True}))
    assert not same(before, document(stages=[{"stage": "train"}]))


def test_only_new_documents_are_rendered_for_the_branch() -> None:
    rendered: list[bytes] = []

    def identify(content: bytes) -> str:
        rendered.append(content)
        return str(hash(content))

    renderer = Renderer(identify)
    documents = {"a": Kept(document()), "b": Kept(document())}
    first = renderer(documents)
    assert dict(first) == render(documents)
    assert first.ids.keys() == set(first)
    rendered.clear()
    second = renderer(documents | {"b": Kept(document(model={"version": "2"}))})
    assert len(rendered) == 2  # the new one, and the table
    assert second.ids["projects/a.json"] == first.ids["projects/a.json"]
    assert b'"2"' in second["projects/b.json"]
