"""The OpenAPI page is kept: whatever fits it is answered as it says, whatever does not is refused, and nothing breaks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from running_service import Running, running
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi

from pipelines.config import Home

# The page says in words, for a schema cannot, that times lie between the years 2 and 9998; test_sent_again tries those that do not.
MOMENTS = st.datetimes(datetime(2, 1, 2), datetime(9998, 12, 30), timezones=st.just(UTC))
schemathesis.openapi.format("date-time", MOMENTS.map(datetime.isoformat))


@pytest.fixture(scope="module")
def service(open_house: tuple[Home, Any]) -> Iterator[Running]:
    home, made = open_house
    with running(made, home) as found:
        yield found


# Keys are off here (test_api_gate tries them), and nothing that is made through one route is read through another.
CHECKED = [
    not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.positive_data_acceptance,
    openapi.negative_data_rejection,
]

# One value where several may stand, or none where there may be none, is right once it is in a URL; test_api tries what is wrong there.
OF_URLS = [check for check in CHECKED if check is not openapi.negative_data_rejection]


def fuzz(service: Running, examples: int, seed: int) -> dict[str, int]:
    """Send requests of every operation, and check every answer; return how many were sent by operation."""
    schema = schemathesis.openapi.from_url(f"{service.address}/openapi.json")
    sent: dict[str, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in GenerationMode:
            if mode is GenerationMode.NEGATIVE and not (operation.definition.raw.get("parameters") or operation.body):
                continue  # nothing of it could be wrong
            strategy = operation.as_strategy(generation_mode=mode)

            @hypothesis.given(case=strategy)
            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=examples,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            def asked(case: Any) -> None:
                try:
                    answer = case.call(timeout=10)
                except requests.ConnectionError:  # kept open, and closed as idle at that very moment: clients ask again
                    answer = case.call(timeout=10)
                assert answer.status_code < 500
                if answer.status_code not in {413, 431}:  # the page cannot say how long a body or a URL may be in all
                    case.validate_response(answer, checks=CHECKED if case.operation.body else OF_URLS)
                sent[case.operation.label] = sent.get(case.operation.label, 0) + 1

            asked()
    return sent


def test_the_api_is_as_its_page_says(service: Running) -> None:
    sent = fuzz(service, 3, 1)
    assert len(sent) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_api_is_as_its_page_says_for_thousands_of_requests(service: Running, seed: int) -> None:
    sent = fuzz(service, 200, seed)
    assert sum(sent.values()) > 3000
