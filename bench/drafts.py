"""`make bench ARGS=drafts`: what drafts gain and what they take, in one process and one run.

Two engines with one model, one of them without speculation, take the same requests in turn: prose that nobody can
guess, and texts to be said again with a change. Both answer the same, so what differs is time.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from bench.bare import kv_bytes
from bench.edits import EDITS
from bench.tables import show
from vmm_adapters.types import SamplingParams
from vmm_server.models.loading import ReadyModel, load_model
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.requests import Message
from vmm_server.settings import read_settings

_KV_TOKENS = 8192
_TOPICS = (
    "the history of tea", "how bread rises", "a binary search tree", "the city of Rome", "how to begin with running",
    "why cats purr", "a lighthouse keeper", "how a bicycle stays upright", "a good teacher", "a storm at sea",
    "how mountains are formed", "a letter to an old friend", "inflation", "how bees make honey", "the rules of chess",
    "jazz",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Workload:
    """What is asked together in one round."""

    name: str
    kind: Literal["prose", "edit"]
    num_streams: int

    def sampling(self, seed: int) -> SamplingParams:
        if self.kind == "edit":
            return SamplingParams(temperature=0.0, max_tokens=300)
        return SamplingParams(temperature=0.8, seed=seed, max_tokens=128)

    def prompts(self, ready: ReadyModel, number: int) -> list[list[int]]:
        """Other ones each round: neither engine has them in its cache."""
        assert ready.template is not None, "the model has no chat template"
        if self.kind == "edit":
            texts = [EDITS[number % len(EDITS)].prompt(ready.template, number)]
        else:
            topics = [_TOPICS[(number + index) % len(_TOPICS)] for index in range(self.num_streams)]
            asked = [(Message("user", f"Write about {topic}, for reader {number}."),) for topic in topics]
            texts = [ready.template.render(each, now=datetime.now(UTC), variables={}) for each in asked]
        return [ready.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def main(arguments: Sequence[str]) -> None:
    """Print a row a workload: tokens/s with drafts over tokens/s without, each round one ratio."""
    parser = argparse.ArgumentParser(prog="bench drafts", description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--rounds", type=int, default=16)
    chosen = parser.parse_args(arguments)
    settings = read_settings()
    model = Registry(Store(settings.store_dir), read_cards(settings.card_dirs)).resolve(chosen.model)

    def load(speculation: Literal["auto", "off"]) -> ReadyModel:
        return _load(model, chosen.backend, speculation)

    workloads = [_Workload(f"prose, {number} at a time", "prose", number) for number in (1, 4, 16)]
    workloads.append(_Workload("edits, 1 at a time", "edit", 1))
    asyncio.run(_measure(load("auto"), load("off"), workloads, chosen.rounds))


def _load(model: InstalledModel, backend: str, speculation: Literal["auto", "off"]) -> ReadyModel:
    settings = read_settings().model_copy(update={"speculation": speculation})
    room = kv_bytes(backend, model.folder, _KV_TOKENS)
    ready = load_model(model, Placement(backend, "CPU"), room, settings)
    if not isinstance(ready, ReadyModel):
        raise SystemExit(f"{model.name} makes no text")
    return ready


async def _measure(on: ReadyModel, off: ReadyModel, workloads: Sequence[_Workload], rounds: int) -> None:
    rows = [await _row(on, off, workload, rounds) for workload in workloads]
    columns = ["texts", "median ratio", "mean", "lowest", "highest", "drafted", "accepted", "tokens/s"]
    show(f"with drafts over without, {rounds} rounds", columns, rows)
    await on.engine.aclose()
    await off.engine.aclose()


async def _row(on: ReadyModel, off: ReadyModel, workload: _Workload, rounds: int) -> list[str]:
    ratios, speeds = [], []
    await _tokens_per_s(off, workload, 0)
    await _tokens_per_s(on, workload, 0)
    before = on.engine.stats
    for number in range(1, rounds + 1):
        order = (on, off) if number % 2 else (off, on)
        speed = {id(ready): await _tokens_per_s(ready, workload, number) for ready in order}
        ratios.append(speed[id(on)] / speed[id(off)])
        speeds.append(speed[id(on)])
    after = on.engine.stats
    values = (statistics.median(ratios), statistics.mean(ratios), min(ratios), max(ratios))
    drafted = after.num_drafted_tokens - before.num_drafted_tokens
    accepted = after.num_accepted_tokens - before.num_accepted_tokens
    figures = [f"{value:.3f}" for value in values]
    return [workload.name, *figures, str(drafted), str(accepted), f"{statistics.median(speeds):.0f}"]


async def _tokens_per_s(ready: ReadyModel, workload: _Workload, number: int) -> float:
    prompts = workload.prompts(ready, number)
    started = time.perf_counter()
    counts = await asyncio.gather(
        *(_count(ready, prompt, workload.sampling(100 * number + index)) for index, prompt in enumerate(prompts))
    )
    return sum(counts) / (time.perf_counter() - started)


async def _count(ready: ReadyModel, prompt: list[int], sampling: SamplingParams) -> int:
    generation, count = ready.engine.submit(prompt, sampling), 0
    async for delta in generation:
        count += len(delta.token_ids)
    await generation.aclose()
    return count
