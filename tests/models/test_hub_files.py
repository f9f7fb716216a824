from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import ImportFailed, SourceNotFound
from vmm_server.models.sources.hub_files import PREFERRED, choose_files

BARTOWSKI = [
    ".gitattributes",
    "Llama-3.2-1B-Instruct-IQ3_M.gguf",
    "Llama-3.2-1B-Instruct-Q4_0_4_4.gguf",
    "Llama-3.2-1B-Instruct-Q4_K_L.gguf",
    "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
    "Llama-3.2-1B-Instruct-Q8_0.gguf",
    "Llama-3.2-1B-Instruct-f16.gguf",
    "Llama-3.2-1B-Instruct.imatrix",
    "README.md",
]
UNSLOTH = [
    "BF16/m-BF16-00001-of-00002.gguf",
    "BF16/m-BF16-00002-of-00002.gguf",
    "imatrix_unsloth.gguf",
    "m-Q4_K_M.gguf",
    "m-UD-Q4_K_M.gguf",
    "m-UD-Q4_K_XL.gguf",
    "mmproj-F16.gguf",
]
OFFICIAL = ["m-q2_k.gguf", "m-q4_k_m-00001-of-00002.gguf", "m-q4_k_m-00002-of-00002.gguf", "m-q5_0.gguf"]
ENCODER = ["1_Pooling/config.json", "config.json", "modules.json", "onnx/model.onnx", "onnx/model_O2.onnx",
           "pytorch_model.bin", "tokenizer.json"]  # fmt: skip
GENAI = [
    "cpu_and_mobile/int4/genai_config.json",
    "cpu_and_mobile/int4/model.onnx",
    "cuda/int4/genai_config.json",
    "cuda/int4/model.onnx",
]


def choose(paths: list[str], quantization: str | None = None, path: str = "", *, generates: bool = False) -> Any:
    return choose_files(
        "hf:org/repo", "org/repo", sorted(paths), path=path, quantization=quantization, generates=generates
    )


def only(*arguments: Any, **more: Any) -> str:
    paths, root = choose(*arguments, **more)
    assert root is None
    (path,) = paths
    return str(path)


@pytest.mark.parametrize(
    ("quantization", "file"),
    [
        (None, "Q4_K_M"),
        ("Q8_0", "Q8_0"),
        ("q8_0", "Q8_0"),
        ("F16", "f16"),
        ("Llama-3.2-1B-Instruct-Q8_0.gguf", "Q8_0"),
        ("llama-3.2-1b-instruct-q8_0", "Q8_0"),
    ],
)
def test_a_quantization_or_a_file_name_or_q4_k_m(quantization: str | None, file: str) -> None:
    assert only(BARTOWSKI, quantization) == f"Llama-3.2-1B-Instruct-{file}.gguf"


@pytest.mark.parametrize(
    ("quantization", "file"),
    [(None, "m-Q4_K_M.gguf"), ("UD-Q4_K_M", "m-UD-Q4_K_M.gguf"), ("Q4_K_XL", "m-UD-Q4_K_XL.gguf")],
)
def test_a_mix_that_goes_by_a_longer_name_and_files_that_are_no_models(quantization: str | None, file: str) -> None:
    assert only(UNSLOTH, quantization) == file


def test_a_folder_named_after_the_quantization() -> None:
    assert only(["Q4_K_M/model.gguf", "Q8_0/model.gguf"]) == "Q4_K_M/model.gguf"


def test_a_split_file_is_taken_whole() -> None:
    q4_k_m = OFFICIAL[1:3]
    for asked in (None, "q4_k_m", "m-q4_k_m", "m-q4_k_m.gguf", "m-q4_k_m-00001-of-00002.gguf"):
        assert choose(OFFICIAL, asked) == (q4_k_m, None)
    for name in q4_k_m:
        assert choose(OFFICIAL, path=name) == (q4_k_m, None)
    assert only([*OFFICIAL, "m-q4_k_m.gguf"]) == "m-q4_k_m.gguf", "one file before several"
    assert only(OFFICIAL, "q5_0") == "m-q5_0.gguf"
    assert choose(UNSLOTH, "BF16") == (UNSLOTH[:2], None)
    unnamed = ["x-00001-of-00003.gguf", "x-00002-of-00003.gguf", "x-00003-of-00003.gguf"]
    assert choose(unnamed) == (unnamed, None)


@pytest.mark.parametrize("missing", OFFICIAL[1:3])
def test_a_part_that_a_repository_has_not_is_named(missing: str) -> None:
    paths = [path for path in OFFICIAL if path != missing]
    with pytest.raises(ImportFailed, match=f"^hf:org/repo: {missing}: is missing, of 2 parts"):
        choose(paths, "q4_k_m")


