"""One call of a pipeline's `generate`, on a thread of its own, and the tokens that it hands over meanwhile."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

import openvino_genai as og

from vmm_adapters.errors import AdapterError, OutOfMemory, runtime_errors
from vmm_adapters.openvino_genai.generation import ends
from vmm_adapters.types import FinishReason, TextOutput, TextRequest

_PATIENCE_S = 0.02
"""How long `read` waits for a token."""


class _Streamer(og.StreamerBase):  # type: ignore[misc]
    """Takes tokens on the runtime's thread."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.tokens: SimpleQueue[int | None] = SimpleQueue()
        """`None` after the last one."""
        self.is_aborted = Event()
        self._left = most

    def write(self, token: int | list[int]) -> Any:
        """Called by the runtime after each draw; what it is told back may come a token late."""
        for token_id in [token] if isinstance(token, int) else token:
            if self._left == 0:
                break
            self.tokens.put(token_id)
            self._left = None if self._left is None else self._left - 1
        if self.is_aborted.is_set():
            return og.StreamingStatus.CANCEL
        return og.StreamingStatus.STOP if self._left == 0 else og.StreamingStatus.RUNNING

    def end(self) -> None:
        """Called by the runtime after the last token."""


class Generating:
    """A request under way. `generate(streamer)` gives the runtime's results."""

    def __init__(
        self, request: TextRequest, generate: Callable[[Any], Any], thread: Executor, *, num_prompt_tokens: int | None
    ) -> None:
        self.request = request
        self._streamer = _Streamer(request.sampling.max_tokens)
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0
        self._last_token: int | None = None
        self._held: list[int] = []
        """The last tokens, until the runtime has told how long the prompt was: a reader stops at them."""
        self._result: Future[Any] = thread.submit(self._generate, generate)
        self._result.add_done_callback(lambda _: self._streamer.tokens.put(None))

    def abort(self) -> None:
        """Make the runtime stop at its next token. Nothing may be read any more."""
        self._streamer.is_aborted.set()

    def read(self) -> TextOutput | None:
        """What is new, after a moment's wait; the last one has a finish reason or an error."""
        token_ids, is_over = self._held, False
        num_held = len(token_ids)
        try:
            token_id = self._streamer.tokens.get(timeout=_PATIENCE_S)
            while token_id is not None:
                token_ids.append(token_id)
                token_id = self._streamer.tokens.get_nowait()
            is_over = True
        except Empty:
            pass
        self._num_tokens += len(token_ids) - num_held
        self._last_token = token_ids[-1] if token_ids else self._last_token
        if is_over:
            return self._finished(tuple(token_ids))
        if not token_ids or (self._num_prompt_tokens is None and self._is_last()):
            return None
        self._held = []
        return TextOutput(self.request.id, tuple(token_ids), num_prompt_tokens=self._num_prompt_tokens)

    def _is_last(self) -> bool:
        return self._last_token in ends(self.request) or self._num_tokens == self.request.sampling.max_tokens

    def _generate(self, generate: Callable[[Any], Any]) -> Any:
        if self._streamer.is_aborted.is_set():
            return None
        with runtime_errors("generating an answer", RuntimeError, ValueError):
            return generate(self._streamer)

    def _finished(self, token_ids: tuple[int, ...]) -> TextOutput:
        request = self.request
        try:
            results = self._result.result()
        except AdapterError as error:
            return TextOutput(request.id, token_ids, error=error)
        num_prompt_tokens = self._num_prompt_tokens or results.perf_metrics.get_num_input_tokens()
        if self._last_token in ends(request):
            finish_reason = FinishReason.STOP
        elif (
            self._num_tokens == request.sampling.max_tokens
            or results.finish_reasons[0] == og.GenerationFinishReason.LENGTH
        ):
            finish_reason = FinishReason.LENGTH
        else:
            full = OutOfMemory("the KV cache has no room for this answer", hint="raise memory_budget")
            return TextOutput(request.id, token_ids, error=full)
        return TextOutput(request.id, token_ids, finish_reason, num_prompt_tokens)
