"""What a request asks for, in the words of openvino-genai's `GenerationConfig`."""

from secrets import randbits

import openvino_genai as og

from vmm_adapters.types import TextRequest

LACKS = {
    field: f"openvino-genai {reason}"
    for field, reason in {
        "logprobs": "gives no probabilities but the drawn token's",
        "prompt_logprobs": "gives no probabilities of a prompt",
        "logit_bias": "takes no bias",
        "typical_p": "has no typical_p",
        "repetition_window": "looks at the whole text when it penalises repetition",
        "guidance": "takes no Lark, and leaves parts of a JSON schema unenforced",
    }.items()
}
"""Of `SamplingParams`, whatever the device."""

PASS_THROUGH = "{{ messages[0]['content'] }}"
"""A chat template that changes nothing. Prompts come rendered, with all their special tokens; told to apply no template
(2026.4), the runtime would put the tokeniser's own in front of them once more."""


def generation_config(request: TextRequest, *, max_length: int, num_prompt_tokens: int | None) -> og.GenerationConfig:
    """How to ask the runtime for this answer, of a prompt and answer of at most `max_length` tokens.

    Where it is not known how long the prompt is, `max_tokens` is left to whoever reads the answer: the runtime heeds
    one of the two limits only. Seeds are of 32 bits. `min_p` comes before `top_p` here.
    """
    sampling = request.sampling
    config = og.GenerationConfig()
    if num_prompt_tokens is None:
        config.max_length = max_length
    else:
        room = max_length - num_prompt_tokens
        config.max_new_tokens = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
    is_greedy = sampling.temperature == 0 or sampling.top_p <= 0 or sampling.min_p >= 1
    config.do_sample = not is_greedy
    if not is_greedy:
        config.temperature = sampling.temperature
        config.top_p = min(sampling.top_p, 1.0)
        config.min_p = sampling.min_p
        if sampling.top_k is not None:
            config.top_k = sampling.top_k
        # its own default is the same seed each time
        config.rng_seed = randbits(32) if sampling.seed is None else sampling.seed % 2**32
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    if end_token_ids := ends(request):
        config.set_eos_token_id(min(end_token_ids))  # else it is the model's own
        config.stop_token_ids = set(end_token_ids)
        config.min_new_tokens = min(sampling.min_tokens, config.max_new_tokens)
    else:
        config.ignore_eos = True
    return config


def ends(request: TextRequest) -> frozenset[int]:
    """Tokens that end this answer."""
    return frozenset(request.sampling.stop_token_ids) | (
        frozenset() if request.sampling.ignore_eos else request.eos_token_ids
    )
