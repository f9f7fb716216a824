"""Makes the checkpoints of this folder and what PyTorch computes with them, once.

    python make.py    # torch 2.13, float32 on a CPU

`efficientnet.pth` (older format) is an EfficientNet-Lite of seven stages and a few channels with random weights;
`logits.npz` has what it says of `numpy.random.default_rng(0).standard_normal((2, 3, 224, 224))`, the padding being
TensorFlow's. `tensors.pth` (older) and `tensors.zip.pth` (today's) hold the same tensors: of several types, views of
one storage, transposed, a parameter, a number alone; `tensors.npz` has their values.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

HERE = Path(__file__).parent
STAGES = (
    (1, 3, 1, 1, 4),
    (2, 3, 2, 2, 6),
    (1, 5, 2, 2, 8),
    (1, 3, 2, 2, 4),
    (1, 5, 1, 2, 6),
    (1, 5, 2, 2, 8),
    (1, 3, 1, 2, 4),
)
"""Blocks, kernel, stride, how much wider inside, channels that leave."""


def make_efficientnet():
    state = OrderedDict()

    def add(name, norm, out, given, kernel):
        state[f"{name}.weight"] = torch.randn(out, given, kernel, kernel) * (2 / (given * kernel**2)) ** 0.5
        for part, value in {
            "weight": 1 + torch.randn(out) * 0.1,
            "bias": torch.randn(out) * 0.5,
            "running_mean": torch.randn(out) * 0.1,
            "running_var": 1 + torch.rand(out),
            "num_batches_tracked": torch.tensor(7),
        }.items():
            state[f"{norm}.{part}"] = value

    add("_conv_stem", "_bn0", 4, 3, 3)
    index, given = 0, 4
    for blocks, kernel, _, wider, out in STAGES:
        for _ in range(blocks):
            base, inner = f"_blocks.{index}.", given * wider
            if wider > 1:
                add(f"{base}_expand_conv", f"{base}_bn0", inner, given, 1)
            add(f"{base}_depthwise_conv", f"{base}_bn1", inner, 1, kernel)
            add(f"{base}_project_conv", f"{base}_bn2", out, inner, 1)
            index, given = index + 1, out
    add("_conv_head", "_bn1", 12, given, 1)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(5, 12), torch.randn(5)
    return state


def run(state, value):
    def convolve(value, name, norm, stride=1, groups=1, last=False):
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        size = value.shape[-1]
        extra = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        value = functional.pad(value, (extra // 2, extra - extra // 2) * 2)
        value = functional.conv2d(value, weight, stride=stride, groups=groups)
        numbers = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        value = functional.batch_norm(value, *numbers, eps=1e-3)
        return value if last else functional.relu6(value)

    value = convolve(value, "_conv_stem", "_bn0", 2)
    index = 0
    for blocks, _, stride, wider, out in STAGES:
        for block in range(blocks):
            base, given, step = f"_blocks.{index}.", value, stride if block == 0 else 1
            if wider > 1:
                value = convolve(value, f"{base}_expand_conv", f"{base}_bn0")
            value = convolve(value, f"{base}_depthwise_conv", f"{base}_bn1", step, value.shape[1])
            value = convolve(value, f"{base}_project_conv", f"{base}_bn2", last=True)
            value = value + given if step == 1 and given.shape[1] == out else value
            index += 1
    value = convolve(value, "_conv_head", "_bn1").mean((2, 3))
    return functional.linear(value, state["_fc.weight"], state["_fc.bias"])


def main():
    torch.manual_seed(0)
    state = make_efficientnet()
    torch.save(state, HERE / "efficientnet.pth", _use_new_zipfile_serialization=False)
    given = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    np.savez_compressed(HERE / "logits.npz", logits=run(state, torch.from_numpy(given)).numpy())
    base = torch.arange(24.0)
    tensors = OrderedDict(
        whole=base.reshape(2, 3, 4),
        turned=base.reshape(4, 6).t(),
        part=base[5:17:2],
        half=torch.tensor([1.5, -2.0], dtype=torch.float16),
        numbers=torch.tensor([[1, -2], [3, 4]]),
        alone=torch.tensor(3.5),
        learnt=torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])),
    )
    for name, is_zip in (("tensors.pth", False), ("tensors.zip.pth", True)):
        torch.save(tensors, HERE / name, _use_new_zipfile_serialization=is_zip)
    np.savez_compressed(HERE / "tensors.npz", **{key: value.detach().numpy() for key, value in tensors.items()})


if __name__ == "__main__":
    main()
