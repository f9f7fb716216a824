"""What a request asks for that a runtime does not have. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from vmm_adapters.types import SamplingParams

_DEFAULTS = SamplingParams()


def effective(sampling: SamplingParams) -> SamplingParams:
    """The same without what changes nothing, and without what ends an answer from outside of the sampler.

    A greedy draw looks at no probabilities, so it needs none of the fields that cut them; a penalty of 1, or one that
    looks at no tokens, is none.
    """
    changes: dict[str, object] = {"stop": (), "stop_token_ids": ()}
    if sampling.temperature == 0:
        changes.update(top_p=1.0, top_k=None, min_p=0.0, typical_p=1.0, seed=None)
    if sampling.top_k is not None and sampling.top_k <= 0:
        changes["top_k"] = None
    if sampling.repetition_penalty == 1 or sampling.repetition_window == 0:
        changes.update(repetition_penalty=1.0, repetition_window=None)
    return replace(sampling, **changes)  # type: ignore[arg-type]


def lacking(sampling: SamplingParams, lacks: Mapping[str, str], *, is_guided: bool) -> dict[str, str]:
    """Fields of the request that a runtime which `lacks` those cannot honour → why."""
    if not lacks:
        return {}
    asked = effective(sampling)
    return {
        field: reason
        for field, reason in lacks.items()
        if (is_guided if field == "guidance" else getattr(asked, field) != getattr(_DEFAULTS, field))
    }
