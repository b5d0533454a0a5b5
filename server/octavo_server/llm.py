"""The offline API: `LLM(model).generate(prompts, SamplingParams(…))`, with vLLM's names, without a server.

The same engine as the server's, stepped by the caller's thread. Settings are the flags' names with underscores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from octavo_server.config import EngineConfig
from octavo_server.engine.admission import check_request
from octavo_server.engine.build import build_engine
from octavo_server.engine.request import POOLING, Request, SamplingParams
from octavo_server.engine.startup import StartupProgress
from octavo_server.engine.text_params import resolve_text_params
from octavo_server.engine.vectors import PoolingParams, check_dimensions, check_pairs, last_tokens
from octavo_server.errors import ConfigError, OctavoError
from octavo_server.llm_inputs import (
    EncodedPrompt,
    Messages,
    Prompt,
    Rendering,
    as_conversations,
    as_prompts,
    encode_prompt,
    normalized,
    read_settings,
)
from octavo_server.llm_outputs import RequestOutput, empty_output, take_delta
from octavo_server.llm_vectors import (
    EmbeddingRequestOutput,
    ScoringRequestOutput,
    embedding_output,
    scoring_outputs,
)
from octavo_server.plan.table import table
from octavo_server.tokenizer.script_tokenizer import ScriptTokenizer

if TYPE_CHECKING:
    from octavo_server.engine.engine import OutputDelta

UseTqdm = bool | Callable[..., Any]


class LLM:
    """A model in this process. Not safe for several threads at once."""

    def __init__(self, model: str, **settings: Any) -> None:
        """Loads `model`; settings are those of `octavo serve`, such as `max_model_len=4096`.

        Those of vLLM that change nothing here, such as `trust_remote_code`, are taken too (llm_inputs.WITHOUT_MEANING).

        Raises:
            ConfigError: an unknown setting, or one out of range.
            StartupError: the model cannot be loaded.
        """
        self._load(EngineConfig(model=model, **read_settings(settings)))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """As the constructor, from a configuration that was already read."""
        llm = cls.__new__(cls)
        llm._load(config)
        return llm

    def _load(self, config: EngineConfig) -> None:
        progress = StartupProgress()
        loaded = build_engine(config, progress)
        self.config = config
        self.location = progress.location
        self.resolved = loaded.resolved
        self.engine = loaded.engine
        self.tokenizer = loaded.tokenizer
        self._memory = loaded.memory
        self._close = loaded.close
        self._served = loaded.served
        self._num_requests = 0

    def close(self) -> None:
        """Ends the processes that compute with this one, where `tensor_parallel_size` asked for any; harmless twice.

        They end with this object and with this process too.
        """
        self._close()

    def get_memory_table(self) -> str:
        """What the model takes of this machine's memory and how much fits, as `octavo plan` prints it."""
        return "" if self._memory is None else table(self._memory)

    def get_tokenizer(self) -> ScriptTokenizer:
        """The model's tokenizer, with the methods that scripts know from transformers."""
        return ScriptTokenizer(self.tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        given = self._served.defaults
        named = {
            "temperature": given.temperature,
            "top_p": given.top_p,
            "top_k": given.top_k,
            "min_p": given.min_p,
            "repetition_penalty": given.repetition_penalty,
        }
        values: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        return SamplingParams(**values)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continues prompts: texts, lists of token ids, `TextPrompt`s or `TokensPrompt`s.

        Args:
            prompts: one, or a list.
            sampling_params: one for all, or one a prompt; None: what the model's generation_config.json recommends.
            use_tqdm: show a progress bar on stderr; or what to make it with, as `tqdm.tqdm`.
            lora_request: None; adapters are not supported yet.
            priority: one number a prompt, lower first; needs `scheduling_policy="priority"`.

        Raises:
            InvalidRequestError: one of them can never run; then none has run.
        """
        items = [encode_prompt(prompt, self.tokenizer) for prompt in as_prompts(prompts)]
        params = self._params_for(sampling_params, len(items))
        return self._run(items, params, use_tqdm=use_tqdm, priority=_priorities(priority, len(items), lora_request))

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: UseTqdm = True,
        **rendering: Unpack[Rendering],
    ) -> list[RequestOutput]:
        """Answers one conversation or several, rendered by the model's chat template unless `rendering` brings one.

        Raises:
            InvalidRequestError: a conversation cannot be rendered, or can never run; then none has run.
        """
        items = [self._rendered(conversation, **rendering) for conversation in as_conversations(messages)]
        return self._run(items, self._params_for(sampling_params, len(items)), use_tqdm=use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: UseTqdm = True,
    ) -> list[EmbeddingRequestOutput]:
        """The vector of each prompt: the hidden state of its last token, of length 1 unless asked otherwise.

        Raises:
            InvalidRequestError: one of them can never run, or the model has no such vectors; then none has run.
            OctavoError: the model computed something that is no number.
        """
        params = pooling_params or PoolingParams()
        check_dimensions(params, self._served.vectors)
        most, context = params.truncate_prompt_tokens, self.engine.limits.max_sequence_tokens
        items = [encode_prompt(prompt, self.tokenizer) for prompt in as_prompts(prompts)]
        items = [replace(item, token_ids=last_tokens(item.token_ids, most, context)) for item in items]
        requests = [replace(self._request(item, POOLING), pools=True) for item in items]
        found: dict[str, OutputDelta] = {}
        with closing(self._deltas(requests, use_tqdm=use_tqdm)) as deltas:
            for delta in deltas:
                if delta.hidden_state is None:
                    number = [request.request_id for request in requests].index(delta.request_id)
                    raise OctavoError(f"prompt {number}: {delta.error}")
                found[delta.request_id] = delta
        return [
            embedding_output(request, item.text, found[request.request_id], params)
            for request, item in zip(requests, items, strict=True)
        ]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: UseTqdm = True,
    ) -> list[ScoringRequestOutput]:
        """How alike texts are, from -1 to 1: the cosine of their vectors; one text against each, or pairs.

        Raises:
            InvalidRequestError: the sides do not match; else as `embed`.
        """
        first, second = ([side] if isinstance(side, str) else list(side) for side in (data_1, data_2))
        check_pairs(len(first), len(second), names=("data_1", "data_2"))
        params = replace(pooling_params or PoolingParams(), use_activation=True, normalize=True)
        vectors = self.embed([*first, *second], pooling_params=params, use_tqdm=use_tqdm)
        return scoring_outputs(vectors[: len(first)], vectors[len(first) :])

    def _rendered(
        self,
        conversation: Messages,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> EncodedPrompt:
        text = self.tokenizer.render_chat(
            conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            extra=chat_template_kwargs,
            template=chat_template,
        )
        return EncodedPrompt(text=text, token_ids=self.tokenizer.encode(text, add_special_tokens=False))

    def _params_for(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [normalized(given)] * count
        if len(given) != count:
            raise ConfigError(
                f"{count} prompts came with {len(given)} sampling params; give one, or as many as prompts"
            )
        return [normalized(item) for item in given]

    def _run(
        self,
        items: Sequence[EncodedPrompt],
        params: Sequence[SamplingParams],
        *,
        use_tqdm: UseTqdm,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        requests = [
            replace(self._request(item, wanted), priority=rank)
            for item, wanted, rank in zip(items, params, priority or [0] * len(items), strict=True)
        ]
        results = {
            request.request_id: empty_output(request, item.text) for request, item in zip(requests, items, strict=True)
        }
        with closing(self._deltas(requests, use_tqdm=use_tqdm)) as deltas:
            for delta in deltas:
                take_delta(delta, results[delta.request_id], self.tokenizer)
        return list(results.values())

    def _deltas(self, requests: Sequence[Request], *, use_tqdm: UseTqdm) -> Generator[OutputDelta, None, None]:
        """Runs the requests to their ends; closing it ends those that are left."""
        for request in requests:
            check_request(request, self.engine.limits)
        try:
            for request in requests:
                self.engine.add_request(request)
            with _progress(sum(request.params.n for request in requests), use_tqdm) as progress:
                while self.engine.has_work:
                    deltas = self.engine.step()
                    yield from deltas
                    progress.update(sum(delta.finish_reason is not None for delta in deltas))
        finally:
            # After an interrupt nothing of this call may run on in the next one.
            for request in requests:
                self.engine.abort(request.request_id)

    def _request(self, item: EncodedPrompt, params: SamplingParams) -> Request:
        self._num_requests += 1
        text = resolve_text_params(params, self._served)
        return Request(
            request_id=str(self._num_requests - 1),
            prompt_token_ids=tuple(item.token_ids),
            params=params,
            arrival_s=time.monotonic(),
            cache_salt=item.cache_salt,
            grammar=text.grammar,
            bad_token_ids=text.bad_token_ids,
        )


def _priorities(given: Sequence[int] | None, count: int, lora_request: object) -> Sequence[int] | None:
    if lora_request is not None:
        raise ConfigError("lora_request is not supported yet in this version of Octavo; leave it out")
    if given is not None and len(given) != count:
        raise ConfigError(f"{count} prompts came with {len(given)} priorities; give as many as prompts")
    return given


def _progress(total: int, use_tqdm: UseTqdm) -> Any:
    """A bar on stderr, or one that shows nothing."""
    if callable(use_tqdm):
        return use_tqdm(total=total, desc="Processed outputs")
    from tqdm import tqdm

    return tqdm(total=total, desc="Processed outputs", dynamic_ncols=True, disable=not use_tqdm)
