"""Names of GPUs as people, drivers and the table write them."""

from __future__ import annotations

import pytest

from octavo_server.errors import ConfigError
from octavo_server.plan.gpus import GIB, GPUS, device_called, find_gpu


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("H200", "H200"),
        ("h200", "H200"),
        ("nvidia-h100-sxm", "H100"),
        ("A100-80GB", "A100"),
        ("a100 40gb", "A100-40GB"),
        ("RTX 4090", "RTX-4090"),
        ("mi300x", "MI300X"),
        # as nodes are labelled
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA-A100-SXM4-80GB", "A100"),
        ("Tesla-T4", "T4"),
        ("Tesla-V100-SXM2-32GB", "V100-32GB"),
        ("NVIDIA-L40S", "L40S"),
        ("NVIDIA-GeForce-RTX-4090", "RTX-4090"),
    ],
)
def test_a_gpu_is_found_as_people_write_it(text: str, name: str) -> None:
    assert find_gpu(text) is GPUS[name]


def test_an_unknown_gpu_names_the_nearest_and_all_that_are_known() -> None:
    with pytest.raises(ConfigError) as caught:
        find_gpu("L40X")

    message = str(caught.value)
    assert "did you mean L40S?" in message or "did you mean L40?" in message
    assert all(name in message for name in GPUS)
    assert "48GiB" in message


def test_what_is_near_to_nothing_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        find_gpu("zzz")

    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(("text", "num_bytes"), [("48GiB", 48 * GIB), ("48 gb", 48 * 10**9), ("0.5GiB", GIB // 2)])
def test_any_gpu_can_be_told_by_its_memory(text: str, num_bytes: int) -> None:
    found = find_gpu(text)

    assert (found.memory_bytes, found.bytes_per_s) == (num_bytes, None)


@pytest.mark.parametrize("label", ["NVIDIA-H100-10GB", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "NVIDIA-Unheard-Of"])
def test_a_label_that_the_table_does_not_have_is_refused(label: str) -> None:
    """A part of a GPU (MIG) is none of them."""
    with pytest.raises(ConfigError):
        find_gpu(label)


def test_a_gpu_without_memory_is_none() -> None:
    with pytest.raises(ConfigError):
        find_gpu("0GiB")


@pytest.mark.parametrize(
    ("driver", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "H100"),
        ("NVIDIA H100 PCIe", 79.2, "H100-PCIe"),
        ("NVIDIA A100-SXM4-40GB", 39.5, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA A10G", 22.1, "A10G"),
        ("NVIDIA L4", 22.1, "L4"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("Tesla T4", 14.6, "T4"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX-4090"),
        ("AMD Instinct MI300X", 191.7, "MI300X"),
    ],
)
def test_a_drivers_name_has_the_tables_bandwidth_and_its_own_memory(driver: str, gib: float, name: str) -> None:
    found = device_called(driver, int(gib * GIB))

    assert (found.name, found.memory_bytes, found.bytes_per_s) == (driver, int(gib * GIB), GPUS[name].bytes_per_s)


def test_a_gpu_that_the_table_does_not_have_is_without_bandwidth() -> None:
    assert device_called("NVIDIA H100 MIG 1g.10gb", 10 * GIB).bytes_per_s is None


def test_the_table_holds_what_is_plausible() -> None:
    assert all(14 * GIB < gpu.memory_bytes < 300 * GIB for gpu in GPUS.values())
    assert all(gpu.bytes_per_s and 3e11 <= gpu.bytes_per_s <= 8e12 for gpu in GPUS.values())
