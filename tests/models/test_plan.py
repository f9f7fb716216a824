import pytest

from vmm_adapters.card import CardSource, ModelCard
from vmm_server.errors import InvalidModelName, InvalidRequest, ModelNotFound
from vmm_server.models.plan import Plan, make_plan
from vmm_server.models.registry import Registry, read_cards
from vmm_server.models.sources import RetryPolicy
from vmm_server.models.store import Store

CARD = ModelCard(
    id="tiny:1k",
    aliases=("tiny",),
    title="Tiny",
    license="MIT",
    origin="us",
    source=CardSource(uri="hf:us/tiny"),
    family="llama",
    parameter_size="1K",
    quantization="F32",
    context_length=64,
)


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, [CARD])


def plan(registry: Registry, reference: str, name: str | None = None) -> Plan:
    return make_plan(reference, name, registry, RetryPolicy())


@pytest.mark.parametrize(
    ("reference", "uri", "name"),
    [
        ("tiny:1k", "hf:us/tiny", "tiny:1k"),
        ("Tiny", "hf:us/tiny", "Tiny:latest"),
        ("tiny:1k@v2", "hf:us/tiny", "tiny:1k@v2"),
        ("tiny@v2", "hf:us/tiny", "tiny:latest@v2"),
        ("registry.ollama.ai/library/tiny", "hf:us/tiny", "tiny:latest"),
        ("hf.co/Org/Repo-GGUF", "hf:Org/Repo-GGUF", "hf.co/Org/Repo-GGUF:latest"),
        ("hf.co/org/repo:latest", "hf:org/repo", "hf.co/org/repo:latest"),
        ("huggingface.co/org/repo:q8_0", "hf:org/repo:q8_0", "huggingface.co/org/repo:q8_0"),
        ("HF.co/org/repo:m-Q8_0.gguf", "hf:org/repo:m-Q8_0.gguf", "HF.co/org/repo:m-Q8_0.gguf"),
        ("https://huggingface.co/org/repo", "hf:org/repo", "huggingface.co/org/repo:latest"),
        ("https://hf.co/org/repo:Q8_0", "hf:org/repo:Q8_0", "hf.co/org/repo:Q8_0"),
        ("https://huggingface.co/org/repo/", "hf:org/repo", "huggingface.co/org/repo:latest"),
        ("https://huggingface.co/org/repo/blob/main/x/m.gguf", "hf:org/repo@main/x/m.gguf", None),
        ("https://huggingface.co/org/repo/tree/v1/", "hf:org/repo@v1", None),
        ("https://huggingface.co/org/repo/resolve/main/m.gguf", None, None),
        ("https://huggingface.co/m.gguf", None, None),
        ("hf:org/repo:Q8_0", "hf:org/repo:Q8_0", None),
        ("https://example.com/m.gguf", None, None),
    ],
)
def test_a_model_is_called_as_it_was_asked_for(
    registry: Registry, reference: str, uri: str | None, name: str | None
) -> None:
    made = plan(registry, reference)
    assert made.source.uri == (uri or reference)
    assert (str(made.name) if made.name else None) == name
    assert (made.card == CARD) == ("tiny" in reference.lower())
    assert str(plan(registry, reference, "mine").name) == "mine:latest"


@pytest.mark.parametrize(
    ("reference", "kind", "hint"),
    [
        ("tiny:2k", ModelNotFound, "there is tiny:1k"),
        ("tinny", ModelNotFound, "did you mean tiny:1k?"),
        ("elsewhere", ModelNotFound, "hf.co/org/repo[:Q4_K_M]"),
        ("example.com/org/repo", ModelNotFound, "example.com is not asked for models"),
        ("someone/tiny", ModelNotFound, ""),
        ("tiny@sha256:" + "ab" * 32, InvalidRequest, "pull tiny:latest"),
        ("tiny@sha256:ab", InvalidModelName, ""),
        ("hf.co/a/b/c", InvalidModelName, ""),
    ],
)
def test_a_name_that_cannot_be_pulled_says_what_can(
    registry: Registry, reference: str, kind: type[InvalidRequest], hint: str
) -> None:
    with pytest.raises(kind) as caught:
        plan(registry, reference)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("llama3.2", "hf:bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M"),
        ("llama3.2:1b", "hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M"),
        ("qwen2.5-coder:7b-instruct-q4_K_M", "hf:bartowski/Qwen2.5-Coder-7B-Instruct-GGUF:Q4_K_M"),
        ("deepseek-r1:1.5b", "hf:bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF:Q4_K_M"),
    ],
)
def test_names_of_ollamas_library(store: Store, name: str, uri: str) -> None:
    assert plan(Registry(store, read_cards([])), name).source.uri == uri
