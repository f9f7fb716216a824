"""Ollama's `options` → how the next token is chosen. Pure.

Options are honoured, or say how to run and change no answer, or come from older versions of Ollama: those that would
have changed an answer have no effect in today's Ollama either, but here the reply says so (`ignored_fields`).
"""

from vmm_adapters.types import SamplingParams
from vmm_server.api.ollama.wire import GenerationFields, Options
from vmm_server.errors import InvalidRequest

_WINDOW = 64


def sampling_params(options: Options, *, num_logprobs: int | None) -> SamplingParams:
    """With Ollama's defaults; values out of range are clamped as its sampler does. Raises `InvalidRequest`."""
    if "" in (options.stop or ()):
        raise InvalidRequest("options.stop: a stop string must not be empty", param="options.stop")
    window = _WINDOW if options.repeat_last_n is None else options.repeat_last_n
    penalise = window != 0
    num_predict, seed, top_k = options.num_predict, options.seed, options.top_k
    return SamplingParams(
        temperature=max(0.0, 0.8 if options.temperature is None else options.temperature),
        top_p=_share(0.9 if options.top_p is None else options.top_p),
        top_k=40 if top_k is None else top_k if top_k > 0 else None,
        min_p=_share(options.min_p or 0.0),
        typical_p=_share(1.0 if options.typical_p is None else options.typical_p),
        repetition_penalty=(options.repeat_penalty or 1.0) if penalise else 1.0,
        repetition_window=window if window > 0 else None,
        presence_penalty=(options.presence_penalty or 0.0) if penalise else 0.0,
        frequency_penalty=(options.frequency_penalty or 0.0) if penalise else 0.0,
        seed=None if seed is None or seed == -1 else seed % 2**64,
        max_tokens=num_predict if num_predict is not None and num_predict > 0 else None,
        stop=tuple(options.stop or ()),
        logprobs=num_logprobs,
    )


def unset_params(options: Options) -> frozenset[str]:
    """Fields of `SamplingParams` that were left to the model's own defaults."""
    recommendable = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "typical_p": options.typical_p,
        "repetition_window": options.repeat_last_n,
        "seed": options.seed,
        "max_tokens": options.num_predict,
        "stop": options.stop,
    }
    if options.repeat_last_n != 0:  # which asks for no penalties
        recommendable |= {
            "repetition_penalty": options.repeat_penalty,
            "presence_penalty": options.presence_penalty,
            "frequency_penalty": options.frequency_penalty,
        }
    return frozenset(name for name, value in recommendable.items() if value is None)


def context_limit(options: Options | None) -> int | None:
    """`num_ctx`. Raises `InvalidRequest`."""
    num_ctx = None if options is None else options.num_ctx
    if num_ctx is not None and num_ctx < 1:
        raise InvalidRequest("options.num_ctx: must be at least 1", param="options.num_ctx")
    return num_ctx


def kept_tokens(options: Options) -> int | None:
    """How many tokens of a raw prompt that is too long stay at its beginning; `None`: all."""
    num_keep = 4 if options.num_keep is None else options.num_keep
    return None if num_keep < 0 else num_keep


def ignored_fields(body: GenerationFields) -> tuple[str, ...]:
    """What was asked for, would change the answer, and does not."""
    options = body.options or Options()
    asked = {
        "options.mirostat": bool(options.mirostat),
        "options.tfs_z": options.tfs_z not in (None, 1),
        "options.penalize_newline": options.penalize_newline is False,
        "shift": bool(body.shift),
    }
    return tuple(name for name, is_asked in asked.items() if is_asked)


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))
