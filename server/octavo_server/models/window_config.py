"""How far back each layer sees, of the several ways in which checkpoints say it."""

from __future__ import annotations

from octavo_server.models.config_fields import ConfigFields
from octavo_server.models.registry import Family

_FULL, _SLIDING = "full_attention", "sliding_attention"


def parse_windows(fields: ConfigFields, family: Family, num_layers: int, max_positions: int) -> tuple[int | None, ...]:
    """A layer each: the tokens that one sees, its own among them; None: all that a context can hold.

    Raises:
        StartupError: ModelInvalid, or UnsupportedArchitecture for a pattern that the family does not have.
    """
    window = _window_in_force(fields, family)
    slides = _sliding_layers(fields, family, num_layers, has_window=window is not None)
    # A window that no context outgrows is none.
    reach = window if window is not None and window < max_positions else None
    return tuple(reach if does_slide else None for does_slide in slides)


def _window_in_force(fields: ConfigFields, family: Family) -> int | None:
    is_on = family.sliding_window == "always" or (
        family.sliding_window in ("switched", "by_layer") and fields.flag("use_sliding_window")
    )
    return fields.positive("sliding_window") if is_on and fields.get("sliding_window") is not None else None


def _sliding_layers(fields: ConfigFields, family: Family, num_layers: int, *, has_window: bool) -> list[bool]:
    if family.sliding_window == "by_layer" and has_window:
        first = fields.natural("max_window_layers")
        by_default = [index >= first for index in range(num_layers)]
    else:
        by_default = [has_window] * num_layers
    kinds = fields.names("layer_types")
    if kinds is None:
        return by_default
    unknown = sorted(set(kinds) - {_FULL, _SLIDING})
    if unknown:
        fields.unsupported(f"layer_types names {', '.join(unknown)}; supported are {_FULL} and {_SLIDING}")
    if len(kinds) != num_layers:
        fields.fail(f"layer_types has {len(kinds)} entries, num_hidden_layers is {num_layers}")
    slides = [kind == _SLIDING for kind in kinds]
    if any(slides) and not has_window:
        fields.fail(f"layer_types names {_SLIDING}, but no sliding window is in force")
    if family.sliding_window != "by_layer" and slides != by_default:
        fields.unsupported("layer_types differs between layers, which this architecture does not do")
    return slides
