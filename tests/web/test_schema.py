"""The API held to its own description: schemathesis sends generated requests, good and bad, to the real server over a socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from reconciler.web.openapi import document
from reconciler.web.server import WebServer
from tests.conftest import Repos
from tests.web.test_api import OPERATOR, ApiSite

EXAMPLES = 300 if os.environ.get("FLOPS_SOAK") == "1" else 8
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, negative_data_rejection, unsupported_method,
]  # fmt: skip
# An address that is too long is refused as well (RFC 9110, 15.5.15); schemathesis does not count that by itself.
REFUSALS = ["400", "401", "403", "404", "405", "406", "409", "414", "415", "422", "428", "429", "5xx"]
CONFIG = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}})
schema = schemathesis.openapi.from_dict(document(), config=CONFIG)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    site = ApiSite(Repos(tmp_path_factory.mktemp("site")))
    with WebServer(site.client.app, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.port}"


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES < 100,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_answers_as_it_says(case: schemathesis.Case, address: str) -> None:
    good = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if good and case.path_parameters and len(case.path_parameters["name"]) % 2:
        case.path_parameters["name"] = "a"  # half of them are about a project that there is
    answer = case.call(base_url=address, headers={"authorization": f"Bearer {OPERATOR}"})
    sent = parse_qs(urlsplit(str(answer.request.url)).query, keep_blank_values=True)
    # A parameter without a value – an empty list – is not in the address: nobody can refuse it.
    vanished = not set(case.query or {}) <= set(sent)
    case.validate_response(answer, checks=[each for each in CHECKS if not (vanished and each is negative_data_rejection)])


def test_it_is_still_there_after_all_that(address: str) -> None:
    assert httpx.get(f"{address}/healthz", timeout=30).text == "ok\n"
