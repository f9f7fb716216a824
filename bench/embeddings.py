"""`make bench ARGS=embeddings`: plain onnxruntime, the encoder and HTTP on the same texts, in one run.

Plain onnxruntime is what one would write without a server, as sentence-transformers does it: tokenise a request's
texts, sort them by length, pad 32 at a time, run the same ONNX file on as many threads, pool and normalise; requests
one after the other.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tokenizers import Encoding, Tokenizer

from bench.connections import connected, request
from bench.servers import vmm_server
from vmm_adapters.types import Pooling
from vmm_server.embedding import Embeddings
from vmm_server.models.encoders import ReadyEncoder
from vmm_server.models.loading import load_model
from vmm_server.models.machine import MachineReader
from vmm_server.models.placing import Placer
from vmm_server.models.pool import ModelPool
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.store import InstalledModel, Store
from vmm_server.one_shot import OneShot
from vmm_server.requests import EmbeddingRequest
from vmm_server.settings import Settings, read_settings

SENTENCE = "the river rose by nine centimetres while old boats drifted past grey stones and nobody counted them"
Requests = Sequence[Sequence[str]]
"""The texts of each request."""


@dataclass(frozen=True, slots=True)
class Load:
    """`num_clients` at once, each with `num_requests` of `num_texts`, one after the other."""

    num_clients: int
    num_requests: int
    num_texts: int

    @property
    def total(self) -> int:
        """Texts in all."""
        return self.num_clients * self.num_requests * self.num_texts

    def texts(self, rng: np.random.Generator) -> list[list[list[str]]]:
        """Of each client's requests: 3 to 150 words, most of them short, as sentences and paragraphs are."""

        def text() -> str:
            length = int(np.clip(rng.lognormal(2.7, 0.8), 3, 150))
            return " ".join(rng.choice(SENTENCE.split(), length))

        return [
            [[text() for _ in range(self.num_texts)] for _ in range(self.num_requests)] for _ in range(self.num_clients)
        ]


LOADS = {
    "1 text a request": Load(1, 64, 1),
    "32 texts a request": Load(1, 8, 32),
    "128 texts a request": Load(1, 3, 128),
    "16 clients, 1 text each": Load(16, 16, 1),
}


class PlainOnnxruntime:
    """The comparison."""

    def __init__(self, model: InstalledModel, num_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        path = next(
            model.folder / name for name in ("model.onnx", "onnx/model.onnx") if (model.folder / name).is_file()
        )
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(model.context_length)
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 `[texts, dim]`."""
        encodings = self._tokenizer.encode_batch(list(texts))
        order = sorted(range(len(texts)), key=lambda index: len(encodings[index].ids))
        rows = [self._run([encodings[index] for index in order[at : at + 32]]) for at in range(0, len(order), 32)]
        found: NDArray[np.float32] = np.empty_like(together := np.concatenate(rows))
        found[order] = together
        return found

    def _run(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        shape = len(encodings), max(len(each.ids) for each in encodings)
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, each in enumerate(encodings):
            ids[row, : len(each.ids)], mask[row, : len(each.ids)] = each.ids, 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(None, {name: feeds[name] for name in self._inputs})
        rows = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit


async def run_plain(plain: PlainOnnxruntime, clients: Sequence[Requests]) -> None:
    """All requests, one after the other."""
    for requests in clients:
        for texts in requests:
            plain.embed(texts)


async def run_encoder(embeddings: Embeddings, model: str, clients: Sequence[Requests]) -> None:
    """Through the façade: tokeniser, batcher and runtime, no HTTP."""

    async def client(requests: Requests) -> None:
        for texts in requests:
            await embeddings.embed(EmbeddingRequest(model, tuple(texts), ("input",) * len(texts), truncate=True))

    await asyncio.gather(*map(client, clients))


async def run_http(port: int, model: str, clients: Sequence[Requests]) -> None:
    """Through `/v1/embeddings`, base64 as OpenAI's clients ask for, one connection a client."""

    async def client(requests: Requests) -> None:
        async with connected(port) as post:
            for texts in requests:
                fields = {"model": model, "input": texts, "encoding_format": "base64", "truncate": True}
                await post(request(port, "/v1/embeddings", json.dumps(fields).encode()))

    await asyncio.gather(*map(client, clients))


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and print one table a load."""
    parser = argparse.ArgumentParser(prog="bench embeddings", description=__doc__)
    parser.add_argument("--model", default="all-minilm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    chosen = parser.parse_args(arguments)
    settings = read_settings(num_threads=chosen.threads)
    model = Registry(Store(settings.store_dir), read_cards(settings.card_dirs)).resolve(chosen.model)
    if model.embedding is None or model.embedding.pooling is not Pooling.MEAN or not model.embedding.normalize:
        parser.error(f"{model.name} does not pool by mean and normalise, which the comparison does")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "models").symlink_to(settings.store_dir.resolve())
        with vmm_server(home, model.name, 0, num_threads=chosen.threads) as server:
            asyncio.run(_measure(settings, model, server.port, chosen.rounds))


async def _measure(settings: Settings, model: InstalledModel, port: int, rounds: int) -> None:
    console = Console(width=120)
    console.print(f"{model.name}, {settings.num_threads} threads of {os.cpu_count()} cores, {rounds} rounds")
    plain = PlainOnnxruntime(model, settings.num_threads or 1)
    registry = Registry(Store(settings.store_dir), read_cards(settings.card_dirs))
    pool = ModelPool(settings, partial(load_model, settings=settings), Placer(settings, MachineReader().read))
    embeddings = Embeddings(OneShot(registry, pool))
    lease = await pool.acquire(model, None, ReadyEncoder)
    layers: dict[str, Callable[[Sequence[Requests]], Awaitable[None]]] = {
        "plain onnxruntime": lambda clients: run_plain(plain, clients),
        "encoder": lambda clients: run_encoder(embeddings, model.name, clients),
        "http": lambda clients: run_http(port, model.name, clients),
    }
    await _check_same(plain, embeddings, model.name)
    for name, load in LOADS.items():
        speeds: dict[str, list[float]] = {layer: [] for layer in layers}
        rng = np.random.default_rng(load.total)
        for turn in range(rounds + 1):
            clients = load.texts(rng)
            for layer, run in layers.items():
                started = time.perf_counter()
                await run(clients)
                if turn:  # the first round is not measured
                    speeds[layer].append(load.total / (time.perf_counter() - started))
        _show(console, name, speeds)
    lease.release()
    await pool.aclose()


async def _check_same(plain: PlainOnnxruntime, embeddings: Embeddings, model: str) -> None:
    """A comparison of different results would be none."""
    texts = Load(1, 1, 16).texts(np.random.default_rng(0))[0][0]
    request = EmbeddingRequest(model, tuple(texts), ("input",) * len(texts), truncate=True)
    ours = (await embeddings.embed(request)).vectors
    np.testing.assert_allclose(ours, plain.embed(texts), rtol=0, atol=1e-4)


def _show(console: Console, name: str, speeds: dict[str, list[float]]) -> None:
    """Median texts/s, the ratio to the first layer, and the range."""
    table = Table(title=name, title_justify="left")
    for index, column in enumerate(("layer", "texts/s", "ratio", "from", "to")):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    base = statistics.median(next(iter(speeds.values())))
    for layer, values in speeds.items():
        middle = statistics.median(values)
        row = [f"{middle:.1f}", f"{middle / base:.2f}", f"{min(values):.1f}", f"{max(values):.1f}"]
        table.add_row(layer, *row)
    console.print(table)
