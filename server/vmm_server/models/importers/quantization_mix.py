"""Which tensor of a model gets which type, for every `quantize` that can be asked for. Pure.

The mixes are llama.cpp's (src/llama-quant.cpp): vectors stay as they are, the matrix that makes logits gets more bits,
and so do, in the `_S` and `_M` mixes, the value projections and the ffn_down of those layers where errors hurt most.
A matrix whose rows are no whole super-blocks falls back to a type of smaller blocks and more bits.
"""

import re
from collections.abc import Mapping

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from vmm_server.errors import InvalidRequest

_Type = GGMLQuantizationType
_BASES = {
    LlamaFileType.MOSTLY_Q8_0: _Type.Q8_0,
    LlamaFileType.MOSTLY_Q6_K: _Type.Q6_K,
    LlamaFileType.MOSTLY_Q5_K_M: _Type.Q5_K,
    LlamaFileType.MOSTLY_Q5_K_S: _Type.Q5_K,
    LlamaFileType.MOSTLY_Q5_1: _Type.Q5_1,
    LlamaFileType.MOSTLY_Q5_0: _Type.Q5_0,
    LlamaFileType.MOSTLY_Q4_K_M: _Type.Q4_K,
    LlamaFileType.MOSTLY_Q4_K_S: _Type.Q4_K,
    LlamaFileType.MOSTLY_Q4_1: _Type.Q4_1,
    LlamaFileType.MOSTLY_Q4_0: _Type.Q4_0,
}
_FALLBACKS = {_Type.Q4_K: _Type.Q5_0, _Type.Q5_K: _Type.Q5_1, _Type.Q6_K: _Type.Q8_0}
"""For rows that are no multiple of 256 weights."""
_MEDIUM = (LlamaFileType.MOSTLY_Q4_K_M, LlamaFileType.MOSTLY_Q5_K_M)
_SMALL_Q4 = LlamaFileType.MOSTLY_Q4_K_S
_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
_STAY = ("_norm.weight", "ffn_gate_inp", "position_embd", "token_types", "per_layer_model_proj", "altup", "laurel")
_STAY_CONVOLUTIONS = ("ssm_conv1d", "shortconv.conv")
"""Parts of the names of small matrices that routing, norms, positions and convolutions need whole."""
_BLOCK = re.compile(r"blk\.(\d+)\.")


def parse_quantization(text: str) -> LlamaFileType:
    """The mix that `quantize` names, in any case. Raises `InvalidRequest` naming those that can be made."""
    if mix := find_mix(text):
        return mix
    raise InvalidRequest(
        f"quantize: {text[:100]!r} cannot be made here; {', '.join(map(mix_name, _BASES))} can",
        param="quantize",
        hint="models of other types can be pulled or uploaded as GGUF files and run as they are",
    )


def find_mix(text: str) -> LlamaFileType | None:
    """The mix of that name, in any case, if it is one that can be made."""
    return {mix_name(mix).lower(): mix for mix in _BASES}.get(text.lower())


def mix_name(mix: LlamaFileType) -> str:
    """As everybody writes it: `Q4_K_M`."""
    name: str = mix.name
    return name.removeprefix("MOSTLY_")


def target_types(
    shapes: Mapping[str, tuple[int, ...]], wanted: LlamaFileType
) -> dict[str, GGMLQuantizationType | None]:
    """What each tensor of a model (GGUF's name → row-major shape) becomes; `None`: it stays as it is."""
    blocks = {name: int(found[1]) for name in shapes if (found := _BLOCK.match(name))}
    num_layers = max(blocks.values(), default=-1) + 1
    # Not every layer of a hybrid model has attention: those that do are counted, as llama.cpp counts them.
    values = sorted((name for name in blocks if name.endswith(_VALUES)), key=lambda name: blocks[name])
    logits = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    num_experts = max((shape[0] for name, shape in shapes.items() if "_exps." in name and len(shape) == 3), default=0)
    return {
        name: target_type(
            name,
            shape,
            wanted,
            layer=values.index(name) if name in values else blocks.get(name, 0),
            num_layers=len(values) if name in values else num_layers,
            makes_logits=name == logits,
            num_experts=num_experts,
        )
        for name, shape in shapes.items()
    }


def target_type(
    name: str,
    shape: tuple[int, ...],
    wanted: LlamaFileType,
    *,
    layer: int,
    num_layers: int,
    makes_logits: bool = False,
    num_experts: int = 0,
) -> GGMLQuantizationType | None:
    """What the tensor `name` of row-major `shape` becomes; `None`: it stays as it is.

    `layer` of `num_layers` are those that have a tensor of this kind.
    """
    if len(shape) < 2 or not name.endswith("weight") or any(part in name for part in (*_STAY, *_STAY_CONVOLUTIONS)):
        return None
    base = _BASES[wanted]
    if makes_logits:
        kind = _Type.Q8_0 if base is _Type.Q8_0 else _Type.Q6_K
    elif name.endswith(_VALUES):
        kind = _values_type(name, shape, wanted, layer, num_layers, num_experts)
    elif num_experts == 8 and name.endswith("attn_k.weight"):
        kind = _Type.Q8_0
    elif num_experts == 8 and name.endswith("attn_output.weight") and base is _Type.Q4_K:
        kind = _Type.Q5_K
    elif "ffn_down" in name and wanted in _MEDIUM and _is_sensitive(layer, num_layers):
        kind = _Type.Q6_K
    elif "ffn_down" in name and wanted is _SMALL_Q4 and layer < num_layers // 8:
        kind = _Type.Q5_K
    else:
        kind = base
    if shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = _FALLBACKS.get(kind, kind)
    return None if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _values_type(
    name: str, shape: tuple[int, ...], wanted: LlamaFileType, layer: int, num_layers: int, num_experts: int
) -> GGMLQuantizationType:
    """Of a value projection: it is small where many heads share one, and all that attention says goes through it."""
    if num_experts == 8:
        return _Type.Q8_0
    kind = _BASES[wanted]
    if wanted in _MEDIUM and _is_sensitive(layer, num_layers):
        return _Type.Q6_K
    if wanted is _SMALL_Q4 and layer < 4:
        kind = _Type.Q5_K
    is_70b = num_layers == 80 and name.endswith("attn_v.weight") and shape[0] * 8 <= shape[-1]
    return _Type.Q5_K if is_70b and kind is _Type.Q4_K else kind


def _is_sensitive(layer: int, num_layers: int) -> bool:
    """The first and last eighth of the layers, and every third between (llama.cpp's `use_more_bits`)."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
