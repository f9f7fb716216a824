"""A llama-shaped GGUF with random weights: 1.07 B parameters in Q4_0 with a tied Q8_0 embedding, TinyLlama's sizes.

python -m bench.random_gguf SOURCE.gguf TARGET.gguf    (the tokeniser is SOURCE's; 654 MB, written in seconds)
"""

import sys
from dataclasses import dataclass

import gguf
import numpy as np
from numpy.typing import NDArray

QuantizationType = gguf.GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a llama decoder."""

    width: int = 2048
    feed_forward: int = 5632
    num_layers: int = 22
    num_heads: int = 32
    num_kv_heads: int = 4
    context_length: int = 8192

    def matrices(self) -> dict[str, tuple[int, int]]:
        """GGUF name → (rows, columns) of a layer's weights."""
        kv_width = self.num_kv_heads * (self.width // self.num_heads)
        return {
            "attn_q": (self.width, self.width),
            "attn_k": (kv_width, self.width),
            "attn_v": (kv_width, self.width),
            "attn_output": (self.width, self.width),
            "ffn_gate": (self.feed_forward, self.width),
            "ffn_up": (self.feed_forward, self.width),
            "ffn_down": (self.width, self.feed_forward),
        }


def random_blocks(
    rng: np.random.Generator, rows: int, columns: int, payload_bytes: int, scale: float
) -> NDArray[np.uint8]:
    """Rows of Q4_0 (payload 16) or Q8_0 (payload 32) blocks: a float16 scale, then 32 random values."""
    blocks = np.empty((rows, columns // 32, 2 + payload_bytes), np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    blocks[..., 2:] = rng.integers(0, 256, (rows, columns // 32, payload_bytes), np.uint8)
    return blocks.reshape(rows, -1)


def write_random_gguf(source: str, target: str, shape: Shape = Shape()) -> None:
    """Write `target` with `source`'s tokeniser and chat template."""
    fields = gguf.GGUFReader(source).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_name("random-1.1b")
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape.width // shape.num_heads)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"].contents())
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"].contents())
    writer.add_token_list(tokens)
    writer.add_token_types(fields["tokenizer.ggml.token_type"].contents())
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(fields["tokenizer.ggml.bos_token_id"].contents())
    writer.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"].contents())
    writer.add_add_bos_token(False)
    writer.add_chat_template(fields["tokenizer.chat_template"].contents())

    rng = np.random.default_rng(0)
    embedding = random_blocks(rng, len(tokens), shape.width, 32, 0.0003)
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=QuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    for layer in range(shape.num_layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape.width, np.float32))
        for name, (rows, columns) in shape.matrices().items():
            blocks = random_blocks(rng, rows, columns, 16, 0.004)
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks, raw_dtype=QuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    source, target = sys.argv[1:]
    write_random_gguf(source, target)
