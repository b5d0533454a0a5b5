"""The published images of a cluster: which there are, from which recipe, and what is said where one is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster import published
from e2e.cluster.errors import UnavailableError
from e2e.cluster.image import IMAGE_NAMES
from e2e.cluster.lab import Lab
from e2e.cluster.paths import CHECKOUT


def test_every_image_has_a_recipe_with_its_stage_and_server_cpu_is_the_servers() -> None:
    assert {*published.RECIPES, "server-cpu"} == set(IMAGE_NAMES)
    for recipe, stage in published.RECIPES.values():
        text = (CHECKOUT / "images" / f"{recipe}.Containerfile").read_text()
        assert not stage or f" AS {stage}\n" in text


def test_an_absent_archive_is_named_with_what_makes_it(tmp_path: Path) -> None:
    (tmp_path / "operator.tar").touch()

    with pytest.raises(UnavailableError, match=r"lacks gateway.tar, server.tar; .*e2e.cluster images"):
        published.archives(tmp_path)

    (tmp_path / "gateway.tar").touch()
    (tmp_path / "server.tar").touch()
    assert [path.name for path in published.archives(tmp_path)] == ["operator.tar", "gateway.tar", "server.tar"]


@pytest.mark.parametrize("is_given", [True, False])
def test_a_cluster_runs_the_images_that_the_variable_names(
    is_given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(published.VARIABLE, str(tmp_path) if is_given else "")

    assert Lab("e2e", print).images == (tmp_path if is_given else None)
