"""A download into a file, however large: little of it is in memory, and it can be interrupted anywhere."""

from __future__ import annotations

import hashlib
import shutil
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path

from swarm.errors import ExchangeDown, ExchangeError

READ_BYTES = 4 * 2**20


class FileDownload:
    """A blob on its way into `path`. Until it is whole it is beside it, in a file named by its digest.

    That one stays when the download ends early: a later one takes it in with `resume` and goes on from
    there, and so it does with what is at `path`. One at a time for a digest and folder. Every method blocks
    on the disk and may be called from any thread; a `resume` or `write` that comes after `close` does
    nothing. `ExchangeError` if the disk refuses.
    """

    def __init__(self, path: Path, digest: bytes, size_bytes: int) -> None:
        self.path = path
        self.digest = digest
        self.size_bytes = size_bytes
        self.offset = 0  # bytes that are here
        self._unfinished = unfinished_path(path, digest)
        self._hash = hashlib.sha256()
        self._file: FileIO | None = None
        self._closed = False
        self._lock = threading.Lock()

    def resume(self) -> bool:
        """Take in the next few MB that an earlier download left; to be called until it is False."""
        with self._lock:
            if self._closed:
                return False
            try:
                file = self._file or self._open()
                chunk = file.read(min(READ_BYTES, self.size_bytes - self.offset))
                if not chunk:
                    file.truncate()  # it was of something longer
            except OSError as error:
                raise self._refused(error) from error
            self._add(chunk)
            return bool(chunk)

    def write(self, chunk: bytes) -> None:
        """Append."""
        with self._lock:
            if self._closed:
                return
            rest = memoryview(chunk)
            try:
                file = self._file or self._open()
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError as error:
                self._discard()  # what fills the disk is not kept for later
                raise self._refused(error) from error
            self._add(chunk)

    def finish(self) -> bool:
        """Put the file in its place; False, and all is gone, if it is not the blob."""
        with self._lock:
            if self._hash.digest() != self.digest:
                self._discard()
                return False
            self._close()
            try:
                self._unfinished.replace(self.path)
            except OSError as error:
                raise self._refused(error) from error
            return True

    def close(self) -> None:
        """End this attempt; what came stays for a later one. Again, or after `finish`, is no error."""
        with self._lock:
            self._close()
            with suppress(OSError):
                if self._unfinished.stat().st_size == 0:
                    self._unfinished.unlink()

    def _open(self) -> FileIO:
        if self.path.exists():
            self.path.replace(self._unfinished)
        self._unfinished.touch()
        self._file = self._unfinished.open("r+b", buffering=0)
        missing_bytes = self.size_bytes - self._unfinished.stat().st_size
        if shutil.disk_usage(self._unfinished.parent).free < missing_bytes:
            raise OSError(None, f"the disk has no room for {missing_bytes} bytes more")
        return self._file

    def _add(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.offset += len(chunk)

    def _close(self) -> None:
        self._closed = True
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _discard(self) -> None:
        self._close()
        with suppress(OSError):
            self._unfinished.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> ExchangeError:
        return ExchangeDown(f"file cannot be written: {self.path}: {error.strerror}")


def unfinished_path(path: Path, digest: bytes) -> Path:
    """Where a download is until it is whole."""
    return path.with_name(f".{digest.hex()}.part")
