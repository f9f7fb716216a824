"""Every kernel once, each buffer between two pages that nobody may read or write: a process that dies says where.

Run by `test_cpu_guards`: `main(instruction set, folder of compiled kernels)`.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from vmm_adapters.cpu.codegen.kernels import SIZES
from vmm_adapters.cpu.codegen.numerics import NUM_SOURCES
from vmm_adapters.cpu.codegen.pictures import compile_pictures
from vmm_adapters.cpu.codegen.target import host, initialize
from vmm_adapters.cpu.formats import FORMS, WIDTH, Element
from vmm_adapters.cpu.isa import InstructionSet
from vmm_adapters.cpu.resampling import PictureKernels, Weights, weights

from . import cpu_kernels
from .cpu_kernels import Array, Subject, cap, copy, make_panel, multiply_floats, quantize, sum_of_squares
from .cpu_spans import Result, make_span

Call = Callable[[], object]


def guarded(array: Array, *, at_end: bool) -> Array:
    """A copy whose first byte follows a page without access, or whose last one comes right before such a page."""
    num_pages = -(-max(array.nbytes, 1) // mmap.PAGESIZE)
    pages = mmap.mmap(-1, (num_pages + 2) * mmap.PAGESIZE)
    start = np.frombuffer(pages, np.uint8).ctypes.data
    for page in (0, num_pages + 1):
        address = ctypes.c_void_p(start + page * mmap.PAGESIZE)
        if ctypes.CDLL(None, use_errno=True).mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = (num_pages + 1) * mmap.PAGESIZE - array.nbytes if at_end else mmap.PAGESIZE
    moved = np.frombuffer(pages, array.dtype, array.size, offset).reshape(array.shape)
    moved[...] = array
    return moved


def calls(subject: Subject) -> Iterator[tuple[str, Call]]:
    """What every kernel is called, with the least and other sizes, and what calls it and gives its results."""
    rng = np.random.default_rng(1)
    for form, num_blocks, rows, is_last in product(FORMS, (1, 3), SIZES, (False, True)):
        panel = make_panel(form, 1, num_blocks, ("any", "any"), (1e-3, 1), (1e-3, 1))
        at = 16 - rows if is_last else 0
        yield f"panel {form} {rows}", partial(panel.multiply, subject, slice(rows), at=at)
    for element, rows, length in product(Element, SIZES, (1, 9)):
        a = rng.normal(0, 1, (rows, length)).astype(np.float32)
        b = np.ones((length, WIDTH), f"u{element.num_bytes}")
        yield f"floats {element} {rows}", partial(multiply_floats, subject, element, a, b)
    values = rng.normal(0, 1, 96).astype(np.float32)
    for source, (first, place) in product(range(NUM_SOURCES), ((0, 0), (2, 15))):
        words = (subject, source, values, values)
        yield f"quantize {source}", partial(quantize, *words, first=first, place=place, factor=1.0)
        yield f"copy {source}", partial(copy, *words, first=first, factor=1.0)
    for count in (16, 96):
        yield "sum of squares", partial(sum_of_squares, subject, values[:count])
        yield "cap", partial(cap, subject, values[:count], 3.0)
    for is_narrow, softcap, rows, head in product((False, True), (0.0, 5.0), SIZES, (32, 80)):
        span = make_span(1, rows, head, 70, is_narrow=is_narrow, softcap=softcap)
        yield f"span {is_narrow} {softcap} {rows} {head}", partial(span.attend, subject)
    for rows in (1, 5):
        result = Result(*(np.ones(shape, np.float32) for shape in ((rows, 96), rows, rows)))
        yield "fold", partial(result.fold, subject, result)


def picture_calls(move: Callable[[Array], Array]) -> Iterator[tuple[str, Call]]:
    """The same, of both passes of resampling, which are of no instruction set."""
    initialize()
    kernels = PictureKernels(compile_pictures(host()))
    for size, full_size in (((4, 1), (4, 1)), ((8, 8), (4, 3)), ((9, 5), (13, 11)), ((640, 7), (97, 4))):
        pixels = move(np.zeros((size[1], size[0], 4), np.uint8))
        narrow = move(np.zeros((size[1], full_size[0], 4), np.uint8))
        out = move(np.zeros((3, *full_size[::-1]), np.float32))
        across, down = (
            Weights(*map(move, weights(size[axis], full_size[axis], 0, full_size[axis], "bilinear", unit)))
            for axis, unit in ((0, 4), (1, 1))
        )
        numbers = move(np.ones(3, np.float32))
        yield f"rows {size} {full_size}", partial(kernels.resample_rows, pixels, across, narrow)
        yield f"columns {size} {full_size}", partial(kernels.resample_columns, narrow, down, numbers, numbers, out)


def main(isa: str, folder: str) -> None:
    """Run them all, right before a page and right after one, naming each before it runs."""
    plain = cpu_kernels.subject(InstructionSet[isa], Path(folder))
    for at_end in (True, False):
        subject = replace(plain, move=partial(guarded, at_end=at_end))
        for name, call in (*calls(subject), *picture_calls(subject.move)):
            print(f"{name}, {at_end=}", flush=True)  # noqa: T201
            call()
    print("done", flush=True)  # noqa: T201
