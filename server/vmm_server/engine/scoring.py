"""Logits → log-probabilities of the tokens a prompt has."""

from numpy import float32, isnan
from numpy.typing import NDArray

from vmm_adapters.types import TokenLogprob
from vmm_server.engine.sampler import logprobs_of
from vmm_server.engine.step import PromptRows


def score(logits: NDArray[float32], rows: PromptRows) -> tuple[TokenLogprob, ...] | None:
    """Of the tokens that `rows` names, each from its row of a step's float32 `[rows, vocabulary]`.

    `None` where there is NaN in a row.
    """
    num_top = rows.sequence.sampling.prompt_logprobs or 0
    mine = logits[rows.first_row : rows.first_row + len(rows.token_ids)]
    scores = tuple(logprobs_of(row, token_id, num_top) for row, token_id in zip(mine, rows.token_ids, strict=True))
    return None if any(isnan(item.logprob) for item in scores) else scores
