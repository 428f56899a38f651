"""schemathesis: whatever the description allows, or forbids, is answered as the description says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

pytestmark = pytest.mark.slow
_HOST = {"host": "localhost"}


@pytest.mark.parametrize("mode", GenerationMode, ids=str)
def test_every_answer_is_as_described(service_and_app, mode):
    """Requests that the description allows (positive), and others (negative), for each address and method."""
    service, application = service_and_app
    assert service.queue._ready.wait(60), "before, some answers are 503"
    described = schemathesis.openapi.from_asgi("/v1/openapi.json", application, headers=_HOST)
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 10
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.path_parameters or operation.body):
            continue  # there is nothing to get wrong

        @settings(
            max_examples=10,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(headers=_HOST)

        check()
