"""Grafana's dashboard: it asks for figures that there are, by labels that they have."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import ProcessCollector

from vmm_server.metrics.families import FAMILIES

FOLDER = Path(__file__).parents[1] / "deploy"
BOARD: Any = json.loads((FOLDER / "helm" / "vmm" / "dashboards" / "vmm.json").read_text())
PANELS = BOARD["panels"]
CHARTS = [panel for panel in PANELS if panel["type"] != "row"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in CHARTS for target in panel["targets"]]
ENDS = {"gauge": ("",), "counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_count", "_sum")}
LABELS = {
    family.name + end: {*family.labels, *(("le",) if end == "_bucket" else ())}
    for family in FAMILIES
    for end in ENDS[family.kind]
}
"""Name of a series → its labels."""
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""
WORDS = {"and", "by", "histogram_quantile", "increase", "offset", "on", "or", "rate", "sum", "unless", *SCRAPED}


def names(expression: str) -> set[str]:
    """The series that an expression asks for."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on) \([^)]*\)|\$\w+", " ", expression)
    return set(re.findall(r"[a-z_]\w+", bare)) - WORDS


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_what_is_asked_for_is_there(title: str, expression: str) -> None:
    asked = names(expression)
    assert asked
    assert {name for name in asked if not name.startswith("process_")} <= LABELS.keys()
    for name, labels in re.findall(r"(\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', labels)) <= LABELS[name], name
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        assert set(labels.split(", ")) <= set().union(*(LABELS.get(name, set()) for name in asked))


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_quantiles_are_of_buckets(title: str, expression: str) -> None:
    has_buckets = any(name.endswith("_bucket") for name in names(expression))
    assert has_buckets == expression.startswith("histogram_quantile(") == ("sum by (le, " in expression)


def test_figures_of_the_process_are_those_of_the_client_library() -> None:
    exposed = {sample.name for family in ProcessCollector(registry=None).collect() for sample in family.samples}
    if not exposed:
        pytest.skip("the library has figures of processes on Linux alone")
    asked = {name for _, each in EXPRESSIONS for name in names(each) if name.startswith("process_")}
    assert {"process_resident_memory_bytes", "process_open_fds"} <= asked <= exposed


def test_legends_have_labels_that_remain() -> None:
    for panel in CHARTS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            assert shown <= (set(", ".join(kept).split(", ")) if kept else SCRAPED), panel["title"]


def test_every_panel_has_its_own_place_and_number() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in (panel["gridPos"] for panel in PANELS))


def test_titles_are_told_once() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)


def test_everything_comes_from_the_source_that_is_provisioned() -> None:
    provisioned = (FOLDER / "compose" / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    assert "uid: prometheus\n" in provisioned
    asking = [*CHARTS, *(target for panel in CHARTS for target in panel["targets"]), *BOARD["templating"]["list"]]
    assert {each["datasource"]["uid"] for each in asking} == {"prometheus"}


def test_models_and_devices_can_be_chosen() -> None:
    variables = {each["name"]: each for each in BOARD["templating"]["list"]}
    assert list(variables) == ["model", "device"]
    for name, each in variables.items():
        assert each["query"]["query"].startswith("label_values(vmm_model_memory_bytes")
        assert name in LABELS["vmm_model_memory_bytes"]
    used = set(re.findall(r"\$(\w+)", " ".join(expression for _, expression in EXPRESSIONS)))
    assert used == {*variables, "__rate_interval"}


@pytest.mark.parametrize(
    "name",
    [
        *("vmm_requests_running", "vmm_requests_waiting", "vmm_kv_blocks_used", "vmm_preemptions_total"),
        *("vmm_tokens_generated_total", "vmm_prompt_tokens_total", "vmm_cached_tokens_total"),
        *("gen_ai_server_time_to_first_token_seconds_bucket", "vmm_inter_token_seconds_bucket"),
        *("vmm_step_sequences_sum", "vmm_errors_total", "vmm_load_seconds_count", "vmm_unloads_total"),
        *("vmm_tenant_tokens_total", "vmm_tenant_rejections_total", "process_open_fds", "vmm_process_threads"),
    ],
)
def test_the_main_figures_are_shown(name: str) -> None:
    assert any(name in names(expression) for _, expression in EXPRESSIONS)