def test_parts_of_what_cannot_be_read_are_refused() -> None:
    with pytest.raises(ImportFailed, match="is stored as IQ2_M, which is not read"):
        choose(["m-IQ2_M-00001-of-00002.gguf", "m-IQ2_M-00002-of-00002.gguf"])


@pytest.mark.parametrize(("asked", "kind"), [("IQ3_M", "IQ3_M"), ("q4_0_4_4", "Q4_0_4_4")])
def test_what_the_importer_cannot_read_is_refused_before_it_is_fetched(asked: str, kind: str) -> None:
    with pytest.raises(ImportFailed, match=f"is stored as {kind}, which is not read") as caught:
        choose(BARTOWSKI, asked)
    assert "Q4_K_M" in (caught.value.hint or "")
    with pytest.raises(ImportFailed, match="which is not read"):
        choose(["m-MXFP4.gguf"])


def test_one_file_needs_no_known_name() -> None:
    assert only(["weights.gguf", "README.md"]) == "weights.gguf"
    with pytest.raises(SourceNotFound, match="2 fit") as caught:
        choose(["a.gguf", "b.gguf"])
    assert "hf:org/repo/a.gguf" in (caught.value.hint or "")
    with pytest.raises(SourceNotFound, match="2 fit"):
        choose(["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"])


def test_a_quantization_that_is_not_there_lists_what_is() -> None:
    with pytest.raises(SourceNotFound, match="no GGUF file Q6_K there") as caught:
        choose(BARTOWSKI, "Q6_K")
    assert "Llama-3.2-1B-Instruct-Q8_0.gguf" in (caught.value.hint or "")
    with pytest.raises(SourceNotFound) as caught:
        choose(["config.json", "model.safetensors"], "Q4_K_M")
    assert "org/repo-GGUF" in (caught.value.hint or "")


def test_a_name_inside_another_is_no_match() -> None:
    with pytest.raises(SourceNotFound):
        choose(["mQ4_K_M.gguf", "m-Q4_K_M-x.gguf"], "Q4_K_M")


def test_gguf_files_come_before_folders() -> None:
    assert only([*BARTOWSKI, *GENAI, *ENCODER]) == "Llama-3.2-1B-Instruct-Q4_K_M.gguf"


def test_of_several_folders_the_one_for_cpus() -> None:
    assert choose(GENAI) == (GENAI[:2], "cpu_and_mobile/int4/")
    assert choose(GENAI, path="cuda") == (GENAI[2:], "cuda/int4/")
    with pytest.raises(SourceNotFound, match="2 fit"):
        choose([path.replace("cuda", "cpu-2") for path in GENAI])


def test_an_encoder_and_a_text_model_that_looks_like_one() -> None:
    paths, root = choose(ENCODER)
    assert root == ""
    assert paths == ["config.json", "1_Pooling/config.json", "modules.json", "tokenizer.json", "onnx/model.onnx"]
    assert choose(ENCODER, generates=True) == (paths, ""), "sentence-transformers says that it is an encoder"
    with pytest.raises(SourceNotFound) as caught:
        choose(["config.json", "onnx/model.onnx", "tokenizer.json"], generates=True)
    assert "org/repo-GGUF" in (caught.value.hint or "")


names = st.sampled_from(["m", "Model-7B", "a.b"])
quantizations = st.sampled_from([*PREFERRED, "IQ2_XS", "TQ1_0", "UD-Q4_K_XL", "what"])
files = st.builds("{}{}-{}{}.gguf".format, st.sampled_from(["", "x/", "Q8_0/"]), names, quantizations,
                  st.sampled_from(["", "-00001-of-00002", "-00002-of-00002"]))  # fmt: skip


@given(st.lists(files | st.sampled_from([*GENAI, *ENCODER]), unique=True), st.none() | quantizations)
def test_whatever_a_repository_holds_the_choice_is_of_it_or_an_error_with_a_mend(
    paths: list[str], quantization: str | None
) -> None:
    try:
        chosen, root = choose(paths, quantization)
    except (SourceNotFound, ImportFailed) as error:
        chosen, root, mend = [], "", error.hint
    else:
        mend = "not needed"
        assert chosen
    assert mend
    assert set(chosen) <= set(paths)
    if root is None:
        assert chosen[0].endswith(".gguf")
        assert not quantization or quantization.lower() in chosen[0].lower()


def test_an_openvino_folder_that_sees_is_taken_whole() -> None:
    parts = ("language", "text_embeddings", "vision_embeddings")
    models = [f"openvino_{part}_model.{kind}" for part in parts for kind in ("bin", "xml")]
    small = ["config.json", "openvino_tokenizer.bin", "openvino_tokenizer.xml", "preprocessor_config.json"]
    assert choose([*models, *small, "README.md", ".gitattributes"]) == (sorted([*models, *small]), "")
