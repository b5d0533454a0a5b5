"""The offline API: `LLM(model).generate(prompts, SamplingParams(…))`, with vLLM's names, without a server.

The same engine as the server's, stepped by the caller's thread. Settings are the flags' names with underscores.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from octavo_server.config import EngineConfig
from octavo_server.engine.admission import check_request
from octavo_server.engine.build import build_engine
from octavo_server.engine.request import POOLING, FinishReason, Request, SamplingParams
from octavo_server.engine.startup import StartupProgress
from octavo_server.engine.vectors import PoolingParams, check_dimensions, check_pairs, last_tokens
from octavo_server.errors import ConfigError, OctavoError
from octavo_server.flags import settings_of
from octavo_server.llm_vectors import (
    EmbeddingRequestOutput,
    ScoringRequestOutput,
    embedding_output,
    scoring_outputs,
)

if TYPE_CHECKING:
    from octavo_server.engine.engine import OutputDelta
    from octavo_server.engine.outputs import PromptLogprob, SampledToken, TokenLogprob

Prompt = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """A token's log-probability, its rank (1 is the likeliest) and its text."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One of a request's outputs."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    """Sum over the tokens; None unless log-probabilities were asked for."""
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True, kw_only=True)
class RequestMetrics:
    """Times of a request, in seconds of `time.monotonic`."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A request and its outputs."""

    request_id: str
    prompt: str | None
    """None where token ids were given."""
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics
    num_cached_tokens: int = 0


