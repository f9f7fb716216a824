"""Reads a pickle of tensors without running it: the data that PyTorch's own pickles are made of, and nothing else.

A pickle is a program for a stack machine; whoever unpickles it runs it, and it may call anything. Here the program is
read instruction by instruction: some thirty are known, none of them calls anything or looks anything up. Classes and
functions are mere names; a few of PyTorch's (a storage's type, "a tensor of this storage", an ordered dictionary) stand
for data of ours, and every other name or instruction ends it.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, TypeGuard, cast

import numpy as np

_MAX_OPERATIONS = 1_000_000
_MAX_STORAGE_BYTES = 1024**3
_MAX_READ_BYTES = 1 << 20
"""Of one instruction's own text or number."""
_MAX_RANK = 8
_STORAGES = {
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch DoubleStorage": "<f8",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ByteStorage": "|u1",
}
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
_KNOWN = (*_STORAGES, _TENSOR, _PARAMETER, _DICT)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_IGNORED = ("PROTO", "FRAME")


class Unreadable(Exception):
    """The program is not one of those that are read; the message says why."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function, by its module and name."""

    text: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers in a row, which tensors are views of."""

    key: str
    dtype: str
    """As NumPy spells it: `<f4`."""
    count: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """Where a tensor's numbers are."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In numbers."""
    start: int
    storage: Storage


def read_program(file: IO[bytes]) -> object:
    """What the program that begins here builds. Raises `Unreadable`, `ValueError`."""
    machine = _Machine()
    for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], _Bounded(file)))):
        if count >= _MAX_OPERATIONS:
            raise Unreadable("is longer than the description of any model")
        if operation.name == "STOP":
            return machine.pop()
        machine.step(operation.name, argument)
    raise EOFError("it ends in the middle")


class _Bounded:
    """A file of which nothing asks for much at once, whatever length a program says that a text has."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_READ_BYTES:
            raise ValueError(f"it has an instruction of {size} bytes")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(_MAX_READ_BYTES)


class _Mark:
    """Where a tuple, list or dictionary begins on the stack."""


class _Machine:
    """The stack and memory of a pickle program. Nothing that it builds is more than plain data."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._memory: dict[int, object] = {}

    def pop(self) -> object:
        if not self._stack:
            raise ValueError("its stack is empty")
        return self._stack.pop()

    def step(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](self)
        elif name == "GLOBAL":
            self._push_name(str(argument))
        elif name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int):
            self._memory[argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            if argument not in self._memory:
                raise ValueError("it looks up what was never noted")
            stack.append(self._memory[argument])
        else:
            raise Unreadable(f"has the instruction {name}, which is not read")

    def _top(self) -> object:
        if not self._stack:
            raise ValueError("its stack is empty")
        return self._stack[-1]

    def _push_name(self, name: str) -> None:
        if name not in _KNOWN:
            raise Unreadable(f"asks for {name.replace(' ', '.')[:200]}: such files can run code")
        self._stack.append(_Name(name))

    def _since_mark(self) -> list[object]:
        values: list[object] = []
        while not isinstance(value := self.pop(), _Mark):
            values.append(value)
        return values[::-1]

    def mark(self) -> None:
        self._stack.append(_Mark())

    def empty_tuple(self) -> None:
        self._stack.append(())

    def empty_list(self) -> None:
        self._stack.append([])

    def empty_dict(self) -> None:
        self._stack.append({})

    def tuple(self) -> None:
        self._stack.append((*self._since_mark(),))

    def tuple1(self) -> None:
        self._stack.append((self.pop(),))

    def tuple2(self) -> None:
        second, first = self.pop(), self.pop()
        self._stack.append((first, second))

    def tuple3(self) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self._stack.append((first, second, third))

    def append(self) -> None:
        self._extend([self.pop()])

    def appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise ValueError("it appends to no list")
        target += values

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def set_items(self) -> None:
        self._update(self._since_mark())

    def _update(self, pairs: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("it puts entries into no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise ValueError("it has a key that is neither a text nor a number")
            target[key] = value

    def build(self) -> None:
        """Attributes of the object below, which are not needed: PyTorch notes versions of layers there."""
        self.pop()
        if not isinstance(self._top(), dict):
            raise Unreadable("sets attributes of what is no dictionary")

    def persistent(self) -> None:
        """A storage, as `("storage", type, key, device, count)`."""
        told = self.pop()
        if not isinstance(told, tuple) or len(told) < 5 or told[0] != "storage":
            raise ValueError("it refers to what is no storage")
        kind, key, count = told[1], told[2], told[4]
        dtype = _STORAGES.get(kind.text) if isinstance(kind, _Name) else None
        if dtype is None or not isinstance(key, str) or not _is_size(count):
            raise ValueError("it refers to a storage that cannot be read")
        if count * np.dtype(dtype).itemsize > _MAX_STORAGE_BYTES:
            raise Unreadable(f"has a storage of {count} numbers, which is more than is read")
        self._stack.append(Storage(key, dtype, count))

    def reduce(self) -> None:
        """What would be a call, of one of the functions that stand for data."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise Unreadable("calls what is no known function")
        if function.text == _DICT and not arguments:
            self._stack.append({})
        elif function.text == _TENSOR:
            self._stack.append(_tensor(arguments))
        elif function.text == _PARAMETER and arguments and isinstance(arguments[0], PickledTensor):
            self._stack.append(arguments[0])
        else:
            raise Unreadable(f"calls {function.text.replace(' ', '.')} in a way that is not read")


_STEPS: Mapping[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "EMPTY_TUPLE": _Machine.empty_tuple,
    "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_DICT": _Machine.empty_dict,
    "TUPLE": _Machine.tuple,
    "TUPLE1": _Machine.tuple1,
    "TUPLE2": _Machine.tuple2,
    "TUPLE3": _Machine.tuple3,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
}


def _tensor(arguments: tuple[object, ...]) -> PickledTensor:
    """`_rebuild_tensor_v2(storage, start, shape, strides, …)`. Raises `ValueError` for one that leaves its storage."""
    if len(arguments) < 4:
        raise ValueError("it has a tensor that cannot be read")
    storage, start, shape, strides = arguments[:4]
    if not (isinstance(storage, Storage) and _is_size(start) and _are_sizes(shape) and _are_sizes(strides)):
        raise ValueError("it has a tensor that cannot be read")
    last = start + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))
    if len(shape) != len(strides) or 0 in shape or last >= storage.count or math.prod(shape) > storage.count:
        raise ValueError("it has a tensor that leaves its storage")
    return PickledTensor(shape, strides, start, storage)


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= _MAX_RANK and all(_is_size(size) for size in value)
