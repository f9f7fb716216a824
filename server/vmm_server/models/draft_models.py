"""The model that drafts for others: the one that the setting `draft_model` names, beside each that it can draft for."""

import logging
from collections.abc import Callable
from dataclasses import replace

from tokenizers import Tokenizer

from vmm_adapters import catalog
from vmm_adapters.base import CausalLMRunner
from vmm_adapters.errors import AdapterError
from vmm_adapters.types import RunnerOptions
from vmm_server.errors import ModelLoadFailed, VMMError
from vmm_server.models.ready import warm
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel
from vmm_server.models.tokenizer_file import read_tokenizer
from vmm_server.settings import Settings

logger = logging.getLogger(__name__)

Resolve = Callable[[str], InstalledModel]
"""A name → the installed model. Raises `InvalidModelName`, `ModelNotFound`."""
_KV_SHARE = 8  # of what the model's own KV blocks would get: a draft model's positions are smaller


def load_draft_runner(
    model: InstalledModel,
    tokenizer: Tokenizer,
    placement: Placement,
    options: RunnerOptions,
    settings: Settings,
    resolve: Resolve | None,
) -> CausalLMRunner | None:
    """The warm draft model for a model that is about to be loaded with these `options`, out of its `kv_cache_bytes`.

    `None` where there is to be none. Where there cannot be one the log says why: the model itself can do without.
    """
    name = settings.draft_model
    if not name or resolve is None or settings.speculation == "off" or placement.adapter not in catalog.CAUSAL_LM:
        return None
    try:
        draft = resolve(name)
        if draft.weights == model.weights:
            return None
        _check(draft, tokenizer, placement, options)
        runner = _load(draft, placement, options)
    except (VMMError, AdapterError) as error:
        logger.warning("%s does not draft for %s on %s: %s", name, model.name, placement, error)
        return None
    logger.info("%s drafts for %s on %s", draft.name, model.name, placement)
    return runner


def _check(draft: InstalledModel, tokenizer: Tokenizer, placement: Placement, options: RunnerOptions) -> None:
    """Raise `ModelLoadFailed` for one whose drafts would mean something else, or that finds no room."""
    if not draft.generates:
        raise ModelLoadFailed("it is no text model")
    if read_tokenizer(draft).get_vocab(with_added_tokens=True) != tokenizer.get_vocab(with_added_tokens=True):
        raise ModelLoadFailed("its vocabulary is another one")
    _check_size(draft.size_bytes, options)


def _load(draft: InstalledModel, placement: Placement, options: RunnerOptions) -> CausalLMRunner:
    share = replace(options, kv_cache_bytes=options.kv_cache_bytes // _KV_SHARE, cache_dir=None)
    runner = catalog.load_causal_lm(placement.adapter, draft.folder, share)
    warm(runner)
    try:
        _check_size(runner.memory_bytes - share.kv_cache_bytes, options)
    except ModelLoadFailed:
        runner.close()
        raise
    return runner


def _check_size(num_bytes: int, options: RunnerOptions) -> None:
    if num_bytes > options.kv_cache_bytes // 2:
        raise ModelLoadFailed(f"{num_bytes >> 20} MB are more than half of what the KV blocks may take")
