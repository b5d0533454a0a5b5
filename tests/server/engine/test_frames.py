"""What goes through the socket comes out as it went in, however the bytes are cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.config import EngineConfig
from octavo_server.engine.frames import FrameReader, Setup, encode_frame
from octavo_server.engine.messages import Abort, Add, Died, Progressed, Ready, Stepped, Stop
from octavo_server.engine.request import Request, SamplingParams

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    bytes: st.binary(max_size=8),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    NoneType: st.none(),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Anything that the type says; of a dataclass or a NamedTuple every field, so that a new one is covered as it comes."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return st.builds(kind, **{name: values_of(hint) for name, hint in get_type_hints(kind).items()})
    if origin is Literal:
        return st.sampled_from(parts)
    if origin in (Union, UnionType):
        return st.one_of([values_of(part) for part in parts])
    if origin in (dict, Mapping):
        return st.dictionaries(values_of(parts[0]), values_of(parts[1]), max_size=2)
    if origin is list:
        return st.lists(values_of(parts[0]), max_size=2)
    if origin is tuple and parts[1:] == (...,):
        return st.lists(values_of(parts[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*[values_of(part) for part in parts])
    assert issubclass(kind, Enum), f"a message holds {kind}, of which nobody knows whether it survives the way"
    return st.sampled_from(list(kind))


MESSAGES = st.one_of([values_of(kind) for kind in (Add, Abort, Stop, Progressed, Ready, Stepped, Died)])


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(MESSAGES, max_size=4), piece=st.integers(1, 40))
def test_every_message_survives_whatever_pieces_its_bytes_come_in(messages: list[object], piece: int) -> None:
    data = b"".join(encode_frame(message) for message in messages)
    reader = FrameReader()

    found = [message for at in range(0, len(data), piece) for message in reader.feed(data[at : at + piece])]

    assert messages == found


def test_any_mapping_comes_out_as_one() -> None:
    params = SamplingParams(logit_bias=MappingProxyType({5: 1.5}))
    request = Request(request_id="a", prompt_token_ids=(1,), params=params, arrival_s=0.0)

    (found,) = FrameReader().feed(encode_frame(Add(request=request)))

    assert found.request.params.logit_bias == {5: 1.5}


def test_the_setup_carries_every_setting() -> None:
    config = EngineConfig(model="m", max_model_len=7, gpu_memory_utilization=0.5, scheduling_policy="priority")
    (found,) = FrameReader().feed(encode_frame(Setup(build="a:b", config=config, log_level="info")))

    assert found == Setup(build="a:b", config=config, log_level="info")


@pytest.mark.parametrize("params", [{"stop": ("\ud800",)}, {"seed": 2**64}], ids=["lone surrogate", "beyond 64 bits"])
def test_what_no_message_can_hold_is_told_before_anything_is_sent(params: dict[str, object]) -> None:
    request = Request(
        request_id="a",
        prompt_token_ids=(1,),
        params=SamplingParams(**params),
        arrival_s=0.0,  # type: ignore[arg-type]
    )
    with pytest.raises((ValueError, OverflowError)):
        encode_frame(Add(request=request))
