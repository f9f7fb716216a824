import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import InvalidModelName
from vmm_server.models.names import ModelName, ModelReference, derive_name

FIRST = string.ascii_letters + string.digits + "_"
DIGEST = "0f" * 32


def words(more: str, longest: int = 80) -> st.SearchStrategy[str]:
    tails = st.one_of(
        st.text(FIRST + more, max_size=6), st.text("aA" + more, min_size=longest - 3, max_size=longest - 1)
    )
    return st.builds(str.__add__, st.sampled_from(FIRST), tails)


def any_case(word: str) -> st.SearchStrategy[str]:
    return st.sampled_from([word, word.upper(), word.title()])


hosts = words("-.:", 350) | st.sampled_from(["localhost:5000", "hf.co"]) | any_case("registry.ollama.ai")
namespaces = words("-") | any_case("library")
models = words("-.")
tags = models | any_case("latest")
versions = st.sampled_from(["", "v1", "V1", "2026-11.rc_1", "x" * 32])
names = st.builds(ModelName, hosts, namespaces, models, tags, versions)
written = st.one_of(
    models,
    st.builds("{}:{}".format, models, tags),
    st.builds("{}/{}".format, namespaces, models),
    st.builds("{}/{}/{}:{}".format, hosts, namespaces, models, tags),
    st.builds("https://{}/{}/{}".format, hosts, namespaces, models),
    st.builds("{}:{}@v2".format, models, tags),
)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("smollm2", "smollm2:latest"),
        ("smollm2:135m", "smollm2:135m"),
        ("SmolLM2:135M", "SmolLM2:135M"),
        ("library/smollm2:135m", "smollm2:135m"),
        ("registry.ollama.ai/library/smollm2", "smollm2:latest"),
        ("me/mine:v1.0", "me/mine:v1.0"),
        ("hf.co/org/repo.GGUF:Q4_K_M", "hf.co/org/repo.GGUF:Q4_K_M"),
        ("localhost:5000/org/repo", "localhost:5000/org/repo:latest"),
        ("localhost:5000/org/repo:1", "localhost:5000/org/repo:1"),
        ("https://hf.co/org/repo:q8_0", "hf.co/org/repo:q8_0"),
        ("http://localhost:5000/org/repo", "localhost:5000/org/repo:latest"),
        ("HTTPS://Registry.Ollama.AI/Library/m", "m:latest"),
        ("example.com/library/m", "example.com/library/m:latest"),
        ("smollm2@v2", "smollm2:latest@v2"),
        ("me/SmolLM2:135m@2026-11.RC_1", "me/SmolLM2:135m@2026-11.RC_1"),
        ("h" * 350 + "/" + "n" * 80 + "/" + "m" * 80 + ":" + "t" * 80,) * 2,
    ],
)
def test_short_form(text: str, short: str) -> None:
    assert str(ModelName.parse(text)) == short


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", ":b", "/a", "a/", "a//b", "-a", ".a", "a b", "../../etc/passwd", "a/b/c/d", "ä", "a:b:c/d:", "a\n",
     "a+b", "a@", "a@b@c", "a@b:c", "a@b/c", "a@" + "x" * 33, "a.b/c", "x" * 81, "a:" + "x" * 81,
     "x" * 81 + "/a", "x" * 351 + "/a/b", "localhost:5000/a",
     "https://a", "https://a/b", "ftp://a/b/c", "https://https://a/b/c", "a/https://b", f"a@sha256:{DIGEST}"],
)  # fmt: skip
def test_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidModelName) as caught:
        ModelName.parse(text)
    assert caught.value.param == "model"
    assert repr(text) in (caught.value.hint or "")


@given(written)
def test_the_short_form_means_the_same_name(text: str) -> None:
    name = ModelName.parse(text)
    assert ModelName.parse(str(name)) == name
    assert str(name).lower() in f"{text}:latest".lower()


@given(written)
def test_case_does_not_matter(text: str) -> None:
    upper, lower = ModelName.parse(text.upper()), ModelName.parse(text.lower())
    assert upper.key == lower.key == ModelName.parse(text).key
    assert upper.file_stem == lower.file_stem == ModelName.parse(text).file_stem


@given(names, names)
def test_file_names_are_safe_and_differ_when_names_do(one: ModelName, other: ModelName) -> None:
    assert (one.file_stem == other.file_stem) == (one.key == other.key)
    assert not set(one.file_stem) & set('/\\:*?"<>|')
    assert one.file_stem == one.file_stem.lower()
    assert len(one.file_stem) < 250


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ("SmolLM2:135M", "smollm2@135m"),
        ("me/mine", "me+mine@latest"),
        ("localhost:5000/org/repo:x", "localhost@5000+org+repo@x"),
        ("smollm2:135m@V2", "smollm2@135m@v2"),
    ],
)
def test_files_of_installed_models_keep_their_names(text: str, stem: str) -> None:
    assert ModelName.parse(text).file_stem == stem


def test_long_names_differ_at_their_ends() -> None:
    long = "n" * 80 + "/" + "m" * 80 + ":" + "t" * 79
    assert ModelName.parse(f"{long}1").file_stem != ModelName.parse(f"{long}2").file_stem
    assert len(ModelName.parse(f"{long}1").file_stem) > 200, "no name that is written out can be it"


@given(written, st.sampled_from([None, DIGEST, "AB" * 32]))
def test_a_reference_is_a_name_and_what_it_must_hold(text: str, digest: str | None) -> None:
    reference = ModelReference.parse(f"{text}@sha256:{digest}" if digest else text)
    assert reference.name == ModelName.parse(text)
    assert reference.digest == (digest.lower() if digest else None)
    assert ModelReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "end",
    [
        "@",
        "@sha256:",
        "@sha256:12",
        f"@{DIGEST}",
        f"@md5:{DIGEST}",
        f"@sha256:{DIGEST}@",
        "@x@y",
        f"@sha256:{DIGEST}@x",
    ],
)
def test_anything_else_after_the_at_sign_is_refused(end: str) -> None:
    with pytest.raises(InvalidModelName):
        ModelReference.parse(f"a{end}")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct.q4_1:latest"),
        ("My Model (final) v2", "my-model-final-v2:latest"),
        ("--x--", "x:latest"),
    ],
)
def test_derived_names(text: str, name: str) -> None:
    assert str(derive_name(text)) == name


@given(st.text(min_size=1))
def test_a_derived_name_is_a_name_or_refused(text: str) -> None:
    try:
        name = derive_name(text)
    except InvalidModelName:
        assert not set(text.lower()) & set(string.ascii_lowercase + string.digits + "_")
    else:
        assert ModelName.parse(str(name)) == name
