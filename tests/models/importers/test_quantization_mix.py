"""Which tensors get which type: llama.cpp's own mixes, as its published files have them."""

from collections.abc import Mapping

import pytest
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from hypothesis import given
from hypothesis import strategies as st

from vmm_server.errors import InvalidRequest
from vmm_server.models.importers.quantization_mix import mix_name, parse_quantization, target_types

MIXES = ("q8_0", "q6_K", "q5_K_M", "q5_K_S", "q5_1", "q5_0", "q4_K_M", "q4_K_S", "q4_1", "q4_0")
LLAMA_2_7B_SENSITIVE = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}
"""The layers whose attn_v and ffn_down are Q6_K in every Q4_K_M file of a model of 32 layers."""


def shapes_of(
    *, layers: int = 32, hidden: int = 4096, tied: bool = False, experts: int = 0
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (32000, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (32000, hidden)
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_{part}.weight": (hidden, hidden) for part in ("q", "k", "v", "output")}
        shapes |= {f"{block}attn_norm.weight": (hidden,), f"{block}attn_q.bias": (hidden,)}
        if experts:
            shapes[f"{block}ffn_gate_inp.weight"] = (experts, hidden)
            shapes |= {f"{block}ffn_{part}_exps.weight": (experts, 512, hidden) for part in ("gate", "up", "down")}
        else:
            shapes |= {f"{block}ffn_{part}.weight": (11008, hidden) for part in ("gate", "up")}
            shapes[f"{block}ffn_down.weight"] = (hidden, 11008)
    return shapes


def types(shapes: Mapping[str, tuple[int, ...]], wanted: str) -> dict[str, str]:
    """Of the tensors that change."""
    found = target_types(shapes, parse_quantization(wanted))
    assert found.keys() == shapes.keys()
    return {name: kind.name for name, kind in found.items() if kind is not None}


@pytest.mark.parametrize(("wanted", "most"), [("q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
def test_the_medium_mixes_give_more_to_every_third_layer_and_both_ends(wanted: str, most: str) -> None:
    found = types(shapes_of(), wanted)
    for part in ("attn_v", "ffn_down"):
        more = {layer for layer in range(32) if found[f"blk.{layer}.{part}.weight"] == "Q6_K"}
        assert more == LLAMA_2_7B_SENSITIVE
    assert found["output.weight"] == "Q6_K"
    others = {kind for name, kind in found.items() if not name.endswith(("attn_v.weight", "ffn_down.weight"))}
    assert others == {most, "Q6_K"}
    assert found["token_embd.weight"] == most


def test_the_small_mixes_give_more_to_the_first_layers_at_most() -> None:
    found = types(shapes_of(), "q4_K_S")
    assert {name for name, kind in found.items() if kind == "Q5_K"} == {
        f"blk.{layer}.{part}.weight" for layer in range(4) for part in ("attn_v", "ffn_down")
    }
    found = types(shapes_of(), "q5_k_s")
    assert {name for name, kind in found.items() if kind != "Q5_K"} == {"output.weight"}


@pytest.mark.parametrize("wanted", ["q6_K", "q8_0"])
def test_where_there_are_many_bits_all_get_the_same(wanted: str) -> None:
    assert set(types(shapes_of(), wanted).values()) == {wanted.upper()}


def test_embeddings_that_make_the_logits_are_treated_like_an_output() -> None:
    assert types(shapes_of(tied=True), "q4_K_M")["token_embd.weight"] == "Q6_K"


def test_vectors_norms_and_routers_stay() -> None:
    found = types(shapes_of(experts=4), "q4_K_M")
    assert not any("norm" in name or "bias" in name or "ffn_gate_inp" in name for name in found)
    assert found["blk.0.ffn_up_exps.weight"] == "Q4_K"
    assert found["blk.0.ffn_down_exps.weight"] == "Q6_K"


def test_eight_experts_get_a_better_attention() -> None:
    found = types(shapes_of(experts=8), "q4_K_M")
    attention = {part: found[f"blk.5.attn_{part}.weight"] for part in ("q", "k", "v", "output")}
    assert attention == {"q": "Q4_K", "k": "Q8_0", "v": "Q8_0", "output": "Q5_K"}


def test_layers_without_attention_are_not_counted() -> None:
    shapes = {
        name: shape for name, shape in shapes_of().items() if "attn" not in name or int(name.split(".")[1]) % 4 == 3
    }
    found = types(shapes, "q4_K_M")
    more = [layer for layer in range(3, 32, 4) if found[f"blk.{layer}.attn_v.weight"] == "Q6_K"]
    assert more == [3, 15, 27, 31]  # numbers 0, 3, 6 and 7 of eight


def test_many_heads_that_share_one_value_projection() -> None:
    shapes = shapes_of(layers=80, hidden=8192)
    shapes |= {f"blk.{layer}.attn_v.weight": (1024, 8192) for layer in range(80)}
    assert {found for name, found in types(shapes, "q4_K_M").items() if "attn_v" in name} == {"Q5_K", "Q6_K"}


@pytest.mark.parametrize(
    ("wanted", "columns", "expected"),
    [
        ("q4_K_M", 576, "Q5_0"),
        ("q5_K_M", 576, "Q5_1"),
        ("q6_K", 576, "Q8_0"),
        ("q4_0", 576, "Q4_0"),
        ("q4_K_M", 40, None),
    ],
)
def test_rows_that_are_no_whole_super_blocks(wanted: str, columns: int, expected: str | None) -> None:
    assert types({"blk.9.ffn_up.weight": (64, columns)}, wanted).get("blk.9.ffn_up.weight") == expected


@given(
    wanted=st.sampled_from(MIXES),
    layers=st.integers(0, 100),
    hidden=st.integers(1, 1024),
    experts=st.sampled_from([0, 2, 8]),
    tied=st.booleans(),
)
def test_rows_are_always_whole_blocks(wanted: str, layers: int, hidden: int, experts: int, tied: bool) -> None:
    shapes = shapes_of(layers=layers, hidden=hidden, experts=experts, tied=tied)
    for name, kind in target_types(shapes, parse_quantization(wanted)).items():
        assert kind is None or shapes[name][-1] % GGML_QUANT_SIZES[kind][0] == 0
        assert kind is None or len(shapes[name]) > 1


@pytest.mark.parametrize("wanted", MIXES)
def test_names_are_read_in_any_case(wanted: str) -> None:
    mix = parse_quantization(wanted)
    assert mix is parse_quantization(wanted.upper()) is parse_quantization(wanted.lower())
    assert mix is LlamaFileType[f"MOSTLY_{wanted.upper()}"]
    assert mix_name(mix) == wanted.upper()


@pytest.mark.parametrize("text", ["q4_K", "q3_K_M", "int4", "", "F16"])
def test_what_cannot_be_made_is_said_with_what_can(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"Q8_0, Q6_K, Q5_K_M, .*Q4_K_M, Q4_K_S.* can") as caught:
        parse_quantization(text)
    assert caught.value.param == "quantize"
