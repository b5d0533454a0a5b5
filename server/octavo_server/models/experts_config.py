"""Which layers are mixtures of experts, and of what size, of the several ways in which checkpoints say it."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_server.models.config_fields import ConfigFields
from octavo_server.models.registry import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """The mixtures of a decoder, which are all alike."""

    num_experts: int
    num_chosen: int
    """Experts that a token visits."""
    inner_size: int
    """Width of one expert."""
    renormalizes: bool
    """Whether the shares of the chosen experts are divided by their sum."""
    layers: frozenset[int]
    """The layers that have experts in place of one MLP; never empty."""


def parse_experts(fields: ConfigFields, family: Family, num_layers: int) -> ExpertsConfig | None:
    """None where no layer has experts.

    Raises:
        StartupError: ModelInvalid.
    """
    keys = family.experts
    if keys is None:
        return None
    # transformers 5 writes Qwen's count under the name that Mixtral's has
    count_key = "num_local_experts" if fields.get("num_local_experts") is not None else keys.count
    num_experts = fields.natural(count_key)
    layers = _sparse_layers(fields, num_layers) if num_experts else frozenset()
    if not layers:
        return None
    num_chosen = fields.positive("num_experts_per_tok")
    if num_chosen > num_experts:
        fields.fail(f"num_experts_per_tok is {num_chosen}, more than the {num_experts} experts of {count_key}")
    return ExpertsConfig(
        num_experts=num_experts,
        num_chosen=num_chosen,
        inner_size=fields.positive(keys.width),
        renormalizes=keys.always_renormalizes or fields.flag("norm_topk_prob"),
        layers=layers,
    )


def _sparse_layers(fields: ConfigFields, num_layers: int) -> frozenset[int]:
    step, dense = fields.positive("decoder_sparse_step", default=1), fields.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(index) is int and 0 <= index < num_layers for index in dense):
        fields.fail(f"mlp_only_layers is {dense!r}, not a list of layers from 0 to {num_layers - 1}")
    return frozenset(index for index in range(num_layers) if index not in dense and (index + 1) % step == 0)
