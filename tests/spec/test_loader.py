"""Every malformed class of SLA has its own code, its place, a cause and a cure; FLOps' own SLAs are accepted unchanged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from reconciler.errors import SpecError, SpecErrors
from reconciler.spec import load_operator_config, load_sla, training_spec
from reconciler.spec.schemas import schema
from reconciler.spec.yaml_reader import MAX_BYTES, read

FLOPS = sorted((Path(__file__).parent / "fixtures" / "flops").glob("*.json"))
GOOD = """customerID: demo
ml_repo_url: ./projects/mnist/ml_repo
ml_model_flavor: sklearn
"""
EXAMPLES = 5000 if os.environ.get("FLOPS_SOAK") else 60


def errors(text: str | bytes) -> list[SpecError]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(SpecErrors) as caught:
        load_sla(data, "sla.yaml")
    return list(caught.value.errors)


@pytest.mark.parametrize("path", FLOPS, ids=lambda path: path.stem)
def test_flops_own_slas_are_accepted_unchanged(path: Path) -> None:
    sla = load_sla(path.read_bytes(), path.name)
    assert sla.customer_id == "Admin"
    assert sla.training_configuration.data_tags


def test_defaults_are_those_of_flops() -> None:
    training = load_sla(GOOD.encode(), "sla.yaml").training_configuration
    assert (training.mode, training.training_rounds, training.training_cycles) == ("classic", 3, 1)
    assert (training.min_available_clients, training.min_fit_clients, training.min_evaluate_clients) == (1, 1, 1)


def test_tensorflow_is_keras() -> None:
    assert load_sla(GOOD.replace("sklearn", "tensorflow").encode(), "sla.yaml").ml_model_flavor == "keras"


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        (GOOD + "suspend: no\n", "FL1010", 4, 10),
        (GOOD + "training_configuration: {training_rounds: 010}\n", "FL1011", 4, 43),
        (GOOD + "training_configuration: {round_timeout: 12:30}\n", "FL1012", 4, 41),
        (GOOD + "rerun: 2026-01-02\n", "FL1013", 4, 8),
        (GOOD + "rerun: 0x1F\n", "FL1014", 4, 8),
        (GOOD + "evaluation_gate: {threshold: .nan}\n", "FL1015", 4, 30),
        (GOOD + "evaluation_gate: {threshold: .inf}\n", "FL1015", 4, 30),
        (GOOD + "? [a, b]\n: c\n", "FL1016", 4, 3),
        (GOOD + "customerID: other\n", "FL1017", 4, 1),
        (GOOD + "rerun: 12345678901234567890123\n", "FL1018", 4, 8),
        (GOOD + "depends_on: &a []\n", "FL1007", 4, 13),
        (GOOD + "depends_on: *a\n", "FL1007", 4, 13),
        (GOOD + "<<: {a: 1}\n", "FL1007", 4, 1),
        (GOOD + "rerun: !!python/object/apply:os.system [ls]\n", "FL1008", 4, 8),
        (GOOD + "---\na: 1\n", "FL1006", 4, 1),
        (GOOD + "depends_on: [a\n", "FL1005", 5, 1),
        ("", "FL1004", 1, 1),
        ("- a\n- b\n", "FL1020", 1, 1),
        (GOOD + "trainig_configuration: {}\n", "FL1021", 4, 1),
        (GOOD + "training_configuration: {mode: classik}\n", "FL1023", 4, 32),
        (GOOD + "training_configuration: {training_rounds: many}\n", "FL1025", 4, 43),
        (GOOD + "training_configuration: {training_rounds: 0}\n", "FL1026", 4, 43),
        (GOOD + "post_training_steps: [deploy_trained_model_image]\n", "FL1024", 1, 1),
        (GOOD + "training_configuration: {min_fit_clients: 3}\n", "FL1024", 4, 25),
        (GOOD.replace("./projects/mnist/ml_repo", "--upload-pack=x"), "FL1024", 2, 14),
        (GOOD.replace("./projects/mnist/ml_repo", "ext::sh -c id"), "FL1024", 2, 14),
        (GOOD.replace("./projects/mnist/ml_repo", "./../../etc"), "FL1024", 2, 14),
        (GOOD.replace("./projects/mnist/ml_repo", "https://me:secret@host/x.git"), "FL1024", 2, 14),
        (GOOD + "ml_repo_ref: -x\n", "FL1024", 4, 14),
        (GOOD + "triggers: {schedule: every day}\n", "FL1024", 4, 22),
        (GOOD.replace("customerID: demo\n", ""), "FL1022", 1, 1),
    ],
)  # fmt: skip
def test_each_mistake_has_its_code_and_its_place(text: str, code: str, line: int, column: int) -> None:
    found = errors(text)
    assert [(item.code, item.where.line, item.where.column) for item in found if item.where] == [(code, line, column)]
    assert found[0].cause
    assert found[0].cure


def test_a_misspelt_key_gets_a_suggestion() -> None:
    assert "Did you mean 'training_rounds'?" in errors(GOOD + "training_configuration: {trainig_rounds: 3}\n")[0].cure
    assert "Did you mean 'fedprox'?" in errors(GOOD + "training_configuration: {strategy: {name: FedProxx}}\n")[0].cure


def test_all_mistakes_are_told_at_once() -> None:
    text = GOOD + "suspnd: true\ntraining_configuration: {mode: x, training_rounds: -1}\n"
    assert sorted(item.code for item in errors(text)) == ["FL1021", "FL1023", "FL1026"]


def test_files_that_are_no_text() -> None:
    assert errors(b"a: \xff\xfe")[0].code == "FL1002"
    assert errors(GOOD + "rerun: a\x1b[31m\n")[0].code == "FL1003"
    assert errors(b"a" * (MAX_BYTES + 1))[0].code == "FL1001"


def test_bombs_are_refused_before_they_grow() -> None:
    started = time.process_time()
    assert errors("[" * 1000)[0].code == "FL1009"
    assert errors("a: &a [*a]")[0].code == "FL1007"
    # Orders of magnitude, not a figure: a bomb would take minutes and gigabytes.
    assert time.process_time() - started < 10


def test_a_large_file_is_read_with_the_c_parser() -> None:
    document = read("".join(f"k{number}: {number}\n" for number in range(15_000)).encode(), "x")
    assert document.value["k14999"] == 14_999


def test_secrets_and_control_characters_are_not_quoted() -> None:
    message = str(errors(GOOD + f"ml_repo_ref: '{'s' * 300} x'\n")[0])
    assert "s" * 60 not in message


def test_quoting_does_what_the_cure_says() -> None:
    assert load_sla((GOOD + 'rerun: "2026-01-02"\n').encode(), "sla.yaml").rerun == "2026-01-02"


def test_operator_settings_are_checked_the_same_way() -> None:
    assert load_operator_config(b"instance: prod\npoll_interval: 5m\n", "flops.yaml").poll_interval == 300
    with pytest.raises(SpecErrors, match="Did you mean 'instance'"):
        load_operator_config(b"instanc: prod\n", "flops.yaml")


@pytest.mark.parametrize("path", FLOPS, ids=lambda path: path.stem)
def test_the_published_schema_accepts_what_the_loader_accepts(path: Path) -> None:
    validator = Draft202012Validator(schema("sla"))
    assert list(validator.iter_errors(read(path.read_bytes(), path.name).value)) == []


def test_the_published_schema_refuses_unknown_keys() -> None:
    value = read((GOOD + "nonsense: 1\n").encode(), "x").value
    assert list(Draft202012Validator(schema("sla")).iter_errors(value))


def test_waiting_longer_is_no_reason_to_train_again() -> None:
    slow = load_sla((GOOD + "training_configuration: {round_timeout: 1h}\n").encode(), "x")
    assert training_spec(slow) == training_spec(load_sla(GOOD.encode(), "x"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        st.text("abc:[]{}&*!|>-'\"\n 0.1", max_size=80).map(str.encode),
    )
)
def test_no_input_ends_in_anything_but_an_sla_or_errors(data: bytes) -> None:
    try:
        load_sla(data, "fuzz.yaml")
    except SpecErrors as refused:
        found = refused.errors
    else:
        return
    assert found
    assert all(item.code.startswith("FL1") and item.cause and item.cure for item in found)
