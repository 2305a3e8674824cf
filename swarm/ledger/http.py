"""HTTP whose answers are hostile input: never compressed, and with an end in size and in time."""

from __future__ import annotations

import http.client
import io
import time
from functools import cache
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, ReadTimeoutError

MAX_MEBIBYTES = 32  # twice what public servers let a page of logs be
TIMES_THE_TIMEOUT = 3  # for a whole answer; the timeout itself is for each piece of it
MAX_REDIRECTS = 3  # each begins the time anew
_PIECE_BYTES = 2**16


class TooLongAnswer(requests.RequestException):
    """The server answered more than is read."""


class BoundedAdapter(HTTPAdapter):
    """Reads an answer of at most 32 MiB, from its first header on within three times the request's timeout.

    Else `requests.ReadTimeout` or `TooLongAnswer`. To mount in a `requests.Session`, for "http://" and
    "https://".
    """

    def get_connection_with_tls_context(self, *arguments: Any, **keywords: Any) -> Any:
        """The pool for a request, or for the proxy before it; its connections read with a deadline."""
        pool = super().get_connection_with_tls_context(*arguments, **keywords)
        pool.ConnectionCls = _with_deadline(pool.ConnectionCls)
        return pool

    def send(self, request: requests.PreparedRequest, *arguments: Any, **keywords: Any) -> requests.Response:
        """See `HTTPAdapter`; the answer is read when this returns."""
        request.headers["Accept-Encoding"] = "identity"
        response = super().send(request, *arguments, **keywords)
        try:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise requests.exceptions.ContentDecodingError("compressed, which was not asked for")
            response.raw = io.BytesIO(_read(response.raw))
        except BaseException:
            response.raw.close()
            raise
        return response


def _read(raw: Any) -> bytes:
    contents = bytearray()
    try:
        # Not raw.stream(): that reads a chunk's length as a line without end.
        while piece := raw.read1(_PIECE_BYTES, decode_content=False):
            contents += piece
            if len(contents) > MAX_MEBIBYTES * 2**20:
                raise TooLongAnswer(f"more than {MAX_MEBIBYTES} MiB")
    except ReadTimeoutError as error:
        raise requests.ReadTimeout(error) from error
    except HTTPError as error:
        raise requests.ConnectionError(error) from error
    return bytes(contents)


@cache
def _with_deadline(connection: Any) -> Any:
    if issubclass(connection, _Deadline):
        return connection
    return type(connection.__name__, (_Deadline, connection), {})


class _Deadline:
    """Mixed into a connection: its answers are read through `_TimedFile`."""

    class response_class(http.client.HTTPResponse):  # the name that http.client looks for
        def __init__(self, sock: Any, *arguments: Any, **keywords: Any) -> None:
            super().__init__(sock, *arguments, **keywords)
            self.fp = io.BufferedReader(_TimedFile(self.fp.detach(), sock))


class _TimedFile(io.RawIOBase):
    """A socket's file that ends, with the socket's own error, when an answer takes too long as a whole."""

    def __init__(self, file: Any, sock: Any) -> None:
        self._file = file
        self._sock = sock
        self._piece_seconds = sock.gettimeout()
        self._until = time.monotonic() + TIMES_THE_TIMEOUT * self._piece_seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self._sock.settimeout(min(left, self._piece_seconds))
        count: int | None = self._file.readinto(buffer)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
