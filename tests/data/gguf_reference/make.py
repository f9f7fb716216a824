"""Writes logits.npz: what transformers says for every tiny model. Run it again only when a model is added.

pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0
python tests/data/gguf_reference/make.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_models import CONTEXT, FFN, HEADS, HIDDEN, KV_HEADS, MODELS, TOKENS, VOCAB, TinyModel, weights


def reference_logits(model: TinyModel) -> np.ndarray:
    """Float32 `[2, 20, VOCAB]`, computed in float64."""
    config = getattr(transformers, model.config_class)(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=model.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=model.tied,
        attn_implementation="eager",
        **model.config,
    )
    network = getattr(transformers, model.model_class)(config).double().eval()
    state = {name: torch.from_numpy(array).double() for name, array in weights(model).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.tied else set()), missing
    network.tie_weights()
    with torch.no_grad():
        return network(torch.from_numpy(TOKENS)).logits.float().numpy()


if __name__ == "__main__":
    logits = {name: reference_logits(model) for name, model in MODELS.items()}
    np.savez_compressed(Path(__file__).with_name("logits.npz"), **logits)
