"""`GET /api/vmm/devices`."""

import json
from typing import Any

import pytest

from vmm_server.api.vmm.examples import MACHINE
from vmm_server.models.machine import describe


@pytest.mark.parametrize("query", ["", "?refresh=true", "?refresh=1", "?refresh", "?refresh=FALSE"])
def test_the_machine_is_told(live_server: Any, query: str) -> None:
    response = live_server.client.get(f"/api/vmm/devices{query}")
    assert response.status_code == 200
    assert response.json() == json.loads(json.dumps(describe(MACHINE)))


def test_a_flag_that_is_neither_is_a_400_that_names_it(live_server: Any) -> None:
    response = live_server.client.get("/api/vmm/devices?refresh=maybe")
    assert (response.status_code, response.json()["error"]) == (400, "refresh: 'maybe' is neither true nor false")


def test_nothing_can_be_posted(live_server: Any) -> None:
    assert live_server.client.post("/api/vmm/devices", json={}).status_code == 405
