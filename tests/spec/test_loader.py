"""Every malformed class of SLA has its own code, its place, a cause and a cure; FLOps' own SLAs are accepted unchanged."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from reconciler.error_codes import CODES
from reconciler.errors import SpecError, SpecErrors
from reconciler.spec import load_mock_data, load_operator_config, load_sla, training_spec
from reconciler.spec.schemas import files as schema_files
from reconciler.spec.schemas import schema
from reconciler.spec.yaml_reader import MAX_BYTES, MAX_ERRORS, read

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
        (GOOD + "post_training_steps: [deploy_trained_model_image]\n", "FL1024", 4, 23),
        (GOOD + "training_configuration: {min_fit_clients: 3}\n", "FL1024", 4, 43),
        (GOOD.replace("./projects/mnist/ml_repo", "--upload-pack=x"), "FL1024", 2, 14),
        (GOOD.replace("./projects/mnist/ml_repo", "ext::sh -c id"), "FL1024", 2, 14),
        (GOOD.replace("./projects/mnist/ml_repo", "./../../etc"), "FL1024", 2, 14),
        (GOOD.replace("./projects/mnist/ml_repo", "https://me:secret@host/x.git"), "FL1024", 2, 14),
        (GOOD + "ml_repo_ref: -x\n", "FL1024", 4, 14),
        (GOOD + "triggers: {schedule: every day}\n", "FL1024", 4, 22),
        (GOOD.replace("customerID: demo\n", ""), "FL1022", 1, 1),
        (GOOD + "evaluation_gate: {threshold: 1}\nmock: {}\n", "FL1021", 5, 1),
        (GOOD + "training_configuration: {strategy: {nme: krum}}\n", "FL1021", 4, 37),
        (GOOD + "training_configuration: {clusters: [{name: a}]}\n", "FL1024", 4, 36),
        (GOOD + "training_configuration: {mode: hierarchical, clusters: [{name: a}, {name: a}]}\n", "FL1024", 4, 68),
        (GOOD + "depends_on: [Bad_Name]\n", "FL1026", 4, 14),
        (GOOD + "no: 1\n", "FL1010", 4, 1),
        (GOOD + 'rerun: "a\\0b"\n', "FL1003", 4, 8),
        (GOOD + "rerun: a\u202eb\n", "FL1003", 4, 9),
        (GOOD + "suspend:\n", "FL1025", 4, 9),
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
    assert errors(GOOD.replace("sklearn", "x" + "://" * 60_000))[0].code == "FL1023"
    # Orders of magnitude, not a figure: a bomb would take minutes and gigabytes.
    assert time.process_time() - started < 10


def test_a_large_file_is_read_with_the_c_parser() -> None:
    document = read("".join(f"k{number}: {number}\n" for number in range(15_000)).encode(), "x")
    assert document.value["k14999"] == 14_999


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com/a/b", "https://github.com/a/b.git", "ssh://git@host:22/a/b", "git@host:a/b.git", "file:///srv/b.git",
        "http://127.0.0.1:8000/b", "https://[::1]/b", "./projects/a/ml_repo",
    ],
)  # fmt: skip
def test_addresses_of_ml_repos_that_are_accepted(url: str) -> None:
    assert load_sla(GOOD.replace("./projects/mnist/ml_repo", f'"{url}"').encode(), "x").ml_repo_url == url


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=x/y", "git@-oProxyCommand=x:y", "git@host:-x", "https://-host/x", "ext::sh -c id", "ext::x", "fd::3",
        "git://host/x", "ftp://host/x", "http://host/x", "https://host", "https://host/x?token=a", "https://host/../x", "file://host/x",
        "https://tok@host/x", "https://a:b@host/x", "ssh://a:b@host/x", "https://host:port/x", "/etc", "../x", "./a/../../x",
        "./a/.git/x", "./a\\\\b", "https://host/x\\n", "", "x", "git@host",
    ],
)  # fmt: skip
def test_addresses_of_ml_repos_that_are_refused(url: str) -> None:
    assert [item.code for item in errors(GOOD.replace("./projects/mnist/ml_repo", f'"{url}"'))] == ["FL1024"]


@pytest.mark.parametrize(
    ("schedule", "good"),
    [
        ("0 3 * * *", True), ("*/5 0-6/2 1,15 jan-mar mon", True), ("0 0 * * 7", True),
        ("60 * * * *", False), ("* 24 * * *", False), ("* * 0 * *", False), ("* * * foo *", False), ("*/0 * * * *", False),
        ("5-1 * * * *", False), ("* * * *", False), ("1, * * * *", False), ("²  * * * *", False),
    ],
)  # fmt: skip
def test_cron_expressions(schedule: str, good: bool) -> None:
    text = GOOD + f"triggers: {{schedule: '{schedule}'}}\n"
    if good:
        assert load_sla(text.encode(), "x").triggers
    else:
        assert [item.code for item in errors(text)] == ["FL1024"]


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("training_configuration: {training_rounds: '3'}", "without quotes"),
        ("training_configuration: {training_rounds: true}", "whole number"),
        ("training_configuration: {data_tags: [2024]}", 'Put it in quotes: "2024"'),
        ("verbose: 'no'", "true or false without quotes"),
        ("verbose: 1", "true or false"),
        ("rerun: true", 'Put it in quotes: "true"'),
        ("triggers: 5", "below it"),
        ("depends_on: a", "a list"),
    ],
)
def test_nothing_is_taken_for_another_type(text: str, cure: str) -> None:
    found = errors(GOOD + text + "\n")
    assert [item.code for item in found] == ["FL1025"]
    assert cure in found[0].cure


def test_one_mistake_is_one_error_where_several_types_are_allowed() -> None:
    text = GOOD + "rerun: [1]\ntraining_configuration: {strategy: {arguments: {eta: [1]}}}\n"
    assert [(item.code, item.where and item.where.line) for item in errors(text)] == [("FL1025", 4), ("FL1025", 5)]


def test_rules_are_told_beside_other_mistakes() -> None:
    text = GOOD + (
        "suspnd: true\npost_training_steps: [deploy_trained_model_image]\n"
        "training_configuration: {mode: x, min_fit_clients: 5, min_evaluate_clients: 5}\n"
    )
    assert [item.code for item in errors(text)] == ["FL1021", "FL1024", "FL1023", "FL1024", "FL1024"]


def test_the_direction_follows_from_the_metric() -> None:
    def direction(gate: str) -> str:
        sla = load_sla((GOOD + f"evaluation_gate: {{{gate}}}\n").encode(), "x")
        assert sla.evaluation_gate
        return sla.evaluation_gate.direction

    assert [direction(f"metric: {name}") for name in ("accuracy", "loss", "val_loss", "holdout.rmse")] == [
        "maximize", "minimize", "minimize", "minimize",
    ]  # fmt: skip
    assert direction("metric: loss, direction: maximize") == "maximize"


def test_a_tag_may_stand_alone_as_in_flops() -> None:
    sla = load_sla((GOOD + "training_configuration: {data_tags: mnist}\n").encode(), "x")
    assert sla.training_configuration.data_tags == ["mnist"]


def test_json_as_other_tools_write_it() -> None:
    text = json.dumps(
        {"customerID": "demo", "ml_repo_url": "./x", "ml_model_flavor": "sklearn", "rerun": "\U0001f600\\ud83d"}, indent="\t"
    )
    assert load_sla(text.encode(), "sla.json").rerun == "\U0001f600\\ud83d"


def test_mock_data_of_flops() -> None:
    content = {
        "customerID": "Admin",
        "mock_data_configuration": {
            "dataset_name": "mnist", "number_of_partitions": 4, "one_mock_service_per_partition": False, "data_tag": "mnist",
        },
    }  # fmt: skip
    mock = load_mock_data(json.dumps(content).encode(), "mock_data.json")
    assert (mock.customer_id, mock.dataset_name, mock.number_of_partitions, mock.data_tag) == ("Admin", "mnist", 4, "mnist")


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("./projects/mnist/ml_repo", "https://me:hunter2@host/x"),
        GOOD.replace("./projects/mnist/ml_repo", "https://hunter2@host/x"),
        GOOD + "deployment: {environment: {A: 1, hunter2: [1]}}".replace("hunter2", "B").replace("1,", "7770001,") + "\n",
        GOOD + "training_configuration: {strategy: {arguments: {api_token: [hunter2]}}}\n",
    ],
)
def test_errors_do_not_repeat_secrets(text: str) -> None:
    told = "\n".join(str(item) + str(item.to_dict()) for item in errors(text))
    assert "hunter2" not in told
    assert "7770001" not in told


def test_a_password_in_the_operators_settings_is_refused_and_not_repeated() -> None:
    with pytest.raises(SpecErrors) as caught:
        load_operator_config(b"tracking_uri: https://me:hunter2@host\n", "flops.yaml")
    assert caught.value.errors[0].code == "FL1024"
    assert "hunter2" not in str(caught.value)


def test_thousands_of_mistakes_are_counted_and_not_listed() -> None:
    found = errors("".join(f"k{number}: 1\n" for number in range(20_000)))
    assert len(found) == MAX_ERRORS
    assert "more mistakes" in found[-1].cure
    assert len(errors(GOOD + "a: 1\n" * 20_000)) == MAX_ERRORS


def test_every_key_of_the_schemas_has_a_title_and_a_description() -> None:
    for name in ("sla", "mock_data", "flops", "build_plan"):
        made = schema(name)
        for part in (made, *made.get("$defs", {}).values()):
            for key, inner in part.get("properties", {}).items():
                assert inner.get("title"), (name, key)
                assert inner.get("description"), (name, key)
                assert inner["description"].endswith("."), (name, key)


def test_the_committed_schemas_are_those_of_the_models() -> None:
    folder = Path(__file__).parents[2] / "schemas"
    assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == schema_files()


def test_every_code_has_its_section_with_a_cure() -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors" / "fl1xxx.md").read_text()
    sections = {part.split()[0]: part for part in page.split("\n## ")[1:]}
    assert set(sections) == {code for code in CODES if code.startswith("FL1")}
    assert all("**Cure:**" in part for part in sections.values())


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
    only_errors(data)


def only_errors(data: bytes) -> None:
    for load in (load_sla, load_mock_data, load_operator_config):
        try:
            load(data, "fuzz.yaml")
        except SpecErrors as refused:
            found = refused.errors
            assert 0 < len(found) <= MAX_ERRORS
            assert all(item.code.startswith("FL1") and item.cause and item.cure for item in found)
            assert all(str(item).isprintable() for item in found)


KEYS = st.one_of(st.sampled_from(sorted(schema("sla")["properties"])), st.text(max_size=8))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["no", "010", "1:2", "./x"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)), max_leaves=12
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6), st.booleans())
def test_no_structure_ends_in_anything_but_an_sla_or_errors(more: dict[str, object], as_json: bool) -> None:
    value = {"customerID": "demo", "ml_repo_url": "./x", "ml_model_flavor": "sklearn"} | more
    text = json.dumps(value) if as_json else yaml.safe_dump(value, allow_unicode=True)
    only_errors(text.encode(errors="surrogatepass"))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from([path.read_bytes() for path in FLOPS]), st.data())
def test_what_the_loader_takes_the_schema_takes(text: bytes, data: st.DataObject) -> None:
    value = json.loads(text)
    key = data.draw(st.sampled_from(sorted(value)))
    value[key] = data.draw(VALUES)
    try:
        load_sla(json.dumps(value).encode(), "x")
    except SpecErrors:
        return
    assert list(Draft202012Validator(schema("sla")).iter_errors(value)) == []
