"""What a request asks for, in the words of onnxruntime-genai's `TurnOptions`. Pure."""

from dataclasses import dataclass
from typing import Any

from vmm_adapters.types import TextRequest

LACKS = {
    field: f"onnxruntime-genai {reason}"
    for field, reason in {
        "logprobs": "gives no probabilities",
        "prompt_logprobs": "gives no probabilities",
        "logit_bias": "takes no bias",
        "min_p": "has no min_p",
        "typical_p": "has no typical_p",
        "presence_penalty": "has no presence penalty",
        "frequency_penalty": "has no frequency penalty",
        "repetition_window": "looks at the whole text when it penalises repetition",
        "min_tokens": "holds back only the end tokens of the model's own configuration",
    }.items()
}
"""Of `SamplingParams`, whatever the device."""
NO_SEEDS = "onnxruntime-genai takes seeds only of models made for its paged KV cache"
"""Its static engine refuses `set_seed`."""
NO_GUIDANCE = "the model's folder has no tokenizer.json for onnxruntime-genai to read"

_GUIDANCE = {"json_schema": "json_schema", "regex": "regex", "lark": "lark_grammar"}


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """Values of `TurnOptions`, each as the runtime wants it."""

    max_tokens: int
    """At least 1: the runtime takes 0 for no limit."""
    temperature: float = 0.0
    """0: the most likely token."""
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    holds_ends_back: bool = False
    """The end tokens of the model's configuration are not drawn."""
    guidance: tuple[str, str] | None = None

    def apply(self, options: Any) -> None:
        """Set them on a `TurnOptions`."""
        options.set_max_generated_tokens(self.max_tokens)
        options.set_do_sample(self.temperature > 0)
        if self.temperature > 0:
            options.set_temperature(self.temperature)
            options.set_top_k(self.top_k)
            options.set_top_p(self.top_p)
            if self.seed is not None:
                options.set_seed(self.seed)
        options.set_repetition_penalty(self.repetition_penalty)
        if self.holds_ends_back:
            options.set_min_generated_tokens(self.max_tokens)
        if self.guidance is not None:
            options.set_guidance(*self.guidance)


def plan_turn(
    request: TextRequest, *, context_length: int, vocab_size: int, model_ends: tuple[int, ...], takes_seeds: bool
) -> TurnPlan:
    """How to ask the runtime for this answer. `model_ends` are the end tokens of the model's configuration.

    The runtime ends an answer at those by itself: when none of them ends this request, they are held back. Not under
    guidance, whose only next token may be an end.
    """
    sampling = request.sampling
    room = min(request.max_length, context_length) - len(request.token_ids)
    max_tokens = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
    guidance = request.guidance
    is_greedy = sampling.temperature == 0 or sampling.top_p <= 0
    return TurnPlan(
        max_tokens=max_tokens,
        temperature=0.0 if is_greedy else sampling.temperature,
        top_k=_top_k(sampling.top_k, sampling.top_p, vocab_size),
        top_p=min(sampling.top_p, 1.0),
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed if takes_seeds else None,
        holds_ends_back=guidance is None and not ends(request).intersection(model_ends),
        guidance=(_GUIDANCE[guidance.kind], guidance.text) if guidance is not None else None,
    )


def force(token_id: int) -> TurnPlan:
    """An answer of this one token; llguidance writes tokens by their number so."""
    return TurnPlan(max_tokens=1, guidance=("lark_grammar", f"start: <[{token_id}]>"))


def _top_k(top_k: int | None, top_p: float, vocab_size: int) -> int:
    """Without a `top_k` the runtime leaves `top_p` out too (0.18): then every token is among the k."""
    if top_k is not None:
        return min(top_k, vocab_size)
    return vocab_size if top_p < 1 else 0


def ends(request: TextRequest) -> frozenset[int]:
    """Tokens that end this answer."""
    return frozenset(request.sampling.stop_token_ids) | (
        frozenset() if request.sampling.ignore_eos else request.eos_token_ids
    )


def end_token(request: TextRequest, model_ends: tuple[int, ...]) -> int:
    """The token an answer ended with: of several that the runtime ends at, it does not say which."""
    wanted = ends(request)
    return next((token_id for token_id in model_ends if token_id in wanted), model_ends[0])
