"""schemathesis: whatever the description allows, or forbids, is answered as the description says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def described(service_and_app):
    return schemathesis.openapi.from_asgi("/v1/openapi.json", service_and_app[1], headers={"host": "localhost"})


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case):
    case.call_and_validate(headers={"host": "localhost"})
