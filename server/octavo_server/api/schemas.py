"""Request bodies of the generation endpoints, parsed into frozen values.

Three kinds of field: served (read here), known but not served yet (a 400 that names it, unless its value changes
nothing), and unknown (ignored, and named in `X-Octavo-Ignored`). Nothing is silently ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo_server.api.fields import Fields, checked_text, shown, wholes
from octavo_server.api.structured_fields import format_field, read_structured_outputs
from octavo_server.engine.admission import (
    ABOVE_ZERO,
    INT64,
    INTEGER_RANGES,
    LOGIT_BIAS_LIMIT,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    RANGES,
)
from octavo_server.engine.request import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.models.config import GenerationDefaults

MAX_PROMPTS = 1024

# Accepted without a warning: they are about OpenAI's own service and change no output here.
WITHOUT_MEANING = (
    "store",
    "metadata",
    "service_tier",
    "user",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "verbosity",
)

# Known, not served yet; beside each the values that change nothing and are therefore accepted.
NOT_SERVED_YET: Mapping[str, tuple[Any, ...]] = {
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json_object": (False,),
    "guided_whitespace_pattern": (),
    "guided_decoding_backend": (),
    "structural_tag": (),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "prediction": (),
    "prompt_embeds": (),
    "mm_processor_kwargs": (),
    "logits_processors": ([],),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    "return_tokens_as_token_ids": (False,),
    "thinking_token_budget": (),
    "max_repetition_pattern_size": (0,),
    "min_repetition_pattern_size": (0,),
    "repetition_min_count": (0,),
    "repetition_detection": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What chat and completions have in common."""

    model: str
    params: SamplingParams
    stream: bool
    include_usage: bool
    """Send the usage in a last chunk."""
    continuous_usage: bool
    """Send the usage so far in every chunk."""
    priority: int
    cache_salt: str
    return_token_ids: bool
    truncate_prompt_tokens: int | None
    """Of the prompt's last tokens to keep; -1: as many as leave room for the output; None: all."""
    format_field: str
    """The field that says what the output must look like, for refusals of what it holds."""
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """Body of `/v1/completions`."""

    options: GenerationOptions
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    add_special_tokens: bool


def parse_completion(body: Mapping[str, Any], defaults: GenerationDefaults) -> CompletionRequest:
    """Checks and types a completions body.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    refuse_not_served(fields, NOT_SERVED_YET)
    prompts = read_prompts(fields, "prompt", MAX_PROMPTS)
    echo = fields.boolean("echo")
    add_special_tokens = fields.boolean("add_special_tokens", default=True)
    logprobs = _integer(fields, "logprobs")
    max_tokens = _integer(fields, "max_tokens")
    if echo and logprobs is not None and body.get("stream"):
        raise fields.refuse("echo", "echo with logprobs cannot be streamed; leave out one of echo, logprobs and stream")
    if max_tokens == 0 and not echo:
        raise fields.refuse(
            "max_tokens", "max_tokens is 0, which needs echo: true; set echo, or max_tokens to 1 or more"
        )
    return CompletionRequest(
        prompts=prompts,
        echo=echo,
        add_special_tokens=add_special_tokens,
        options=parse_options(fields, defaults, logprobs=logprobs, max_tokens=16 if max_tokens is None else max_tokens),
    )


def parse_options(
    fields: Fields, defaults: GenerationDefaults, *, logprobs: int | None, max_tokens: int | None
) -> GenerationOptions:
    """What chat and completions have in common; last of all, since it tells which fields nobody has read.

    Raises:
        InvalidRequestError: naming the field.
    """
    model = fields.text("model", max_chars=1024)
    if not model:
        raise fields.refuse("model", "model is missing; GET /v1/models lists the names")
    params = _sampling_params(fields, defaults, logprobs=logprobs, max_tokens=max_tokens)
    stream = fields.boolean("stream")
    include_usage, continuous_usage = _stream_options(fields, stream)
    priority = fields.integer("priority", -(2**31), 2**31 - 1) or 0
    cache_salt = fields.text("cache_salt", max_chars=1024) or ""
    return_token_ids = fields.boolean("return_token_ids")
    truncate_prompt_tokens = fields.integer("truncate_prompt_tokens", -1, INT64)
    if truncate_prompt_tokens == 0:
        raise fields.fail("truncate_prompt_tokens", "-1, or a whole number from 1")
    fields.skip(WITHOUT_MEANING)
    return GenerationOptions(
        model=model,
        params=params,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=include_usage and continuous_usage,
        priority=priority,
        cache_salt=cache_salt,
        return_token_ids=return_token_ids,
        truncate_prompt_tokens=truncate_prompt_tokens,
        format_field=format_field(fields),
        ignored=fields.unread(),
    )


def _sampling_params(
    fields: Fields, defaults: GenerationDefaults, *, logprobs: int | None, max_tokens: int | None
) -> SamplingParams:
    top_k = _integer(fields, "top_k")
    return SamplingParams(
        n=_integer(fields, "n") or 1,
        temperature=_number(fields, "temperature", defaults.temperature, 1.0),
        top_p=_number(fields, "top_p", defaults.top_p, 1.0),
        top_k=max(defaults.top_k or 0 if top_k is None else top_k, 0),
        min_p=_number(fields, "min_p", defaults.min_p, 0.0),
        presence_penalty=_number(fields, "presence_penalty", None, 0.0),
        frequency_penalty=_number(fields, "frequency_penalty", None, 0.0),
        repetition_penalty=_number(fields, "repetition_penalty", defaults.repetition_penalty, 1.0),
        seed=_integer(fields, "seed"),
        stop=_stop(fields),
        stop_token_ids=_token_ids(fields, "stop_token_ids"),
        include_stop_str_in_output=fields.boolean("include_stop_str_in_output"),
        ignore_eos=fields.boolean("ignore_eos"),
        max_tokens=max_tokens,
        min_tokens=_integer(fields, "min_tokens") or 0,
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(fields),
        skip_special_tokens=fields.boolean("skip_special_tokens", default=True),
        logit_bias=_logit_bias(fields),
        allowed_token_ids=_allowed_token_ids(fields),
        bad_words=_bad_words(fields),
        structured_outputs=read_structured_outputs(fields),
    )


def _number(fields: Fields, name: str, recommended: float | None, neutral: float) -> float:
    """The client's value, else the model's recommendation, else OpenAI's default."""
    value = fields.number(name, *RANGES[name])
    if value == 0 and name in ABOVE_ZERO:
        raise fields.fail(name, f"a number above 0 and at most {RANGES[name][1]:g}")
    if value is not None:
        return value
    return neutral if recommended is None else recommended


