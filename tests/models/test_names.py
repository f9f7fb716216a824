import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import InvalidModelName
from vmm_server.models.names import MAX_LENGTH, ModelName, derive_name

FIRST = string.ascii_letters + string.digits + "_"
parts = st.builds(str.__add__, st.sampled_from(FIRST), st.text(FIRST + "-", max_size=20))
names = st.builds(ModelName, parts, parts, parts, parts)


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
    ],
)
def test_short_form(text: str, short: str) -> None:
    assert str(ModelName.parse(text)) == short


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", ":b", "/a", "a/", "a//b", "-a", ".a", "a b", "../../etc/passwd", "a/b/c/d", "ä", "a:b:c/d:", "a\n",
     "a+b", "a@b", "a.b/c", "x" * (MAX_LENGTH + 1), "x" * 81],
)  # fmt: skip
def test_malformed_names_are_refused(text: str) -> None:
    with pytest.raises(InvalidModelName) as caught:
        ModelName.parse(text)
    assert caught.value.param == "model"
    assert repr(text) in (caught.value.hint or "")


@given(names)
def test_the_short_form_means_the_same_name(name: ModelName) -> None:
    again = ModelName.parse(str(name))
    assert again.key == name.key
    assert str(again) == str(name)


@given(names, names)
def test_file_names_are_safe_and_differ_when_names_do(one: ModelName, other: ModelName) -> None:
    assert (one.file_stem == other.file_stem) == (one.key == other.key)
    assert not set(one.file_stem) & set('/\\:*?"<>|')
    assert one.file_stem == one.file_stem.lower()


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
