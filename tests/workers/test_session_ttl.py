"""``ttl_enforced`` says what is done (contract 8.4 I14 to I16), for each role."""

from __future__ import annotations

import pytest

from tests.workers.support import bearer, serving


@pytest.mark.parametrize("role", ["operator", "worker", "observer", "senior"])
@pytest.mark.parametrize(("passed", "over"), [(59, False), (60, True)])
async def test_a_session_ends_by_time_if_and_only_if_it_was_said_so(tmp_path, role, passed, over) -> None:
    """One second before its end, and at it."""
    async with serving(tmp_path) as bench:
        body = {"agent_id": "a", "role": role, "ttl_secs": 60}
        known = (await bench.client.post("/v1/sessions", json=body)).json()
        assert known["ttl_enforced"] is (role != "operator")
        bench.clock.now += passed
        answer = await bench.client.request("DELETE", "/v1/sessions", headers=bearer(known["session_id"]))
        assert answer.status_code == (404 if over and known["ttl_enforced"] else 204)