class LLM:
    """A model in this process. Not safe for several threads at once."""

    def __init__(self, model: str, **settings: Any) -> None:
        """Loads `model`; settings are those of `octavo serve`, such as `max_model_len=4096`.

        Raises:
            ConfigError: an unknown setting, or one out of range.
            StartupError: the model cannot be loaded.
        """
        self._load(EngineConfig(model=model, **_read(settings)))

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """As the constructor, from a configuration that was already read."""
        llm = cls.__new__(cls)
        llm._load(config)
        return llm

    def _load(self, config: EngineConfig) -> None:
        loaded = build_engine(config, StartupProgress())
        self.config = config
        self.engine = loaded.engine
        self.tokenizer = loaded.tokenizer
        self._defaults = loaded.defaults
        self._vectors = loaded.vectors
        self._num_requests = 0

    def get_tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        given = self._defaults
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
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Continues prompts: texts, lists of token ids, or `{"prompt": …}` / `{"prompt_token_ids": …}`.

        Raises:
            InvalidRequestError: one of them can never run; then none has run.
        """
        items = [self._encode(prompt) for prompt in _as_list(prompts)]
        return self._run(items, self._params_for(sampling_params, len(items)), use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation or several, as the model's chat template renders them."""
        conversations: Sequence[Any] = [messages] if messages and isinstance(messages[0], Mapping) else messages
        items = []
        for conversation in conversations:
            text = self.tokenizer.render_chat(
                conversation,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                extra=chat_template_kwargs,
            )
            items.append((text, self.tokenizer.encode(text, add_special_tokens=False)))
        return self._run(items, self._params_for(sampling_params, len(items)), use_tqdm=use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = False,
    ) -> list[EmbeddingRequestOutput]:
        """The vector of each prompt: the hidden state of its last token, of length 1 unless asked otherwise.

        Raises:
            InvalidRequestError: one of them can never run, or the model has no such vectors; then none has run.
            OctavoError: the model computed something that is no number.
        """
        params = pooling_params or PoolingParams()
        check_dimensions(params, self._vectors)
        items = [self._encode(prompt) for prompt in _as_list(prompts)]
        most, context = params.truncate_prompt_tokens, self.engine.limits.max_sequence_tokens
        items = [(text, last_tokens(ids, most, context)) for text, ids in items]
        requests = [self._request(ids, POOLING, pools=True) for _, ids in items]
        found: dict[str, OutputDelta] = {}
        for delta in self._deltas(requests, use_tqdm=use_tqdm):
            if delta.hidden_state is None:
                raise OctavoError(f"prompt {requests.index(_by_id(requests)[delta.request_id])}: {delta.error}")
            found[delta.request_id] = delta
        return [
            embedding_output(request, text, found[request.request_id], params)
            for request, (text, _) in zip(requests, items, strict=True)
        ]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = False,
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

    def _encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                return prompt.get("prompt"), list(prompt["prompt_token_ids"])
            prompt = str(prompt["prompt"])
        if isinstance(prompt, str):
            return prompt, self.tokenizer.encode(prompt)
        return None, list(prompt)

    def _params_for(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [_normalized(given)] * count
        if len(given) != count:
            raise ConfigError(
                f"{count} prompts came with {len(given)} sampling params; give one, or as many as prompts"
            )
        return [_normalized(item) for item in given]

    def _run(
        self, items: Sequence[tuple[str | None, list[int]]], params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        requests = [self._request(ids, wanted) for (_, ids), wanted in zip(items, params, strict=True)]
        results = {
            request.request_id: _empty_output(request, text) for request, (text, _) in zip(requests, items, strict=True)
        }
        by_id = _by_id(requests)
        for delta in self._deltas(requests, use_tqdm=use_tqdm):
            self._take(delta, by_id[delta.request_id], results[delta.request_id])
        return list(results.values())

    def _deltas(self, requests: Sequence[Request], *, use_tqdm: bool) -> Iterator[OutputDelta]:
        """Runs the requests to their ends."""
        for request in requests:
            check_request(request, self.engine.limits)
        num_ended = 0
        try:
            for request in requests:
                self.engine.add_request(request)
            with _Progress(sum(request.params.n for request in requests), shown=use_tqdm) as progress:
                while self.engine.has_work:
                    for delta in self.engine.step():
                        num_ended += delta.finish_reason is not None
                        yield delta
                    progress.show(num_ended)
        finally:
            # After an interrupt nothing of this call may run on in the next one.
            for request in requests:
                self.engine.abort(request.request_id)

    def _request(self, ids: Sequence[int], params: SamplingParams, *, pools: bool = False) -> Request:
        self._num_requests += 1
        return Request(
            request_id=str(self._num_requests - 1),
            prompt_token_ids=tuple(ids),
            params=params,
            pools=pools,
            arrival_s=time.monotonic(),
        )

    def _take(self, delta: OutputDelta, request: Request, result: RequestOutput) -> None:
        output = result.outputs[delta.index]
        output.text += delta.text
        output.token_ids += [token.token_id for token in delta.tokens]
        if output.logprobs is not None:
            for token in delta.tokens:
                self._take_logprob(token, output)
        if result.prompt_logprobs is not None and delta.index == 0:
            result.prompt_logprobs += [self._prompt_entry(item) for item in delta.prompt_logprobs]
        if delta.tokens and result.metrics.first_token_time is None:
            result.metrics.first_token_time = time.monotonic()
        if delta.finish_reason is None:
            return
        output.finish_reason, output.stop_reason = delta.finish_reason.value, delta.stop_reason
        if delta.finish_reason is FinishReason.ERROR:
            output.stop_reason = delta.error
        if delta.index == 0:
            result.num_cached_tokens = delta.num_cached_tokens
        result.finished = all(item.finish_reason is not None for item in result.outputs)
        if result.finished:
            result.metrics.finished_time = time.monotonic()

    def _take_logprob(self, token: SampledToken, output: CompletionOutput) -> None:
        assert output.logprobs is not None
        assert token.logprob is not None
        output.logprobs.append(self._entry(token.logprob, token.top_logprobs))
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + token.logprob.logprob

    def _prompt_entry(self, item: PromptLogprob) -> dict[int, Logprob]:
        return self._entry(item.logprob, item.top_logprobs)

    def _entry(self, chosen: TokenLogprob, tops: Sequence[TokenLogprob]) -> dict[int, Logprob]:
        return {
            item.token_id: Logprob(
                logprob=item.logprob, rank=item.rank, decoded_token=self.tokenizer.token_text(item.token_id)
            )
            for item in (chosen, *tops)
        }


class _Progress:
    """A bar on stderr where one was asked for."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._total, self._shown = total, shown

    def __enter__(self) -> _Progress:
        if self._shown:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("outputs", total=self._total)
            self._bar.start()
        return self

    def show(self, done: int) -> None:
        if self._shown:
            self._bar.update(self._task, completed=done)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.stop()


def _by_id(requests: Sequence[Request]) -> dict[str, Request]:
    return {request.request_id: request for request in requests}


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as keyword arguments; texts such as "32K" are read as a flag's."""
    known = {item.name: item for item in settings_of(EngineConfig)}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ConfigError(f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else ""))
        values[name] = value if value is None else known[name].read(value, name)
    return values


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]  # a list of ids, which the check above has established
    return list(prompts)  # type: ignore[arg-type]  # a sequence of prompts, by the same check


def _normalized(params: SamplingParams) -> SamplingParams:
    """With tuples where vLLM's scripts give a string or a list, and -1 for a top_k that is off."""
    stop: Any = params.stop
    return replace(
        params,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(params.stop_token_ids or ()),
        top_k=max(params.top_k, 0),
    )


def _empty_output(request: Request, text: str | None) -> RequestOutput:
    params = request.params
    logprobs = params.logprobs is not None
    return RequestOutput(
        request_id=request.request_id,
        prompt=text,
        prompt_token_ids=list(request.prompt_token_ids),
        prompt_logprobs=None if params.prompt_logprobs is None else [None],
        outputs=[CompletionOutput(index=index, logprobs=[] if logprobs else None) for index in range(params.n)],
        metrics=RequestMetrics(arrival_time=request.arrival_s),
    )
