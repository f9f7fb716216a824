"""`make bench`: bare runner, engine and HTTP under one load in one run, and llama-server beside them if it is there."""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench import contexts, drafts, embeddings, fairness, forms, pairwise, pictures, placements, transcripts
from bench.bare import kv_bytes, prefill_s
from bench.servers import Server, llama_server, vmm_server
from bench.streams import Load, Measured, run_bare, run_engine, run_http
from bench.tables import console, percentile, show
from vmm_adapters import catalog
from vmm_adapters.types import RunnerOptions
from vmm_server.models.compiled import compiled_dir, shared_compiled_dir
from vmm_server.models.loading import ReadyModel, load_model
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.settings import Settings, read_settings

KV_TOKENS = 8192
"""Context that every server gets, in all streams together."""


def stream_rows(results: dict[str, list[Measured]]) -> list[list[str]]:
    """A row a layer; ratio is tokens/s against the first layer's, by the median over the rounds."""
    base = statistics.median(run.tokens_per_s for run in next(iter(results.values())))
    rows = []
    for name, runs in results.items():
        speed = statistics.median(run.tokens_per_s for run in runs)
        first = [value for run in runs for value in run.first_token_s()]
        between = [value for run in runs for value in run.between_tokens_s()]
        times = [percentile(values, percent) for values in (first, between) for percent in (50, 99)]
        rows.append([name, f"{speed:.1f}", f"{speed / base:.3f}", *times])
    return rows


def measure_streams(
    layers: dict[str, Callable[[Load, list[list[int]]], Measured]], num_streams: int, new_tokens: int, rounds: int
) -> None:
    """Every layer in turn, `rounds` times, after one unmeasured round."""
    load = Load(num_streams, 32, new_tokens)
    results: dict[str, list[Measured]] = {name: [] for name in layers}
    rng = np.random.default_rng(num_streams)
    for turn in range(rounds + 1):
        for name, run in layers.items():
            measured = run(load, load.prompts(rng))
            if turn:
                results[name].append(measured)
    columns = ["layer", "tokens/s", "ratio", "first p50 ms", "p99", "between p50 ms", "p99"]
    show(f"{num_streams} streams, 32 in, {new_tokens} out", columns, stream_rows(results))


def measure_prefill(runner_prefill: Callable[[int], float], servers: list[tuple[Server, str]], rounds: int) -> None:
    """Prompt tokens per second at 512 and 2,048: the runner's own and, over HTTP, time to the first of two tokens."""
    rows = []
    for num_tokens in (512, 2048):
        seconds: dict[str, list[float]] = {"bare": []}
        rng = np.random.default_rng(num_tokens)
        for _ in range(rounds):
            seconds["bare"].append(runner_prefill(num_tokens))
            for server, model in servers:
                load = Load(1, num_tokens, 2)
                run = asyncio.run(run_http(server.port, load, load.prompts(rng), model))
                seconds.setdefault(server.name, []).append(run.first_token_s()[0])
        rows += [[f"{num_tokens}: {name}", f"{num_tokens / statistics.median(s):.0f}"] for name, s in seconds.items()]
    show("prefill", ["prompt tokens", "tokens/s"], rows)


def measure_prefix_cache(servers: list[tuple[Server, str]], rounds: int) -> None:
    """Time to the first token of a 1,000-token prompt, cold and repeated."""
    rows = []
    for server, model in servers:
        cold, warm = [], []
        rng = np.random.default_rng(1000)
        for _ in range(rounds):
            load = Load(1, 1000, 2)
            prompts = load.prompts(rng)
            cold += asyncio.run(run_http(server.port, load, prompts, model)).first_token_s()
            warm += asyncio.run(run_http(server.port, load, prompts, model)).first_token_s()
        ratio = statistics.median(warm) / statistics.median(cold)
        rows.append([server.name, percentile(cold, 50), percentile(warm, 50), f"{ratio:.3f}"])
    show("1,000-token prefix", ["server", "cold ms", "repeated ms", "ratio"], rows)


