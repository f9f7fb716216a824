"""OpenAI's requests → `GenerateRequest`. Pure. What cannot be honoured is refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

from vmm_adapters.card import SamplingDefaults
from vmm_adapters.types import SamplingParams
from vmm_server.api.body import field_path
from vmm_server.api.openai.choices import candidates
from vmm_server.api.openai.constraints import constraint_of
from vmm_server.api.openai.messages import chat_messages, predicted_text
from vmm_server.api.openai.tools import tool_use
from vmm_server.api.openai.wire import ChatCompletionRequest, CompletionRequest, SamplingFields
from vmm_server.errors import InvalidRequest, UnsupportedParameter
from vmm_server.requests import ChatPrompt, GenerateRequest, InsertPrompt, TextPrompt

MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 128
"""Prompts in one `/v1/completions` request, and generations in all."""
EFFORTS: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
"""`reasoning_effort`: models of today know three."""


def chat_request(wire: ChatCompletionRequest) -> GenerateRequest:
    """The generation that a chat request asks for. Raises `InvalidRequest`, `UnsupportedParameter`."""
    _refuse_for_chat(wire)
    prompt = ChatPrompt(
        chat_messages(wire.messages),
        template_variables=wire.chat_template_kwargs or {},
        tools=tool_use(wire),
        thinking=thinking(wire.reasoning_effort, "reasoning_effort"),
    )
    max_tokens = wire.max_completion_tokens or wire.max_tokens
    request = generate_request(wire, prompt, max_tokens, _chat_logprobs(wire))
    return request if wire.prediction is None else replace(request, prediction=predicted_text(wire.prediction))


def completion_requests(wire: CompletionRequest) -> list[GenerateRequest]:
    """`best_of` (or `n`) generations of each prompt, in order. Raises `InvalidRequest`, `UnsupportedParameter`."""
    prompts = _prompts(wire)
    count = _num_candidates(wire, len(prompts))
    logprobs = 0 if wire.logprobs is None and wire.best_of else wire.logprobs  # they rank the candidates
    requests = [generate_request(wire, prompt, wire.max_tokens, logprobs) for prompt in prompts]
    if wire.echo:
        requests = [replace(one, sampling=replace(one.sampling, prompt_logprobs=wire.logprobs)) for one in requests]
    return [candidate for request in requests for candidate in candidates(request, count)]


def generate_request(
    wire: SamplingFields, prompt: ChatPrompt | TextPrompt | InsertPrompt, max_tokens: int | None, logprobs: int | None
) -> GenerateRequest:
    """The generation that the shared fields ask for, of this prompt."""
    if "" in (wire.stop or ()):
        raise InvalidRequest("stop: a stop string must not be empty", param="stop")
    min_tokens = wire.min_tokens or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens: {min_tokens} is more than the {max_tokens} at most", param="min_tokens")
    given = {name for name in SamplingDefaults.model_fields if getattr(wire, name, None) is not None}
    if max_tokens is not None:
        given.add("max_tokens")
    return GenerateRequest(
        model=wire.model,
        prompt=prompt,
        sampling=SamplingParams(
            temperature=1.0 if wire.temperature is None else wire.temperature,
            top_p=1.0 if wire.top_p is None else wire.top_p,
            top_k=wire.top_k if wire.top_k and wire.top_k > 0 else None,
            min_p=wire.min_p or 0.0,
            repetition_penalty=wire.repetition_penalty or 1.0,
            presence_penalty=wire.presence_penalty or 0.0,
            frequency_penalty=wire.frequency_penalty or 0.0,
            logit_bias=_logit_bias(wire.logit_bias or {}),
            seed=None if wire.seed is None else wire.seed % 2**64,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop=tuple(wire.stop or ()),
            stop_token_ids=tuple(wire.stop_token_ids or ()),
            ignore_eos=bool(wire.ignore_eos),
            logprobs=logprobs,
        ),
        unset=frozenset(SamplingDefaults.model_fields.keys() - given),
        keep_alive=wire.keep_alive,
        constraint=constraint_of(wire),
        num_ctx=wire.options.num_ctx if wire.options else None,
    )


def _num_candidates(wire: CompletionRequest, num_prompts: int) -> int:
    """Generations of each prompt."""
    n, best_of = wire.n or 1, wire.best_of
    if best_of is not None and best_of < n:
        raise InvalidRequest(f"best_of: {best_of} is less than the {n} asked for with n", param="best_of")
    if best_of is not None and best_of > 1 and wire.stream:
        raise InvalidRequest("best_of: the best answer is known at the end only; leave out stream", param="best_of")
    count = best_of or n
    if count * num_prompts > MAX_PROMPTS:
        field = "n" if best_of is None else "best_of"
        raise InvalidRequest(
            f"{field}: {count} answers to {num_prompts} prompts, the limit is {MAX_PROMPTS} in all", param=field
        )
    return count


def thinking(effort: str | None, param: str) -> bool | str | None:
    """`ChatPrompt.thinking` of an effort. Raises `InvalidRequest` for a word that is none."""
    if effort is not None and effort not in EFFORTS:
        raise InvalidRequest(f"{param}: {effort[:100]!r} is none of {', '.join(EFFORTS)}", param=param)
    return None if effort is None else EFFORTS[effort]


def _refuse(field: str, asked: bool) -> None:
    if asked:
        raise UnsupportedParameter(f"{field} is not supported", param=field)


def _refuse_for_chat(wire: ChatCompletionRequest) -> None:
    if any(modality != "text" for modality in wire.modalities or ()):
        raise UnsupportedParameter("modalities: only text is supported", param="modalities")
    _refuse("audio", wire.audio is not None)
    _refuse("web_search_options", wire.web_search_options is not None)
    _refuse("moderation", wire.moderation is not None)
    if wire.verbosity not in (None, "medium"):
        raise UnsupportedParameter("verbosity: only medium, the default, is supported", param="verbosity")


def _chat_logprobs(wire: ChatCompletionRequest) -> int | None:
    top = wire.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", param="top_logprobs")
    if top and not wire.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return (top or 0) if wire.logprobs else None


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise InvalidRequest("logit_bias: keys are token ids", param="logit_bias") from error


def _prompts(wire: CompletionRequest) -> Sequence[TextPrompt | InsertPrompt]:
    """The prompts; with a `suffix`, each goes before what is asked for, and the suffix behind it."""
    prompts = _text_prompts(wire.prompt)
    if not wire.suffix:
        return prompts
    if wire.echo:
        raise InvalidRequest("echo: an answer that goes between prompt and suffix has no echo", param="echo")
    return [_insertion(prompt, wire.suffix) for prompt in prompts]


def _insertion(prompt: TextPrompt, suffix: str) -> InsertPrompt:
    if not isinstance(prompt.text, str):
        raise InvalidRequest("suffix: needs a prompt of text, not of token ids", param="suffix")
    return InsertPrompt(prompt.text, suffix)


def _is_token_ids(value: list[object]) -> TypeGuard[list[int]]:
    return bool(value) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _text_prompts(prompt: object) -> list[TextPrompt]:
    """`prompt` in its four forms: a string, strings, token ids, arrays of token ids."""
    if isinstance(prompt, str):
        return [TextPrompt(prompt)]
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequest("prompt: must be a string, token ids, or an array of either", param="prompt")
    if _is_token_ids(prompt):
        return [TextPrompt(tuple(prompt))]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt: {len(prompt)} prompts, the limit is {MAX_PROMPTS}", param="prompt")
    prompts = []
    for index, one in enumerate(prompt):
        path = field_path(("prompt", index))
        if isinstance(one, str):
            prompts.append(TextPrompt(one, param=path))
        elif isinstance(one, list) and _is_token_ids(one):
            prompts.append(TextPrompt(tuple(one), param=path))
        else:
            raise InvalidRequest(f"{path}: must be a string or an array of token ids", param=path)
    return prompts
