"""Tiny encoders of every family the importer knows, made from a seed: no weights are kept, only what they compute."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

VOCAB, HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 40, 24, 2, 3, 32, 34
INPUTS = ([2, 5, 6, 7, 8, 9, 3], [2, 30, 3], [2, *range(4, 32), 3])
"""Token ids; of a pair, the second half is the second text."""
BUCKETS = 32

_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "last": "output.LayerNorm",
}
_LAYERS = {
    "bert": ("encoder.layer", _BERT_LAYER),
    "roberta": ("encoder.layer", _BERT_LAYER),
    "mpnet": (
        "encoder.layer",
        _BERT_LAYER
        | {
            "query": "attention.attn.q",
            "key": "attention.attn.k",
            "value": "attention.attn.v",
            "attention": "attention.attn.o",
            "norm": "attention.LayerNorm",
        },
    ),
    "distilbert": (
        "transformer.layer",
        {
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention": "attention.out_lin",
            "norm": "sa_layer_norm",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
            "last": "output_layer_norm",
        },
    ),
}
_SHAPES = {"up": (FFN, HIDDEN), "down": (HIDDEN, FFN), "norm": (HIDDEN,), "last": (HIDDEN,)}
_HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "mpnet": ("classifier.dense", "classifier.out_proj"),
}


@dataclass(frozen=True)
class TinyEncoder:
    """One model."""

    model_type: str
    architecture: str
    layout: str
    """Whose tensor names it has."""
    types: int = 1
    """Rows of the token type table; 0: none."""
    activation: str = "gelu"

    @property
    def scores(self) -> bool:
        """Whether it is a cross-encoder."""
        return self.architecture.endswith("ForSequenceClassification")

    @property
    def config(self) -> dict[str, object]:
        """config.json, as transformers writes it."""
        names = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        names |= {"intermediate_size": FFN, "type_vocab_size": self.types}
        if self.model_type == "distilbert":
            names = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": FFN}
        activation = "activation" if self.model_type == "distilbert" else "hidden_act"
        return {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "vocab_size": VOCAB,
            "max_position_embeddings": POSITIONS,
            "pad_token_id": 0 if self.layout in ("bert", "distilbert") else 1,
            activation: self.activation,
            **names,
        }


MODELS = {
    "bert": TinyEncoder("bert", "BertModel", "bert", types=2),
    "bert_tanh": TinyEncoder("bert", "BertModel", "bert", types=2, activation="gelu_new"),
    "bert_cross": TinyEncoder("bert", "BertForSequenceClassification", "bert", types=2),
    "roberta": TinyEncoder("roberta", "RobertaModel", "roberta"),
    "xlm_roberta_cross": TinyEncoder("xlm-roberta", "XLMRobertaForSequenceClassification", "roberta"),
    "distilbert": TinyEncoder("distilbert", "DistilBertModel", "distilbert", types=0),
    "distilbert_cross": TinyEncoder("distilbert", "DistilBertForSequenceClassification", "distilbert", types=0),
    "mpnet": TinyEncoder("mpnet", "MPNetModel", "mpnet", types=0),
}


def weights(model: TinyEncoder) -> dict[str, NDArray[np.float32]]:
    """Tensors by name, the same ones every time."""
    folder, layer = _LAYERS[model.layout]
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    if model.types:
        shapes["embeddings.token_type_embeddings.weight"] = (model.types, HIDDEN)
    if model.layout == "mpnet":
        shapes["encoder.relative_attention_bias.weight"] = (BUCKETS, HEADS)
    for index in range(LAYERS):
        for part, name in layer.items():
            shape = _SHAPES.get(part, (HIDDEN, HIDDEN))
            shapes[f"{folder}.{index}.{name}.weight"] = shape
            shapes[f"{folder}.{index}.{name}.bias"] = shape[:1]
    if model.scores:
        shapes = {f"{model.layout}.{name}": shape for name, shape in shapes.items()}
        for name, rows in zip(_HEADS[model.layout], (HIDDEN, 1), strict=True):
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, HIDDEN), (rows,)
    rng = np.random.default_rng(7)
    return {
        name: (rng.standard_normal(shape) * 0.3 + ("orm.weight" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_encoder(folder: Path, model: TinyEncoder, **config: object) -> Path:
    """Write config.json, tokenizer.json and model.safetensors as a repository has them; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config | config))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    save_file(weights(model), folder / "model.safetensors")
    return folder


def write_sentence_transformer(folder: Path, *, pooling: str = "mean", normalize: bool = True) -> None:
    """Add the files by which sentence-transformers knows how vectors are made."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": HIDDEN, "pooling_mode": pooling})
    )


TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {f"w{index}": index for index in range(VOCAB)}, "unk_token": "w0"},
}
