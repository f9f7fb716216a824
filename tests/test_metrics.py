"""Figures: what the page says of them, how counts outlive a model, and the live figures made of two looks."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vmm_adapters.types import SamplingParams
from vmm_server.engine.histogram import FIRST_TOKEN_S, INTER_TOKEN_S, Distribution
from vmm_server.engine.stream import Usage
from vmm_server.errors import GenerationFailed
from vmm_server.metrics.families import FAMILIES, GEN_AI, PLACE, Family
from vmm_server.metrics.figures import Figures
from vmm_server.metrics.requests import MAX_SERIES, RequestFigures
from vmm_server.metrics.snapshot import Look, snapshot
from vmm_server.models.registry import Registry
from vmm_server.models.router import Placement
from vmm_server.models.store import InstalledModel, Store
from vmm_server.observed import Observed
from vmm_server.parts import Parts
from vmm_server.requests import GenerateRequest, TextPrompt

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
ENDS = {"counter": "_total", "info": "_info"}
CHAT = {
    "operation": "chat",
    "began_at": 10.0,
    "leased_at": 11.0,
    "submitted_at": 12.0,
    "first_token_at": 15.0,
    "ended_at": 20.0,
}
USAGE = Usage(
    num_prompt_tokens=7, num_cached_tokens=3, num_generated_tokens=5, queued_s=1.0, prefill_s=2.0, decode_s=4.0
)
ECHO = ("echo:latest", "echo", "CPU", "")


@pytest.fixture
def echo(installed: Any, settings: Any) -> InstalledModel:
    installed()
    return Registry(Store(settings().store_dir), ()).resolve("echo")


def labels_in_words(family: Family) -> str:
    names = family.labels
    words = []
    for common, word in ((PLACE, "*place*"), (GEN_AI, "*request*")):
        if names[: len(common)] == common:
            words, names = [word], names[len(common) :]
    return ", ".join((*words, *(f"`{name}`" for name in names)))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_page_has_every_family_as_it_is(family: Family) -> None:
    name = family.name + ENDS.get(family.kind, "")
    assert f"| `{name}` | {family.kind} | {labels_in_words(family)} | {family.unit} | {family.text} |\n" in PAGE


def test_the_page_has_no_family_that_is_gone() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Live figures")[0], re.M))
    assert rows == {family.name + ENDS.get(family.kind, "") for family in FAMILIES}


def test_the_questions_ask_for_what_there_is() -> None:
    asked = set(re.findall(r"(?<=\()(?:vmm|gen_ai|http)_\w+", "".join(re.findall(r"```promql(.*?)```", PAGE, re.S))))
    known = {family.name + ENDS.get(family.kind, "") for family in FAMILIES}
    parts = {
        f"{family.name}_{part}" for family in FAMILIES if family.kind == "histogram" for part in ("bucket", "count")
    }
    assert len(asked) > 5
    assert asked <= known | parts


def test_what_is_exposed_is_what_the_families_say(installed: Any, with_parts: Any) -> None:
    async def body(parts: Parts) -> None:
        completion = await parts.inference.generate(
            GenerateRequest("echo", TextPrompt("hello"), SamplingParams(max_tokens=4))
        )
        async with completion:
            assert "".join([delta.text async for delta in completion])
        parts.metrics.requests.http_began("GET")
        parts.metrics.requests.http_ended("GET", "/metrics", 200, 0.1)
        parts.metrics.requests.error("ModelNotFound", "openai")
        text, _ = await parts.metrics.exposition("text/plain")
        exposed = {family.name: family for family in text_string_to_metric_families(text.decode())}
        ours = {name for name in exposed if not name.startswith("process_")}
        assert ours == {family.name + ("_info" if family.kind == "info" else "") for family in FAMILIES}
        for family in FAMILIES:
            found = exposed[family.name + ("_info" if family.kind == "info" else "")]
            assert found.documentation == family.text
            for sample in found.samples:
                extra = {"version", "python", "digest"} if family.kind == "info" else {"le"}
                assert set(sample.labels) - extra == set(family.labels), sample

    installed()
    with_parts(body)


def test_figures_keep_the_name_that_a_model_was_loaded_under(installed: Any, with_parts: Any) -> None:
    """Models that share their weights share what is loaded: whoever asked last is no label, or counts would jump."""

    async def body(parts: Parts) -> None:
        await parts.inference.load("echo", None)
        (loaded,) = parts.pool.loaded()
        loaded.model = replace(loaded.model, name="other:latest")
        assert [*parts.metrics.figures().values["vmm_tokens_generated"]] == [ECHO]
        await parts.inference.unload("echo")
        figures = parts.metrics.figures()
        assert [*figures.values["vmm_tokens_generated"]] == [ECHO]
        assert figures.values["vmm_unloads"] == {(*ECHO, "asked"): 1}

    installed()
    with_parts(body)


def observed(model: InstalledModel, **changes: Any) -> Observed:
    return Observed(
        **{
            **CHAT,
            "model": model,
            "placement": Placement("cpu", "CPU"),
            "usage": USAGE,
            "queued_s": 1.0,
            "num_input_tokens": 7,
            "num_output_tokens": 5,
            **changes,
        }
    )


def counted(*requests: Observed) -> Figures:
    figures, counts = RequestFigures(), Figures()
    for request in requests:
        figures.request(request)
    figures.count(counts)
    return counts


def test_what_a_request_took(echo: InstalledModel) -> None:
    found = counted(observed(replace(echo, name="m:1b@v2"))).distributions
    labels = ("chat", "vmm", "m:1b", "m:1b@v2", "cpu", "CPU")
    assert found["gen_ai_server_request_duration_seconds"][(*labels, "")].total == 10.0
    assert found["gen_ai_server_time_to_first_token_seconds"][labels].total == 5.0  # from 10 to 12 + 1 + 2
    assert found["gen_ai_server_time_per_output_token_seconds"][labels].total == 1.0
    assert found["gen_ai_client_token_usage"][(*labels, "input")].total == 7
    assert found["gen_ai_client_token_usage"][(*labels, "output")].total == 5


def test_a_request_that_failed_has_a_duration_and_no_first_token(echo: InstalledModel) -> None:
    found = counted(observed(echo, error=GenerationFailed("x"))).distributions
    (labels,) = found["gen_ai_server_request_duration_seconds"]
    assert labels[-1] == "GenerationFailed"
    assert not found["gen_ai_server_time_to_first_token_seconds"]


def test_one_token_has_no_pause_behind_it(echo: InstalledModel) -> None:
    found = counted(observed(echo, usage=replace(USAGE, num_generated_tokens=1, decode_s=0.0))).distributions
    assert found["gen_ai_server_time_to_first_token_seconds"]
    assert not found["gen_ai_server_time_per_output_token_seconds"]


def test_labels_are_bounded(echo: InstalledModel) -> None:
    many = [observed(replace(echo, name=f"m{number}")) for number in range(MAX_SERIES + 10)]
    found = counted(*many).distributions["gen_ai_server_request_duration_seconds"]
    assert len(found) == MAX_SERIES + 1
    assert found[("_OTHER",) * 7].count == 10


def test_methods_and_statuses_of_http() -> None:
    figures, counts = RequestFigures(), Figures()
    for method in ("GET", "BREW"):
        figures.http_began(method)
    figures.http_ended("BREW", "", 405, 0.1)
    figures.count(counts)
    assert counts.values["http_server_active_requests"] == {("GET",): 1, ("_OTHER",): 0}
    assert counts.distributions["http_server_request_duration_seconds"][("_OTHER", "", "405")].count == 1


# Live figures


def look(at_s: float, tokens: int, ttft: Distribution, pauses: Distribution, running: int = 0) -> Look:
    figures = Figures()
    figures.add("vmm_model_memory_bytes", ECHO, 1000)
    figures.add("vmm_requests_running", ECHO, running)
    figures.add("vmm_tokens_generated", ECHO, tokens)
    figures.add("vmm_errors", ("ModelNotFound", "openai"), tokens // 10)
    figures.add_distribution(
        "gen_ai_server_time_to_first_token_seconds", ("chat", "vmm", ECHO[0], ECHO[0], "echo", "CPU"), ttft
    )
    figures.add_distribution("vmm_inter_token_seconds", ECHO, pauses)
    return Look(at_s, figures, 5000)


def spread(bounds: tuple[float, ...], *counts: int) -> Distribution:
    return Distribution(bounds, (*counts, *(0,) * (len(bounds) + 1 - len(counts))), float(sum(counts)))


def test_a_snapshot_of_two_looks() -> None:
    before = look(10.0, 100, spread(FIRST_TOKEN_S, 0, 50), spread(INTER_TOKEN_S, 9))
    now = look(12.0, 150, spread(FIRST_TOKEN_S, 0, 50, 10), spread(INTER_TOKEN_S, 9), running=3)
    found: Any = snapshot(now, before)
    (model,) = found["models"]
    assert model["model"] == "echo:latest"
    assert model["running"] == 3
    assert model["tokens_per_second"] == 25.0
    assert model["time_to_first_token_p50_s"] == pytest.approx(0.0075)  # those that came since, between 5 and 10 ms
    assert model["inter_token_p95_s"] is None  # no token since
    assert model["kv_blocks"] is None
    assert found["total"]["running"] == 3
    assert found["total"]["errors_per_second"] == 2.5
    assert found["interval_s"] == 2.0
    assert found["process"]["memory_bytes"] == 5000


def test_quantiles_may_be_of_a_longer_time_than_rates() -> None:
    first = look(10.0, 0, spread(FIRST_TOKEN_S, 0), spread(INTER_TOKEN_S, 0))
    before = look(40.0, 100, spread(FIRST_TOKEN_S, 10), spread(INTER_TOKEN_S, 0))
    now = look(41.0, 150, spread(FIRST_TOKEN_S, 10), spread(INTER_TOKEN_S, 0))
    found: Any = snapshot(now, before, first)
    assert found["models"][0]["tokens_per_second"] == 50.0
    assert found["models"][0]["time_to_first_token_p95_s"] == pytest.approx(0.00095)
    assert found["total"]["time_to_first_token_p95_s"] == pytest.approx(0.00095)
    assert found["interval_s"] == 1.0


@pytest.mark.parametrize("name", ["vmm_step_sequences", "vmm_batch_items"])
def test_a_batch_size_is_the_mean_of_what_came_since(name: str) -> None:
    none = spread(INTER_TOKEN_S, 0)
    before, now, later = look(10.0, 0, none, none), look(11.0, 0, none, none), look(12.0, 0, none, none)
    for each, counts, total in ((before, (7, 0, 0), 7.0), (now, (7, 1, 2), 7.0 + 11.0), (later, (7, 1, 2), 18.0)):
        each.figures.add_distribution(name, ECHO, Distribution((1.0, 2.0), counts, total))
        each.figures.add_distribution(
            name, ("other", "echo", "CPU", ""), Distribution((1.0, 2.0), (0, 0, 99), total * 9)
        )
    sizes: Any = [snapshot(now, before), snapshot(later, now), snapshot(now)]
    assert [each["models"][0]["batch_size"] for each in sizes] == [3.67, None, None]


def test_a_snapshot_of_one_look_has_gauges_alone() -> None:
    found: Any = snapshot(look(10.0, 100, spread(FIRST_TOKEN_S, 1), spread(INTER_TOKEN_S, 1)))
    assert found["total"]["memory_bytes"] == 1000
    assert found["total"]["tokens_per_second"] is found["models"][0]["time_to_first_token_p50_s"] is None


def test_a_snapshot_counts_a_model_that_came_since() -> None:
    before = Look(10.0, Figures(), None)
    found: Any = snapshot(look(11.0, 100, spread(FIRST_TOKEN_S, 4), spread(INTER_TOKEN_S, 1)), before)
    assert found["models"][0]["tokens_per_second"] == 100.0
    assert found["models"][0]["time_to_first_token_p95_s"] is not None