def _integer(fields: Fields, name: str) -> int | None:
    return fields.integer(name, *INTEGER_RANGES[name])


def _prompt_logprobs(fields: Fields) -> int | None:
    count = _integer(fields, "prompt_logprobs")
    if count is not None and fields.get("stream"):
        raise fields.refuse("prompt_logprobs", "prompt_logprobs cannot be streamed; leave out stream")
    return count


def refuse_not_served(fields: Fields, names: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses known fields that are not served, but for the values beside them, which change nothing.

    Raises:
        InvalidRequestError: names the field.
    """
    for name, neutral in names.items():
        value = fields.get(name)
        if value is not None and not any(_is_same(value, item) for item in neutral):
            instead = "use structured_outputs" if name.startswith("guided_") else "leave it out"
            raise fields.refuse(name, f"{name} is not supported yet (got {shown(value)}); {instead}")


def _is_same(value: object, item: object) -> bool:
    """Equal in JSON, where true is not 1."""
    return value == item and isinstance(value, bool) == isinstance(item, bool)


def _stream_options(fields: Fields, stream: bool) -> tuple[bool, bool]:
    """`include_usage` and vLLM's `continuous_usage_stats`."""
    options = fields.obj("stream_options")
    if options is None:
        return False, False
    if not stream:
        raise fields.refuse("stream_options", "stream_options needs stream: true; set it or leave stream_options out")
    asked = options.boolean("include_usage"), options.boolean("continuous_usage_stats")
    options.skip(("include_obfuscation",))
    for name in options.unread():
        raise fields.refuse(name, f"{name} is not supported yet; leave it out")
    return asked


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    items = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(items, list) or len(items) > MAX_STOP_STRINGS:
        raise fields.fail("stop", f"a string or an array of at most {MAX_STOP_STRINGS} strings")
    for item in items:
        if not isinstance(item, str) or not 1 <= len(item) <= MAX_STOP_CHARS:
            raise fields.refuse("stop", f"stop strings must have 1 to {MAX_STOP_CHARS} characters, got {shown(item)}")
        checked_text(item, "stop")
    return tuple(items)


def _bad_words(fields: Fields) -> tuple[str, ...]:
    items = fields.array("bad_words", max_items=MAX_BAD_WORDS) or []
    for item in items:
        if not isinstance(item, str) or not 1 <= len(item) <= MAX_STOP_CHARS:
            raise fields.refuse("bad_words", f"bad_words must have 1 to {MAX_STOP_CHARS} characters, got {shown(item)}")
        checked_text(item, "bad_words")
    return tuple(items)


def _allowed_token_ids(fields: Fields) -> tuple[int, ...] | None:
    if fields.get("allowed_token_ids") is None:
        return None
    return _token_ids(fields, "allowed_token_ids", max_items=MAX_ALLOWED_TOKEN_IDS)


def _token_ids(fields: Fields, name: str, *, max_items: int = 1024) -> tuple[int, ...]:
    ids = wholes(fields.array(name, max_items=max_items) or [])
    if ids is None or not all(0 <= item < 2**31 for item in ids):
        raise fields.fail(name, "an array of token ids")
    return ids


def _logit_bias(fields: Fields) -> dict[int, float]:
    given = fields.get("logit_bias")
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > 1024:
        raise fields.fail("logit_bias", "an object of at most 1024 token ids and numbers")
    bias: dict[int, float] = {}
    for key, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            not (key.isascii() and key.isdigit() and len(key) < 10)
            or not is_number
            or not abs(value) <= LOGIT_BIAS_LIMIT
        ):
            raise fields.refuse(
                "logit_bias", f"logit_bias maps token ids to numbers from -100 to 100, got {shown(key)}: {shown(value)}"
            )
        bias[int(key)] = float(value)
    return bias


def read_prompts(fields: Fields, name: str, most: int) -> tuple[str | tuple[int, ...], ...]:
    """One prompt or up to `most`, as texts or as token ids.

    Raises:
        InvalidRequestError: `name` holds something else.
    """
    value = fields.get(name)
    if isinstance(value, str):
        return (checked_text(value, name),)
    if isinstance(value, list) and value:
        ids = wholes(value)
        if ids is not None:
            return (ids,)
        if len(value) > most:
            raise fields.refuse(name, f"{name} holds {len(value)} prompts, at most {most} may be sent at once")
        if all(isinstance(item, str) for item in value):
            return tuple(checked_text(item, name) for item in value)
        lists = [wholes(item) if isinstance(item, list) else None for item in value]
        if all(lists):
            return tuple(ids for ids in lists if ids is not None)
    raise fields.fail(name, "a string, an array of strings, an array of token ids, or an array of such arrays")
