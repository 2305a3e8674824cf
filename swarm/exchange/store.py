"""Blobs as files named by their SHA-256, in one folder with a quota.

    own/        what this peer made; auditors ask for it rounds later
    fetched/    what other peers made
    partial/    the first parts of downloads, for a later attempt to go on from

When the quota is reached, files go in this order, of each kind the oldest first:

1. partials older than `keep_seconds`
2. blobs older than `keep_seconds`
3. fetched blobs and partials
4. only for an own blob: the files of downloads under way, which then go on in memory
5. only for an own blob: younger own blobs
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from identity.files import sync_folder
from swarm.errors import ExchangeError

DIGEST_BYTES = 32
LAST_FOR_FETCHED, LAST_FOR_OWN = 3, 5  # places in the order above


@dataclass(frozen=True)
class _File:
    size_bytes: int
    written_at: float  # Unix seconds; the file's mtime


class BlobStore:
    """At most `max_bytes` of blobs and partials below `folder`; safe to use from any thread.

    Blobs are written whole or not at all. `ExchangeError` if the folder cannot be used.
    """

    def __init__(self, folder: Path, max_bytes: int, keep_seconds: float) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.keep_seconds = keep_seconds
        self._own, self._fetched, self._partial = folder / "own", folder / "fetched", folder / "partial"
        self._lock = threading.Lock()
        self._files: dict[Path, _File] = {}
        self._total = 0
        self._open: set[Path] = set()  # partials of downloads under way
        try:
            for kind in (self._own, self._fetched, self._partial):
                kind.mkdir(parents=True, exist_ok=True)
                self._take_stock(kind)
        except OSError as error:
            raise ExchangeError(f"blobs cannot be kept in {folder}: {error.strerror}") from error

    def put(self, data: bytes, *, own: bool) -> bytes:
        """Keep `data` as the newest blob, making room if needed; returns its digest.

        A blob that is both fetched and own counts as own. `ExchangeError` if it does not fit beside what
        must stay, or if the disk refuses it.
        """
        digest = hashlib.sha256(data).digest()
        with self._lock:
            held = self._find(digest)
            own = own or (held is not None and held.parent == self._own)
            target = (self._own if own else self._fetched) / digest.hex()
            try:
                if held == target and _read_intact(target, digest) is not None:
                    self._record(target, len(data))
                    return digest
                if held is not None:
                    self._remove(held)
                self._make_room(len(data), LAST_FOR_OWN if own else LAST_FOR_FETCHED)
                _write_whole(target, data, durable=own)
                self._record(target, len(data))
            except OSError as error:
                raise ExchangeError(f"blob cannot be kept: {self.folder}: {error.strerror}") from error
        return digest

    def keep(self, digests: Collection[bytes]) -> None:
        """Count fetched blobs as own ones from now on; those that are not here stay away."""
        with self._lock:
            for digest in digests:
                path = self._fetched / digest.hex()
                if path not in self._files:
                    continue
                with suppress(OSError):
                    path.replace(self._own / path.name)
                    size_bytes = self._files[path].size_bytes
                    self._forget(path)
                    self._record(self._own / path.name, size_bytes)

    def get(self, digest: bytes) -> bytes | None:
        """The blob, or None if it is not here. One that the disk has spoiled is removed and not here."""
        path = self.path(digest)
        if path is None:
            return None
        data = _read_intact(path, digest)
        if data is None:
            with self._lock:
                data = _read_intact(path, digest)  # it may have been put again meanwhile
                if data is None:
                    self._remove(path)
        return data

    def path(self, digest: bytes) -> Path | None:
        """The blob's file, unless it is not here. The file may go at any time."""
        with self._lock:
            return self._find(digest)

    def size(self, digest: bytes) -> int | None:
        """The blob's size in bytes, unless it is not here."""
        with self._lock:
            path = self._find(digest)
            return None if path is None else self._files[path].size_bytes

    def begin(self, digest: bytes, size_bytes: int) -> Partial:
        """Begin, or go on with, the download of a blob. Reads and hashes what an earlier attempt left.

        Of two downloads of one blob at the same time, the second is in memory only. Waiting for the first
        would let whoever serves that one hold up the other.
        """
        path = self._partial / digest.hex()
        with self._lock:
            if path in self._open:
                return Partial(self, digest, size_bytes, None)
            self._open.add(path)
            if path in self._files and self._files[path].size_bytes > size_bytes:
                self._remove(path)
        return Partial(self, digest, size_bytes, path)

    def _reserve(self, partial: Path, size_bytes: int) -> None:
        """Called by a `Partial` before its first write: make room for the whole blob."""
        with self._lock:
            held = self._files.get(partial)
            self._make_room(size_bytes - (held.size_bytes if held else 0), LAST_FOR_FETCHED)
            self._count(partial, _File(size_bytes, time.time()))

    def _release(self, partial: Path, size_bytes: int) -> None:
        """Called by a `Partial` that closes: its file, if there is one, has this size and may go."""
        with self._lock:
            self._open.discard(partial)
            if partial in self._files:
                self._record(partial, size_bytes)

    def _drop(self, partial: Path) -> None:
        """Called by a `Partial` that has no more use for its file."""
        with self._lock:
            self._open.discard(partial)
            self._remove(partial)

    def _adopt(self, partial: Path, digest: bytes) -> bool:
        """Called by a `Partial` whose file holds the whole blob: whether it is a fetched blob now."""
        with self._lock:
            if partial not in self._files or self._find(digest) is not None:
                return False
            target = self._fetched / digest.hex()
            try:
                partial.replace(target)
            except OSError:
                return False
            size_bytes = self._files[partial].size_bytes
            self._forget(partial)
            self._open.discard(partial)
            self._record(target, size_bytes)
            return True

    def _take_stock(self, kind: Path) -> None:
        for path in kind.iterdir():
            if path.name.startswith("."):
                path.unlink()  # a crash cut it off
            elif _is_blob(path):
                status = path.stat()
                self._count(path, _File(status.st_size, status.st_mtime))

    def _find(self, digest: bytes) -> Path | None:
        paths = (self._own / digest.hex(), self._fetched / digest.hex())
        return next((path for path in paths if path in self._files), None)

    def _make_room(self, needed_bytes: int, last_place: int) -> None:
        """Remove files up to this place in the order, and none if that would not do: `ExchangeError`."""
        now, free, going = time.time(), self.max_bytes - self._total, []
        if free < needed_bytes:
            places = {path: self._place(path, file, now) for path, file in self._files.items()}
            for path in sorted(places, key=lambda path: (places[path], self._files[path].written_at)):
                if free >= needed_bytes or places[path] > last_place:
                    break
                free += self._files[path].size_bytes
                going.append(path)
        if free < needed_bytes:
            raise ExchangeError(
                f"blob cannot be kept: {needed_bytes} bytes do not fit beside what must stay"
                f" in the store's {self.max_bytes}; raise the quota"
            )
        for path in going:
            self._remove(path)

    def _place(self, path: Path, file: _File, now: float) -> int:
        """Where a file stands in the order of the module's docstring."""
        if path in self._open:
            return 4
        if now - file.written_at > self.keep_seconds:
            return 1 if path.parent == self._partial else 2
        return 5 if path.parent == self._own else 3

    def _record(self, path: Path, size_bytes: int) -> None:
        """Count a file as the newest, also for after a restart."""
        now = time.time()
        with suppress(OSError):
            os.utime(path, (now, now))
        self._count(path, _File(size_bytes, now))

    def _remove(self, path: Path) -> None:
        self._forget(path)
        with suppress(OSError):
            path.unlink()

    def _count(self, path: Path, file: _File) -> None:
        self._forget(path)
        self._files[path] = file
        self._total += file.size_bytes

    def _forget(self, path: Path) -> None:
        file = self._files.pop(path, None)
        self._total -= file.size_bytes if file else 0


