"""Tries a grammar in a process of its own, which may be killed: what some grammars cost has no bound.

llguidance bounds the work of lexers and parsers, but not what it takes to make them of a schema: an `allOf` of fourteen
patterns needs seconds and a gigabyte, of twenty more than there is of either, and a thread cannot be stopped. So what
`constraints.is_costly` is compiled here first, over single bytes in place of a model's tokens: only what is known to
end is then compiled where the server lives.

This file is the child's program as well, and imports nothing of the server.
"""

import subprocess
import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits

if sys.platform != "win32":
    import resource

MAX_CPU_S = 3
"""Seconds of processor time for one grammar."""
MAX_MEMORY_BYTES = 1024**3
"""Address space for one grammar, its stack included."""
STACK_BYTES = 256 * 1024**2
"""Of a thread that compiles, which recurses; pages are taken as they are touched."""
MAX_LEXER_STATES = 25_000
"""Below llguidance's own number where that allows gigabytes: a state takes up to 2 KB."""
_TIMEOUT_S = 30.0  # on the wall's clock, for a machine that is busy


def parser_limits() -> "LLParserLimits":
    """What a lexer and a parser may do."""
    limits: LLParserLimits = import_module("llguidance").LLParserLimits(
        max_lexer_states=MAX_LEXER_STATES, verbose_errors=False
    )
    return limits


def is_bearable(source: str, timeout_s: float = _TIMEOUT_S) -> bool:
    """Whether a grammar can be compiled, or refused, within the bounds. Blocks; starts a process.

    Raises `OSError` where none can be started.
    """
    command = [sys.executable, "-I", __file__]
    try:
        ended = subprocess.run(command, input=source.encode(), capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0


def _bound_this_process() -> None:
    """Where the system can; elsewhere the time on the wall's clock is all there is."""
    if sys.platform == "win32":
        return
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _compile(source: str) -> None:
    llguidance = import_module("llguidance")
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), source, log_level=0, limits=parser_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()


def _main() -> None:
    """Ends with 0 when the grammar on stdin was compiled or refused; killed by the system when it takes too much."""
    _bound_this_process()
    source = sys.stdin.buffer.read().decode()
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_compile, args=(source,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