def main() -> None:
    """Parse the command line and print every table."""
    epilog = (
        "`bench pairwise` compares with llama-server figure by figure, `bench contexts` measures tokens in long texts, "
        "`bench drafts` what speculation gains and takes, "
        "`bench embeddings` an embedding model, `bench pictures` and `bench transcripts` what sees and hears, "
        "`bench forms` what an answer's form costs, `bench fairness` what tenants get, "
        "`bench placements` whether the router's choice is the best one."
    )
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, epilog=epilog)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--backend", default="cpu", choices=sorted(catalog.CAUSAL_LM), help="VMM's runner")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="generated by each stream")
    parser.add_argument("--gguf", type=Path, help="the model's GGUF file, for llama-server")
    arguments = parser.parse_args()
    settings = read_settings()
    model = Registry(Store(settings.store_dir), read_cards(settings.card_dirs)).resolve(arguments.model)
    kv_cache_bytes = kv_bytes(arguments.backend, model.folder, KV_TOKENS)
    said = {"VMM_BACKEND": arguments.backend}
    console.print(f"{model.name}, {os.cpu_count()} cores, {KV_TOKENS} tokens of KV: {kv_cache_bytes >> 20} MB")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "models").symlink_to(settings.store_dir.resolve())
        with vmm_server(home, model.name, kv_cache_bytes, settings=said) as cold:
            pass
        with (
            vmm_server(home, model.name, kv_cache_bytes, settings=said) as ours,
            llama_server(arguments.gguf or Path("-"), KV_TOKENS, 16) as theirs,
        ):
            idle = ours.resident_bytes()
            measure_all(arguments, settings, model, kv_cache_bytes, ours, theirs)
            rows = [["vmm", f"{cold.ready_s:.1f}", f"{ours.ready_s:.1f}", f"{idle >> 20}"]]
            rows[0].append(f"{ours.resident_bytes() >> 20}")
            if theirs is not None:
                rows.append(["llama-server", "", f"{theirs.ready_s:.1f}", "", f"{theirs.resident_bytes() >> 20}"])
            columns = ["server", "cold start s", "warm start s", "idle MB", "after the load MB"]
            show("start and resident memory", columns, rows)


def measure_all(
    arguments: argparse.Namespace,
    settings: Settings,
    model: InstalledModel,
    kv_cache_bytes: int,
    ours: Server,
    theirs: Server | None,
) -> None:
    """The tables that need a loaded model in this process too."""
    ready = load_model(model, Placement(arguments.backend, "CPU"), kv_cache_bytes, settings)
    if not isinstance(ready, ReadyModel):
        raise SystemExit(f"{model.name} makes no text: `bench embeddings` measures it")
    options = RunnerOptions(
        kv_cache_bytes=kv_cache_bytes,
        cache_dir=compiled_dir(settings.cache_dir, model),
        shared_cache_dir=shared_compiled_dir(settings.cache_dir),
    )
    runner = catalog.load_causal_lm(arguments.backend, model.folder, options)
    runner.warm_up()
    layers: dict[str, Callable[[Load, list[list[int]]], Measured]] = {
        "bare runner": partial(run_bare, runner, budget=settings.max_batched_tokens),
        "engine": lambda load, prompts: asyncio.run(run_engine(ready.engine, load, prompts)),
        "http": lambda load, prompts: asyncio.run(run_http(ours.port, load, prompts, model.name)),
    }
    servers = [(ours, model.name)]
    if theirs is not None:
        port = theirs.port
        layers["llama-server"] = lambda load, prompts: asyncio.run(run_http(port, load, prompts, model.name))
        servers.append((theirs, model.name))
    for num_streams in (1, 4, 16):
        measure_streams(layers, num_streams, arguments.tokens, arguments.rounds)
    prefill = partial(prefill_s, runner, budget=settings.max_batched_tokens, rng=np.random.default_rng(7))
    measure_prefill(prefill, servers, arguments.rounds)
    measure_prefix_cache(servers, arguments.rounds)
    asyncio.run(ready.engine.aclose())
    runner.close()


OTHERS = {
    "contexts": contexts.main,
    "drafts": drafts.main,
    "embeddings": embeddings.main,
    "fairness": fairness.main,
    "forms": forms.main,
    "pairwise": pairwise.main,
    "pictures": pictures.main,
    "placements": placements.main,
    "transcripts": transcripts.main,
}

if __name__ == "__main__":
    if other := OTHERS.get("".join(sys.argv[1:2])):
        other(sys.argv[2:])
    else:
        main()
