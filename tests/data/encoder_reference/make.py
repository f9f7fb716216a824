"""Writes rows.npz: what transformers says for every tiny encoder. Run it again only when a model is added.

pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0
python tests/data/encoder_reference/make.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_encoders import INPUTS, MODELS, TinyEncoder, weights


def reference_rows(model: TinyEncoder) -> np.ndarray:
    """Means of the last hidden states, or logits of pairs: float32 `[3, columns]`, computed in float64."""
    config = transformers.AutoConfig.for_model(**model.config, num_labels=1, attn_implementation="eager")
    network = getattr(transformers, model.architecture)(config).double().eval()
    state = {name: torch.from_numpy(array).double() for name, array in weights(model).items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all("pooler" in name for name in missing) or not missing, missing
    rows = []
    for ids in INPUTS:
        more = {}
        if model.types > 1:
            more["token_type_ids"] = torch.tensor([[int(2 * index >= len(ids)) for index in range(len(ids))]])
        with torch.no_grad():
            output = network(input_ids=torch.tensor([ids]), **more)
        rows.append((output.logits if model.scores else output.last_hidden_state.mean(1)).float().numpy())
    return np.concatenate(rows)


if __name__ == "__main__":
    found = {name: reference_rows(model) for name, model in MODELS.items()}
    np.savez_compressed(Path(__file__).with_name("rows.npz"), **found)
