"""The PodDisruptionBudget as a real API server takes it."""

from __future__ import annotations

import pytest

from octavo_operator.desired.pdb import render_pdb
from octavo_testing.apiserver import ApiServer
from octavo_testing.control_plane import a_resource


@pytest.mark.parametrize("asked", [None, 0, 2, "25%"])
def test_budget_lets_go_of_as_many_as_are_asked_for_else_of_one(apiserver: ApiServer, asked: int | str | None) -> None:
    disruption = {} if asked is None else {"maxUnavailable": asked}
    budget = render_pdb(a_resource(replicas=4, disruption=disruption))
    assert budget is not None
    path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets?fieldValidation=Strict&dryRun=All"

    made = apiserver.request("POST", path, dict(budget))

    assert made.status == 201
    assert made.body["spec"]["maxUnavailable"] == (1 if asked is None else asked)
