"""docs/scaling.md: what it shows to copy is a resource, and means what it says."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo_operator.autoscaling.schedule import apply_schedules
from octavo_testing.control_plane import a_resource

DOC = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text()
SPECS: list[dict[str, Any]] = [
    yaml.safe_load(block)["spec"] for block in re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
]


@pytest.mark.parametrize("spec", SPECS)
def test_every_manifest_is_one(spec: dict[str, Any]) -> None:
    assert a_resource(**spec).spec.scaling is not None


@pytest.mark.parametrize(
    ("at", "schedule", "bounds"),
    [
        ("2026-03-02T07:30:00Z", "day", (3, 10)),
        ("2026-03-02T19:30:00Z", "night", (0, 4)),
        ("2026-03-08T12:00:00Z", "night", (0, 4)),
    ],
)
def test_its_schedules_take_turns_in_berlin_and_leave_the_weekend_to_the_night(
    at: str, schedule: str, bounds: tuple[int, int]
) -> None:
    [spec] = [each for each in SPECS if "schedules" in each["scaling"]]

    found = apply_schedules(a_resource(**spec), now=datetime.fromisoformat(at))

    scaling = found.resource.spec.scaling
    assert scaling is not None
    assert (found.schedule, (scaling.min_replicas, scaling.max_replicas)) == (schedule, bounds)
