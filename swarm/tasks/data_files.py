"""The files of a task's data: a shipped sample's, those of a local file or folder, or a hub's dataset's."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from swarm.errors import UsageError
from swarm.tasks.limits import brief, check_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SAMPLE = "sample:"
SAMPLES = Path(__file__).parent / "samples"
KINDS = (".jsonl", ".json", ".parquet")
_MAX_FILES = 1_000
_MAX_ENTRIES = 20_000  # files and folders that are looked at for data
# What `datasets` writes beside rows.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json")
_HUB = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_SECONDS = 20.0  # until the hub counts as not reachable


def contents(
    source: str, split: str | None, revision: str | None, pinned: bool, max_bytes: int
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the source's files, in the order of names."""
    if source.startswith(SAMPLE):
        path = SAMPLES / f"{source.removeprefix(SAMPLE)}.jsonl"
        known = sorted(sample.stem for sample in SAMPLES.glob("*.jsonl"))
        if source.removeprefix(SAMPLE) not in known:
            raise UsageError(f"there is no {source}; the samples are {', '.join(known)}")
        files = {path.name: path}
    elif revision is not None:
        files = _of_hub(source, split, revision, pinned, max_bytes)
    else:
        files = _of_disk(source, split)
    left = max_bytes
    for name, path in sorted(files.items()):
        try:
            with path.open("rb") as file:
                content = file.read(left + 1)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        left -= len(content)
        check_bytes(source, max_bytes - left, max_bytes)
        yield name, content


def _of_disk(source: str, split: str | None) -> dict[str, Path]:
    path = Path(source).expanduser()
    kind = _mode(path)
    if stat.S_ISREG(kind):
        if path.suffix not in KINDS:
            raise UsageError(f"{source} is not one of {', '.join(KINDS)}")
        return {path.name: path}
    if not stat.S_ISDIR(kind):
        hint = "; for a hub's dataset give its commit as `revision`" if _HUB.fullmatch(source) else ""
        raise UsageError(f"there is no file or folder {path.absolute()}{hint}")
    return {name: path / name for name in _picked(source, _files(path), split)}


def _mode(path: Path) -> int:
    """What kind of file a path is, as `stat` says; 0 if there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _files(folder: Path) -> list[str]:
    """Names of the files in a folder and below it; hidden ones and links to folders are left out."""
    names: list[str] = []
    entries, inside = 0, [""]
    while inside:
        within = inside.pop()
        place = folder / within
        try:
            with os.scandir(place) as found:
                for entry in found:
                    entries += 1
                    if entries > _MAX_ENTRIES:
                        raise UsageError(
                            f"{folder} has over {_MAX_ENTRIES:,} files and folders; name one of them"
                        )
                    name = f"{within}{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        inside.append(f"{name}/")
                    elif _leads_to_file(entry):
                        names.append(name)
        except OSError as error:
            raise UsageError(f"cannot read {place}: {error.strerror}") from error
    return names


def _leads_to_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or to what may not be looked at
        return False


def _of_hub(source: str, split: str | None, revision: str, pinned: bool, max_bytes: int) -> dict[str, Path]:
    """The picked files in the hub's cache, fetched if need be.

    Without a network the cache is used, but only for pinned data, since it might hold some of the files only.
    """
    found = _HUB.fullmatch(source)
    if found is None:
        raise UsageError(f"{source} is no hub's OWNER/NAME; leave `revision` out if it is local")
    if not _COMMIT.fullmatch(revision):
        raise UsageError(f"revision {revision} of {source} must be a commit's 40 hexadecimal digits")
    from huggingface_hub import HfApi  # a second to import, and only here

    repository, inside = found[1], found[2] or ""
    try:
        sizes = _hub_sizes(HfApi(), repository, revision)
    except _Unreachable as error:
        if pinned and (folder := _cached(repository, revision)) is not None:
            return {name: folder / name for name in _picked(source, _inside(_files(folder), inside), split)}
        raise UsageError(
            f"the hub cannot be asked for {repository} ({error}); connect, or give the cached data's `digest`"
        ) from error
    names = _picked(source, _inside(list(sizes), inside), split)
    check_bytes(source, sum(sizes[name] for name in names), max_bytes)
    return {name: _fetch(HfApi(), repository, revision, name) for name in names}


class _Unreachable(Exception):
    """The hub did not answer."""


def _hub_sizes(hub: HfApi, repository: str, revision: str) -> dict[str, int]:
    """Bytes of each of the dataset's files."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = hub.dataset_info(repository, revision=revision, files_metadata=True, timeout=_HUB_SECONDS)
    except (HfHubHTTPError, HFValidationError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code < 500:
            raise UsageError(
                f"the hub has no dataset {repository} at {revision} for us ({brief(error)}); check its "
                "name, and log in with `hf auth login` if it is gated"
            ) from error
        raise _Unreachable(brief(error)) from error
    except (OSError, RuntimeError, httpx2.HTTPError) as error:
        raise _Unreachable(brief(error)) from error
    return {file.rfilename: file.size or 0 for file in info.siblings or []}


def _fetch(hub: HfApi, repository: str, revision: str, name: str) -> Path:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hub.hf_hub_download(repository, name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, OSError, RuntimeError, ValueError, httpx2.HTTPError) as error:
        raise UsageError(f"cannot fetch {name} of {repository}: {brief(error)}") from error


def _cached(repository: str, revision: str) -> Path | None:
    """The folder of the commit in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repository, repo_type="dataset", revision=revision, local_files_only=True)
        )
    except (OSError, ValueError):
        return None


def _inside(names: Sequence[str], inside: str) -> list[str]:
    """The names that are this file or in this folder."""
    wanted = PurePosixPath(inside)
    return [name for name in names if not inside or PurePosixPath(name).is_relative_to(wanted)]


def _picked(source: str, names: Sequence[str], split: str | None) -> list[str]:
    """The names of data files, of one kind, that belong to the split."""
    paths = [PurePosixPath(name) for name in names]
    paths = [
        path
        for path in paths
        if path.suffix in KINDS
        and path.name not in _DESCRIPTIONS
        and not any(part.startswith(".") for part in path.parts)
    ]
    if not paths:
        raise UsageError(f"{source} has no files of the kinds {', '.join(KINDS)}")
    if split is not None:
        in_name = [path for path in paths if split in _words(path.stem)]
        paths = in_name or [path for path in paths if split in path.parts[:-1]]
        if not paths:
            raise UsageError(f"{source} has no files of the split {split}")
    kinds = sorted({path.suffix for path in paths})
    if len(kinds) > 1:
        raise UsageError(f"{source} has rows as {' and '.join(kinds)}; name one of its files or folders")
    if len(paths) > _MAX_FILES:
        raise UsageError(f"{source} has {len(paths):,} files; at most {_MAX_FILES:,} are read")
    return sorted(path.as_posix() for path in paths)


def _words(text: str) -> list[str]:
    return re.split(r"[^A-Za-z0-9]+", text)
