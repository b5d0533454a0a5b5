"""What scripts give `LLM`, in the forms that vLLM's take: prompts, settings, sampling parameters, messages.

A setting that has no meaning here is taken where it changes nothing, and refused by name where it would.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict

from octavo_server.config import EngineConfig
from octavo_server.errors import ConfigError, InvalidRequestError
from octavo_server.flags import settings_of

if TYPE_CHECKING:
    from octavo_server.engine.request import SamplingParams
    from octavo_server.tokenizer.tokenizer import Tokenizer


class TextPrompt(TypedDict, total=False):
    """A prompt as text, and what isolates its prefix cache."""

    prompt: str
    cache_salt: str


class TokensPrompt(TypedDict, total=False):
    """A prompt as token ids; `prompt` is then its text, for the output alone."""

    prompt_token_ids: list[int]
    prompt: str
    cache_salt: str


class Rendering(TypedDict, total=False):
    """How conversations become prompts."""

    chat_template: str | None
    """Jinja's source, instead of the model's own."""
    add_generation_prompt: bool
    """Let the answer begin; True unless said otherwise."""
    continue_final_message: bool
    """Continue the last message instead of answering it."""
    tools: Sequence[Mapping[str, Any]] | None
    """What the template tells the model that it may call, as OpenAI's API has it."""
    chat_template_kwargs: Mapping[str, Any] | None
    """Further variables of the template."""


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt that can be computed."""

    text: str | None
    """None where token ids alone were given."""
    token_ids: list[int]
    cache_salt: str = ""


_ANY: tuple[object, ...] = ()
WITHOUT_MEANING: Mapping[str, tuple[object, ...]] = {
    # A model's own code is never run, so there is nothing to trust.
    "trust_remote_code": _ANY,
    "disable_log_stats": _ANY,
    "disable_custom_all_reduce": _ANY,
    "distributed_executor_backend": _ANY,
    "max_seq_len_to_capture": _ANY,
    "served_model_name": _ANY,
    # Preemption computes anew and never swaps.
    "swap_space": _ANY,
    "cpu_offload_gb": (0,),
    "enable_chunked_prefill": (True,),
    "enable_lora": (False,),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "runner": ("auto", "generate"),
    "task": ("auto", "generate"),
    "skip_tokenizer_init": (False,),
    "tokenizer_mode": ("auto", "hf"),
}
"""Settings of vLLM's `LLM` that change nothing here: any value, or those listed."""
_DTYPES = {"half": "float16", "float": "float32"}


def read_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as keyword arguments of EngineConfig; texts such as "32K" are read as a flag's, None is the default.

    Raises:
        ConfigError: an unknown setting, or a value that cannot be served.
    """
    known = {item.name: item for item in settings_of(EngineConfig)}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if value is None:
            continue
        if name in WITHOUT_MEANING:
            neutral = WITHOUT_MEANING[name]
            if neutral and value not in neutral:
                raise ConfigError(f"{name}={value!r} is not supported yet; leave it out")
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ConfigError(f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else ""))
        if name == "dtype":
            # torch.float16 is taken as its name
            value = str(value).removeprefix("torch.")
            value = _DTYPES.get(value, value)
        values[name] = known[name].read(value, name)
    return values


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if len(prompts) and all(isinstance(item, Integral) for item in prompts):
        return [prompts]  # type: ignore[list-item]  # a list of ids, which the check above has established
    return list(prompts)  # type: ignore[arg-type]  # a sequence of prompts, by the same check


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> EncodedPrompt:
    """Token ids of a text, a list of ids, a `TextPrompt` or a `TokensPrompt`.

    Raises:
        InvalidRequestError: a dictionary with something else in it.
    """
    if isinstance(prompt, str):
        return EncodedPrompt(text=prompt, token_ids=tokenizer.encode(prompt))
    if not isinstance(prompt, Mapping):
        return EncodedPrompt(text=None, token_ids=_ids(prompt))
    given: dict[str, Any] = {name: value for name, value in prompt.items() if value is not None}
    text, ids, salt = given.pop("prompt", None), given.pop("prompt_token_ids", None), given.pop("cache_salt", "")
    if given:
        raise InvalidRequestError(f"a prompt with {', '.join(sorted(given))} is not supported yet; leave it out")
    if ids is None and not isinstance(text, str):
        raise InvalidRequestError("a prompt dictionary needs prompt, a text, or prompt_token_ids, a list")
    return EncodedPrompt(
        text=text, token_ids=tokenizer.encode(text) if ids is None else _ids(ids), cache_salt=str(salt)
    )


def _ids(given: Any) -> list[int]:
    """Token ids as plain numbers, also those of an array or a tensor.

    Raises:
        InvalidRequestError: they are something else.
    """
    try:
        return [operator.index(item) for item in given]
    except TypeError as error:
        raise InvalidRequestError("a prompt is a text, a list of token ids or a dictionary of those") from error


def as_conversations(messages: Messages | Sequence[Messages]) -> list[list[Mapping[str, Any]]]:
    """One conversation or several, as a list; a content of text parts becomes their text.

    Raises:
        InvalidRequestError: a part that is no text.
    """
    given: Sequence[Any] = [messages] if len(messages) and isinstance(messages[0], Mapping) else messages
    return [[_with_text(message) for message in conversation] for conversation in given]


def _with_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text" or "text" not in part:
            raise InvalidRequestError("content parts other than text are not supported yet; leave them out")
    return {**message, "content": "\n".join(str(part["text"]) for part in content)}


def normalized(params: SamplingParams) -> SamplingParams:
    """With tuples where scripts give a string or a list, and 0 for a top_k that is off."""
    stop: Any = params.stop
    return replace(
        params,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(params.stop_token_ids or ()),
        bad_words=tuple(params.bad_words or ()),
        allowed_token_ids=None if params.allowed_token_ids is None else tuple(params.allowed_token_ids),
        logit_bias={int(token_id): value for token_id, value in (params.logit_bias or {}).items()},
        top_k=max(params.top_k, 0),
    )
