"""Which rotary embedding a checkpoint asks for, and up to what length it then means anything.

Reads transformers 5's `rope_parameters` (with `rope_theta` inside) and the hub's `rope_scaling` (with `rope_theta`
beside it, and `type` in the oldest).
"""

from __future__ import annotations

import logging
import math

from octavo_server.layers.rope import RopeConfig
from octavo_server.models.config_fields import ConfigFields

logger = logging.getLogger(__name__)

MAX_CONTEXT = 100_000_000
"""Tokens, ten times the longest that a published checkpoint names: the table of angles is made for all of them."""

# What a kind reads; any other key is warned of.
_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    # The length that a dynamic embedding was trained on is max_position_embeddings itself.
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "finetuned",
    },
}
_COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def parse_rope(fields: ConfigFields) -> RopeConfig:
    """Raises StartupError: UnsupportedArchitecture for an embedding that we do not have, ModelInvalid for a bad value."""
    scaling = fields.section("rope_parameters") or fields.section("rope_scaling") or ConfigFields({}, fields.source)
    for section in (fields, scaling):
        rotary = section.number("partial_rotary_factor", default=1.0)
        if rotary != 1.0:
            section.unsupported(f"partial_rotary_factor {rotary:g} is not supported; supported is 1")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if not isinstance(kind, str) or kind not in _KEYS:
        scaling.unsupported(f"rope type {kind!r} is not supported; supported are {', '.join(_KEYS)}")
    unread = sorted(scaling.values.keys() - _KEYS[kind] - _COMMON_KEYS)
    if any(isinstance(scaling.values[key], dict) for key in unread):
        scaling.unsupported(f"rotary embeddings that differ by layer ({', '.join(unread)}) are not supported")
    if unread:
        logger.warning("the rotary embedding reads no such keys", extra={"source": scaling.source, "keys": unread})
    theta = scaling.above(1, "rope_theta", default=fields.number("rope_theta", default=10_000.0))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "yarn":
        return _yarn(fields, scaling, theta)
    factor = scaling.above(0, "factor")
    if kind == "linear":
        return RopeConfig(kind="linear", theta=theta, factor=factor)
    if kind == "dynamic":
        return RopeConfig(kind="dynamic", theta=theta, factor=factor)
    low = scaling.above(0, "low_freq_factor")
    return RopeConfig(
        kind="llama3",
        theta=theta,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=scaling.above(low, "high_freq_factor"),
        original_max_positions=_original_max_positions(fields, scaling),
    )


def context_length(fields: ConfigFields, rope: RopeConfig) -> int:
    """Tokens of the longest context that the embedding is made for.

    Qwen's instructions add yarn to config.json and leave `max_position_embeddings` at the length trained on.
    """
    limit = float(fields.positive("max_position_embeddings"))
    if rope.kind == "yarn":
        limit = max(limit, rope.original_max_positions * rope.factor)
    if limit > MAX_CONTEXT:
        fields.fail(f"what max_position_embeddings and the rotary embedding make, {limit:g} tokens, is no context")
    return int(limit)


def _yarn(fields: ConfigFields, scaling: ConfigFields, theta: float) -> RopeConfig:
    original = _original_max_positions(fields, scaling)
    implied = fields.positive("max_position_embeddings") / original
    factor = scaling.above(0, "factor", default=implied)
    mscale, mscale_all_dim = scaling.optional("mscale"), scaling.optional("mscale_all_dim")
    magnitude = _magnitude(factor, 1.0)
    if mscale and mscale_all_dim:
        magnitude = _magnitude(factor, mscale) / _magnitude(factor, mscale_all_dim)
    return RopeConfig(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_max_positions=original,
        attention_factor=scaling.above(0, "attention_factor", default=magnitude),
        beta_fast=scaling.above(0, "beta_fast", default=32),
        beta_slow=scaling.above(0, "beta_slow", default=1),
        truncate=scaling.flag("truncate", default=True),
    )


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _original_max_positions(fields: ConfigFields, scaling: ConfigFields) -> int:
    """Tokens of the context trained on. A key beside the section stands before one inside, as in transformers."""
    inside = scaling.positive("original_max_position_embeddings", default=fields.positive("max_position_embeddings"))
    return fields.positive("original_max_position_embeddings", default=inside)