class Partial:
    """A download: its bytes so far in memory and, as far as disk and quota allow, in a file.

    Made by `BlobStore.begin`. Every method blocks on the disk and may be called from any thread; after
    `close`, `discard` or `finish` a late `write` does nothing.
    """

    def __init__(self, store: BlobStore, digest: bytes, size_bytes: int, path: Path | None) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self.kept = False  # after `finish`: whether the store has the blob
        self._store = store
        self._path = path  # None: in memory only
        self._file: BinaryIO | None = None  # opened at the first write
        self._closed = False
        self._lock = threading.Lock()
        self._content = bytearray()
        if path is not None:
            with suppress(OSError):
                self._content += path.read_bytes()
        self._hash = hashlib.sha256(self._content)

    @property
    def offset(self) -> int:
        """How many bytes are here, those of earlier attempts included."""
        return len(self._content)

    def write(self, chunk: bytes) -> None:
        """Append. What the disk or the quota refuses is in memory all the same."""
        with self._lock:
            if self._closed:
                return
            if self._path is not None:
                try:
                    file = self._file or self._open_file(self._path)
                    file.write(chunk)
                    file.flush()
                except (OSError, ExchangeError):
                    self._drop_file()
            self._content += chunk
            self._hash.update(chunk)

    def finish(self) -> bytes:
        """The blob, kept among the fetched ones if possible; `ExchangeError`, and all gone, if wrong."""
        with self._lock:
            self._closed = True
            if self._hash.digest() != self.digest:
                self._drop_file()
                raise ExchangeError("blob has another digest than announced")
            content = bytes(self._content)
            if self._path is not None and self._file is not None:
                self._file.close()
                self.kept = self._store._adopt(self._path, self.digest)
            if self.kept:
                self._path = None
            else:
                self._drop_file()
                with suppress(ExchangeError):
                    self._store.put(content, own=False)
                    self.kept = True
            return content

    def close(self) -> None:
        """End this attempt; what came stays for a later one. Again, or after the others, is no error."""
        with self._lock:
            self._closed = True
            if self._path is not None:
                if self._file is not None:
                    self._file.close()
                self._store._release(self._path, self.offset)
                self._path = None

    def discard(self) -> None:
        """End this attempt and throw away what came."""
        with self._lock:
            self._closed = True
            self._drop_file()

    def _open_file(self, path: Path) -> BinaryIO:
        self._store._reserve(path, self.size_bytes)
        # Not in append mode, which would make a new file with a hole if this one was removed meanwhile.
        self._file = path.open("r+b" if self._content else "wb")
        self._file.seek(self.offset)
        return self._file

    def _drop_file(self) -> None:
        if self._path is None:
            return
        if self._file is not None:
            with suppress(OSError):  # closing writes what a full disk refused
                self._file.close()
        self._store._drop(self._path)
        self._path = None


def _is_blob(path: Path) -> bool:
    return path.is_file() and len(path.name) == 2 * DIGEST_BYTES and set(path.name) <= set("0123456789abcdef")


def _read_intact(path: Path, digest: bytes) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).digest() == digest else None


def _write_whole(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file whole or not at all; a durable one survives a power cut from then on."""
    unfinished = path.with_name(f".{path.name}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)
