import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from vmm_server.models.facts import FactsReader, TensorFact, read_folder_template
from vmm_server.models.store import InstalledModel, Store

Install = Callable[..., InstalledModel]
WEIGHTS = "c" * 64


@pytest.fixture
def gguf_model(store: Store, install: Install, write_tiny: Callable[..., Path]) -> InstalledModel:
    """A model whose GGUF file is in the store."""
    model = install("tiny:latest", format="gguf", digest=WEIGHTS, files={"chat_template.jinja": b"{{ messages }}"})
    store.blob(WEIGHTS).write_bytes(write_tiny("llama").read_bytes())
    return model


def test_what_a_gguf_file_says(store: Store, gguf_model: InstalledModel) -> None:
    facts = FactsReader(store).read(gguf_model)
    assert facts.template == "{{ messages }}"
    assert facts.metadata["general.architecture"] == "llama"
    assert isinstance(facts.metadata["llama.context_length"], int)
    assert facts.metadata["tokenizer.ggml.tokens"] == []
    assert "tokenizer.chat_template" not in facts.metadata
    assert facts.tensors == ()


def test_all_that_a_gguf_file_says(store: Store, gguf_model: InstalledModel) -> None:
    reader = FactsReader(store)
    short, facts = reader.read(gguf_model), reader.read(gguf_model, verbose=True)
    tokens = facts.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) > 5
    assert facts.metadata.keys() == short.metadata.keys()
    embedding = next(tensor for tensor in facts.tensors if tensor.name == "token_embd.weight")
    assert embedding.type == "F32"
    assert embedding.shape == (facts.metadata["llama.embedding_length"], len(tokens))
    assert facts.metadata["general.parameter_count"] == sum(int(np.prod(tensor.shape)) for tensor in facts.tensors)


def test_a_file_that_is_used_where_it_lies(install: Install, store: Store, write_tiny: Callable[..., Path]) -> None:
    path = write_tiny("llama")
    model = install("tiny", format="gguf", source=f"file:{path}")
    reader = FactsReader(store)
    assert reader.read(model).metadata["general.architecture"] == "llama"
    path.unlink()
    assert reader.read(model).metadata == {}


def test_a_file_that_has_changed_is_read_anew(store: Store, gguf_model: InstalledModel) -> None:
    reader = FactsReader(store)
    assert reader.read(gguf_model).metadata
    blob = store.blob(WEIGHTS)
    blob.write_bytes(bytes(blob.stat().st_size))
    os.utime(blob, (0, 0))
    assert reader.read(gguf_model).metadata == {}


@pytest.mark.parametrize("verbose", [False, True])
def test_a_damaged_file_is_logged_and_the_rest_is_told(
    store: Store, gguf_model: InstalledModel, caplog: pytest.LogCaptureFixture, verbose: bool
) -> None:
    store.blob(WEIGHTS).write_bytes(b"GGUF" + b"\xff" * 100)
    with caplog.at_level(logging.WARNING):
        facts = FactsReader(store).read(gguf_model, verbose=verbose)
    assert (facts.template, facts.metadata, facts.tensors) == ("{{ messages }}", {}, ())
    assert "tiny:latest" in caplog.text


def test_the_weights_of_an_onnx_graph(store: Store, install: Install) -> None:
    weights = numpy_helper.from_array(np.zeros((2, 3), np.float16), "w")
    graph = helper.make_graph([], "g", [], [], [weights])
    model = install("m", files={"model.onnx": helper.make_model(graph).SerializeToString(), "other.onnx": b""})
    assert FactsReader(store).read(model).tensors == ()
    assert FactsReader(store).read(model, verbose=True).tensors == (TensorFact("w", "FLOAT16", (2, 3)),)
    (model.folder / "model.onnx").write_bytes(b"\xff no graph")
    assert FactsReader(store).read(model, verbose=True).tensors == ()


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, ""),
        ({"chat_template.jinja": "a"}, "a"),
        ({"tokenizer_config.json": json.dumps({"chat_template": "b"})}, "b"),
        ({"chat_template.jinja": "a", "tokenizer_config.json": json.dumps({"chat_template": "b"})}, "a"),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}
                )
            },
            "d",
        ),
        ({"tokenizer_config.json": "{}"}, ""),
        ({"tokenizer_config.json": "[]"}, ""),
        ({"tokenizer_config.json": "{"}, ""),
        ({"tokenizer_config.json": json.dumps({"chat_template": [7]})}, ""),
    ],
)
def test_the_template_of_a_folder(tmp_path: Path, files: dict[str, Any], template: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert read_folder_template(tmp_path) == template
