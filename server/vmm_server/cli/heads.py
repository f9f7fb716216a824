"""Heads of requests that have an end.

httptools keeps what it is given until a header is whole, and uvicorn all headers until the head is: a client that never
ends either fills the memory. So do trailers behind a body. Counted here is what came without anything to show for it:
no head, no piece of a body, no end of a request.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""What uvicorn's other parser (h11) takes by default."""
_BODY = b"the head of the request is larger than 64 KiB"
_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's, that answers 431 to a head beyond `MAX_HEAD_BYTES`, and closes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._num_unfinished = 0
        """Bytes since something was whole."""

    def data_received(self, data: bytes) -> None:
        """Count, and take them."""
        if self.transport.is_closing():
            return
        self._num_unfinished += len(data)
        super().data_received(data)
        if self._num_unfinished > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_ANSWER)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """A head is whole."""
        super().on_headers_complete()
        self._num_unfinished = 0

    def on_body(self, body: bytes) -> None:
        """A piece of a body came."""
        super().on_body(body)
        self._num_unfinished = 0

    def on_message_complete(self) -> None:
        """A request is whole."""
        super().on_message_complete()
        self._num_unfinished = 0
