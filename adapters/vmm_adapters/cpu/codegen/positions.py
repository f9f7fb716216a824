"""Queries and keys get their norms and positions, and keys and values go to their blocks."""

from typing import Any

import numpy as np

from vmm_adapters.cpu.codegen.attention import kv_block_bytes
from vmm_adapters.cpu.codegen.compiled import compiled
from vmm_adapters.cpu.codegen.memory import read_f32, read_i32, read_i64, to_half, write_f32, write_u8, write_u16
from vmm_adapters.cpu.codegen.team import finish, take_task
from vmm_adapters.cpu.formats import BLOCK_SIZE, FACTORS, WIDTH

_ZERO, _ONE = np.float32(0), np.float32(1)


@compiled  # type: ignore[untyped-decorator]
def rotate_and_store(share: Any, phase: int, layer: Any) -> None:
    """Queries and keys get their norms and positions, keys and values go to their blocks."""
    step, model = share.step, share.model
    num_tokens, heads, head = step.num_tokens, layer.num_kv_heads, layer.head_size
    group = layer.num_heads // heads
    padded = (head + WIDTH - 1) // WIDTH * WIDTH
    key_bytes = kv_block_bytes(heads, head, model.is_narrow)
    value_bytes = kv_block_bytes(heads, padded, model.is_narrow)
    # a norm over all heads needs all of them as they were
    is_whole = layer.query_norm_size > head or layer.key_norm_size > head
    pieces = 1 if is_whole else heads
    num_done = 0
    while True:
        task = take_task(share, phase, num_tokens * pieces)
        if task < 0:
            break
        num_done += 1
        token, piece = task // pieces, task % pieces
        row = step.projected + token * step.projected_stride
        queries, keys = row + 4 * layer.query_at, row + 4 * layer.key_at
        if is_whole:
            if layer.query_norm:
                _normalize(queries, layer.num_heads * head, layer.query_norm, model.epsilon)
            if layer.key_norm:
                _normalize(keys, heads * head, layer.key_norm, model.epsilon)
        chunk, position = read_i32(step.token_chunks + 4 * token), read_i64(step.positions + 8 * token)
        entry = read_i32(step.table_begins + 4 * chunk) + position // BLOCK_SIZE
        block = read_i32(step.block_tables + 4 * entry)
        key_block, value_block = layer.keys + block * key_bytes, layer.values + block * value_bytes
        first, last = (0, heads) if is_whole else (piece, piece + 1)
        for index in range(first, last):
            for query in range(index * group, (index + 1) * group):
                at = queries + 4 * query * head
                if layer.query_norm and not is_whole:
                    _normalize(at, head, layer.query_norm, model.epsilon)
                _rotate(at, position, layer)
                for d in range(head):
                    write_f32(at + 4 * d, read_f32(at + 4 * d) * layer.scale)
            at = keys + 4 * index * head
            if layer.key_norm and not is_whole:
                _normalize(at, head, layer.key_norm, model.epsilon)
            _rotate(at, position, layer)
            place = position % BLOCK_SIZE
            _store_key(key_block, index, heads, head, place, at, model.is_narrow)
            value = row + 4 * (layer.value_at + index * head)
            _store_value(value_block, index, heads, head, padded, place, value, model.is_narrow)
    finish(share, phase, num_tokens * pieces, num_done)


@compiled  # type: ignore[untyped-decorator]
def _normalize(at: int, count: int, weights: int, epsilon: Any) -> None:
    total = np.float32(0)
    for d in range(count):
        x = read_f32(at + 4 * d)
        total += x * x
    factor = _ONE / np.sqrt(total / np.float32(count) + epsilon)
    for d in range(count):
        write_f32(at + 4 * d, read_f32(at + 4 * d) * factor * read_f32(weights + 4 * d))


@compiled  # type: ignore[untyped-decorator]
def _rotate(at: int, position: int, layer: Any) -> None:
    half = layer.rotary_half
    cosines, sines = layer.cosines + 4 * position * half, layer.sines + 4 * position * half
    apart, step = (4, 8) if layer.is_interleaved else (4 * half, 4)
    for i in range(half):
        cosine, sine = read_f32(cosines + 4 * i), read_f32(sines + 4 * i)
        first, second = read_f32(at + step * i), read_f32(at + step * i + apart)
        write_f32(at + step * i, first * cosine - second * sine)
        write_f32(at + step * i + apart, second * cosine + first * sine)


@compiled  # type: ignore[untyped-decorator]
def _store_key(block: int, index: int, num_heads: int, head: int, place: int, values: int, is_narrow: bool) -> None:
    """Write one head's key, float32 at `values`, to its place in a block."""
    if not is_narrow:
        at = block + index * head * 2 * WIDTH + 2 * place
        for d in range(head):
            write_u16(at + d * 2 * WIDTH, to_half(read_f32(values + 4 * d)))
        return
    low, scale = _range(values, head)
    at = block + index * head * WIDTH + place
    for d in range(head):
        write_u8(at + d * WIDTH, _level(read_f32(values + 4 * d), low, scale))
    _store_factors(block + num_heads * head * WIDTH + index * FACTORS + 4 * place, low, scale)


@compiled  # type: ignore[untyped-decorator]
def _store_value(
    block: int, index: int, num_heads: int, head: int, padded: int, place: int, values: int, is_narrow: bool
) -> None:
    """The same of a value, of `padded` numbers in the block."""
    if not is_narrow:
        at = block + (index * WIDTH + place) * 2 * padded
        for d in range(head):
            write_u16(at + 2 * d, to_half(read_f32(values + 4 * d)))
        return
    low, scale = _range(values, head)
    at = block + (index * WIDTH + place) * padded
    for d in range(head):
        write_u8(at + d, _level(read_f32(values + 4 * d), low, scale))
    _store_factors(block + num_heads * padded * WIDTH + index * FACTORS + 4 * place, low, scale)


@compiled  # type: ignore[untyped-decorator]
def _store_factors(at: int, low: Any, scale: Any) -> None:
    write_f32(at, scale)
    write_f32(at + 4 * WIDTH, low)


@compiled  # type: ignore[untyped-decorator]
def _range(values: int, count: int) -> Any:
    low = high = read_f32(values)
    for d in range(1, count):
        x = read_f32(values + 4 * d)
        low, high = min(low, x), max(high, x)
    return low, (high - low) / np.float32(255)


@compiled  # type: ignore[untyped-decorator]
def _level(x: Any, low: Any, scale: Any) -> Any:
    if scale <= _ZERO:
        return np.uint8(0)
    return np.uint8(min(np.float32(255), (x - low) / scale + np.float32(0.5)))
