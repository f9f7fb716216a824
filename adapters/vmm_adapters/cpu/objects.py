"""Object files of a compiler, put where they can run, without the compiler: its code would be 50 MB of memory.

They are ELF of 64 bits, little-endian, on every system (System V ABI, chapters 4 and 5). What `codegen` emits is whole:
it calls nothing by name, has nothing that is written to, and refers to its own constants and functions alone. An object
that does not is refused.
"""

import ctypes
import mmap
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_SYMBOL_TABLE, _RELOCATIONS, _NO_BITS = 2, 4, 8
_WRITABLE, _LOADED = 1, 2
_GLOBAL = 1


class BadObject(ValueError):
    """This is no object file that can be loaded here."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class _Symbol(NamedTuple):
    name: str
    is_global: bool
    section: int
    """0: it is somebody else's."""
    value: int


def _write_64(image: memoryview, at: int, value: int) -> None:
    struct.pack_into("<Q", image, at, value % (1 << 64))


def _write_move(shift: int) -> Callable[[memoryview, int, int], None]:
    """16 bits of an address, into an instruction that moves as many to a register."""

    def write(image: memoryview, at: int, value: int) -> None:
        (word,) = struct.unpack_from("<I", image, at)
        struct.pack_into("<I", image, at, word & ~(0xFFFF << 5) | (value >> shift & 0xFFFF) << 5)

    return write


_X86_64, _AARCH64 = 62, 183
_Writer = Callable[[memoryview, int, int], None]
_WRITERS: dict[tuple[int, int], _Writer] = {
    (_X86_64, 1): _write_64,
    **{(_AARCH64, 263 + index): _write_move(16 * (index // 2)) for index in range(7)},
}
"""By machine and relocation: R_X86_64_64 (AMD64 supplement, 4.4.1); R_AARCH64_MOVW_UABS_G0 to G3 (ELF for the Arm
64-bit Architecture, 5.7). All that addresses in full take; others are refused."""


class Code:
    """The functions of an object file; they live as long as this does."""

    def __init__(self, compiled: bytes) -> None:
        """Raises `BadObject`, and `OSError` where the system lets no memory become code."""
        try:
            image, symbols, places = _laid_out(compiled)
            self._pages = _Pages(len(image))
            _relocate(compiled, memoryview(image), symbols, places, self._pages.address)
        except (struct.error, IndexError) as error:
            raise BadObject(f"the object file is damaged: {error}") from error
        self._pages.fill(bytes(image))
        self.addresses = {
            symbol.name: self._pages.address + places[symbol.section] + symbol.value
            for symbol in symbols
            if symbol.is_global and symbol.section in places
        }
        """Of its global functions, by name."""


def _laid_out(compiled: bytes) -> tuple[bytearray, list[_Symbol], dict[int, int]]:
    """The sections that are loaded, one after the other; the symbols; where each section begins, by its number."""
    magic, width, order, *_ = _HEADER.unpack_from(compiled)
    if (magic, width, order) != (b"\x7fELF", 2, 1):
        raise BadObject("this is no ELF of 64 bits, little-endian")
    image, places = bytearray(), dict[int, int]()
    sections = _sections(compiled)
    names = sections[_HEADER.unpack_from(compiled)[-1]].offset
    for number, section in enumerate(sections):
        # how to unwind: nothing is ever thrown through these functions
        if not section.flags & _LOADED or _text(compiled, names + section.name) == ".eh_frame":
            continue
        if section.size and (section.flags & _WRITABLE or section.kind == _NO_BITS):
            raise BadObject(f"it has {_text(compiled, names + section.name)}, which is written to")
        image += bytes(-len(image) % max(section.alignment, 1))
        places[number] = len(image)
        content = compiled[section.offset : section.offset + section.size]
        if len(content) < section.size:
            raise BadObject("the object file is cut off")
        image += content
    return image, _symbols(compiled, sections), places


def _sections(compiled: bytes) -> list[_Section]:
    fields = _HEADER.unpack_from(compiled)
    start, count = fields[8], fields[14]
    return [_Section(*_SECTION.unpack_from(compiled, start + _SECTION.size * number)) for number in range(count)]


def _symbols(compiled: bytes, sections: list[_Section]) -> list[_Symbol]:
    found = []
    for table in sections:
        if table.kind == _SYMBOL_TABLE:
            names = sections[table.link].offset
            for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
                name, info, _, section, value, _ = _SYMBOL.unpack_from(compiled, at)
                found.append(_Symbol(_text(compiled, names + name), info >> 4 == _GLOBAL, section, value))
    return found


def _text(compiled: bytes, at: int) -> str:
    return compiled[at : compiled.find(b"\0", at)].decode(errors="replace")


def _relocate(compiled: bytes, image: memoryview, symbols: list[_Symbol], places: dict[int, int], base: int) -> None:
    machine = _HEADER.unpack_from(compiled)[4]
    for section in _sections(compiled):
        if section.kind != _RELOCATIONS or section.info not in places:
            continue
        for offset, kind, symbol, addend in _relocations(compiled, section):
            target = symbols[symbol]
            if target.section not in places:
                raise BadObject(f"it needs {target.name or 'something'} of others")
            if (write := _WRITERS.get((machine, kind))) is None:
                raise BadObject(f"it has relocations of type {kind} for machine {machine}")
            at = places[section.info] + offset
            write(image, at, base + places[target.section] + target.value + addend)


def _relocations(compiled: bytes, section: _Section) -> Iterator[tuple[int, int, int, int]]:
    """Offset, type, symbol and addend."""
    for at in range(section.offset, section.offset + section.size, _RELOCATION.size):
        offset, info, addend = _RELOCATION.unpack_from(compiled, at)
        yield offset, info & 0xFFFFFFFF, info >> 32, addend


class _Pages:
    """Memory that is written once, and then is code: never both."""

    def __init__(self, size: int) -> None:
        self._size = max(size, 1)
        if sys.platform == "win32":
            allocate = ctypes.windll.kernel32.VirtualAlloc
            allocate.restype = ctypes.c_void_p
            commit, read_write = 0x3000, 0x04
            self.address: int = allocate(None, ctypes.c_size_t(self._size), commit, read_write) or 0
            if not self.address:
                raise ctypes.WinError()
        else:
            self._mapped = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._pinned = ctypes.c_char.from_buffer(self._mapped)
            self.address = ctypes.addressof(self._pinned)

    def fill(self, image: bytes) -> None:
        """Write it, and let it run. Raises `OSError`."""
        ctypes.memmove(self.address, image, len(image))
        start, size = ctypes.c_void_p(self.address), ctypes.c_size_t(self._size)
        if sys.platform == "win32":
            kernel, execute_read = ctypes.windll.kernel32, 0x20
            if not kernel.VirtualProtect(start, size, execute_read, ctypes.byref(ctypes.c_uint32())):
                raise ctypes.WinError()
            kernel.FlushInstructionCache(ctypes.c_void_p(-1), start, size)
            return
        library: Any = ctypes.CDLL(None, use_errno=True)
        if library.mprotect(start, size, mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "memory must not become code here (mprotect)")
        # Arm's caches of instructions do not see what was written; Linux clears them with mprotect
        if sys.platform == "darwin":
            library.sys_icache_invalidate(start, size)

    def __del__(self) -> None:
        if sys.platform == "win32" and self.address:
            ctypes.windll.kernel32.VirtualFree(ctypes.c_void_p(self.address), ctypes.c_size_t(0), 0x8000)
