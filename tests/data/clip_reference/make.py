"""Makes the tiny models of this folder and what transformers computes with them, once.

    python make.py    # torch 2.13 and transformers 5.23, float32 on a CPU

`clip`: today's form, quick_gelu, an end token of its own, stored in float32. `clip_legacy`: an `eos_token_id` of 2, as
old files have it, exact GELU, float16. `siglip`: bfloat16. Weights are random, none of them zero.
`features.npz` has, of each, `input_ids`, `attention_mask`, `pixel_values`, and float32 `text_embeds` and
`image_embeds`, not normalised, as get_text_features and get_image_features give them.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

HERE = Path(__file__).parent
END = 38
TEXT = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION |= {"image_size": 24, "patch_size": 8}
LENGTH = 9


def make_clip(eos_token_id, activation):
    text = TEXT | {"max_position_embeddings": LENGTH, "eos_token_id": eos_token_id, "hidden_act": activation}
    vision = VISION | {"hidden_act": activation}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))


def make_siglip():
    width = {"hidden_size": 24, "num_attention_heads": 3}
    text = TEXT | width | {"max_position_embeddings": LENGTH, "projection_size": 24}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))


def main():
    torch.manual_seed(0)
    models = {
        "clip": (make_clip(END, "quick_gelu"), torch.float32),
        "clip_legacy": (make_clip(2, "gelu"), torch.float16),
        "siglip": (make_siglip(), torch.bfloat16),
    }
    found = {}
    for name, (model, dtype) in models.items():
        model.eval()
        with torch.no_grad():
            for key, weight in model.named_parameters():
                mean = 1.0 if "norm" in key and key.endswith("weight") else 0.0
                weight.copy_((torch.randn_like(weight) * 0.3 + mean).to(dtype).float())
            ids = torch.randint(3, END, (3, LENGTH))
            mask = torch.ones_like(ids)
            if name != "siglip":
                for row, end in enumerate((LENGTH - 1, 3, 5)):
                    ids[row, end] = END
                    ids[row, end + 1 :], mask[row, end + 1 :] = 1, 0
            pixels = torch.randn(3, 3, 24, 24)
            given = {"input_ids": ids} | ({} if name == "siglip" else {"attention_mask": mask})
            texts = model.get_text_features(**given).pooler_output
            images = model.get_image_features(pixel_values=pixels).pooler_output
        model.to(dtype).save_pretrained(HERE / name)
        arrays = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
        arrays |= {"text_embeds": texts, "image_embeds": images}
        found |= {
            f"{name}/{key}": value.float().numpy() if value.is_floating_point() else value.numpy()
            for key, value in arrays.items()
        }
    np.savez_compressed(HERE / "features.npz", **found)


if __name__ == "__main__":
    main()
