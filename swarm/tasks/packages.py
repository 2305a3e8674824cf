"""Which installed code decides what a swarm asks and how it scores; is it what the manifest pins?"""

from __future__ import annotations

import hashlib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from swarm.errors import UsageError
from swarm.manifest import Manifest, Package, normal_name
from swarm.tasks import Complain, complaint, provider, task_class

_NOT_CODE = {"__pycache__"}
_COMPILED = {".pyc", ".pyo"}
_THIS_PROJECT = "swarm-rl"


def check_packages(manifest: Manifest, complain: Complain = complaint) -> None:
    """Before joining: `UsageError` if a pinned package is missing or another one, with what to do.

    A task from outside this project must be pinned with its digest. `complain` makes the error about what
    stands at a place of the manifest.
    """
    pinned = {normal_name(package.distribution): package for package in manifest.packages}
    for index, package in enumerate(manifest.packages):
        if fault := _fault(package):
            raise complain(("packages", index), fault)
    for index, choice in enumerate(manifest.tasks):
        try:
            distribution = provider(choice.name)
        except UsageError as error:
            raise complain(("tasks", index, "name"), str(error)) from error
        if distribution is None:
            continue
        pin = pinned.get(normal_name(distribution))
        if pin is None or pin.digest is None:
            raise complain(
                ("tasks", index, "name"),
                f"task {choice.name!r} is brought by {distribution}, which the manifest does not pin with "
                "its digest; `swarm task pin MANIFEST` says what to write",
            )


def pins(manifest: Manifest) -> list[Package]:
    """What is installed here of all that a manifest's tasks depend on; digests for tasks of others.

    The libraries that this project's own tasks use are pinned by version: some hold compiled files, which
    differ from one system to the next.
    """
    wanted: dict[str, bool] = {}  # a distribution, and whether with its digest
    for choice in manifest.tasks:
        for name in task_class(choice.name).packages:
            wanted.setdefault(normal_name(name), False)
        if distribution := provider(choice.name):
            wanted[normal_name(distribution)] = True
    wanted.pop(_THIS_PROJECT, None)
    return [installed(name, with_digest) for name, with_digest in sorted(wanted.items())]


def unpinned(manifest: Manifest) -> list[str]:
    """The distributions that a manifest's tasks depend on and that it does not pin."""
    pinned = {normal_name(package.distribution) for package in manifest.packages}
    return [pin.distribution for pin in pins(manifest) if normal_name(pin.distribution) not in pinned]


def installed(distribution: str, with_digest: bool) -> Package:
    """The installed distribution of that name; `UsageError` if there is none."""
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"package {distribution} is not installed: .venv/bin/pip install {distribution}"
        ) from None
    digest = code_digest(distribution) if with_digest else None
    return Package(distribution=distribution, version=version, digest=digest)


def code_digest(distribution: str) -> str:
    """SHA-256 (hex) over the names and SHA-256 of all files of a distribution's import packages, in order.

    Where it is installed does not matter, nor how (in place or copied), nor what Python compiled of it.
    """
    digest, found = hashlib.sha256(), False
    for name in sorted(_import_names(distribution)):
        spec = find_spec(name)
        if spec is None:
            continue
        folders = [Path(folder) for folder in spec.submodule_search_locations or []]
        files = [(file, file.relative_to(folder)) for folder in folders for file in folder.rglob("*")]
        if not folders and spec.origin:
            files = [(Path(spec.origin), Path(Path(spec.origin).name))]
        for file, place in sorted(files, key=lambda item: item[1].as_posix()):
            if file.is_file() and file.suffix not in _COMPILED and not _NOT_CODE & set(place.parts):
                digest.update(f"{name}/{place.as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
                found = True
    if not found:
        raise UsageError(f"the files of {distribution} cannot be found: install it with pip, not in place")
    return digest.hexdigest()


def _fault(package: Package) -> str | None:
    here = _installed_or_none(package)
    name, version = package.distribution, package.version
    install = f".venv/bin/pip install {name}=={version}"
    if here is None:
        return f"this swarm needs {name} {version}, which is not installed: {install}"
    if here.version != version:
        return f"this swarm needs {name} {version}, and {here.version} is installed: {install}"
    if package.digest is not None and here.digest != package.digest:
        return (
            f"{name} {version} is installed, but its code is not this swarm's "
            f"(digest {(here.digest or '')[:12]}…, not {package.digest[:12]}…): ask the swarm's maker for "
            "theirs; if it is yours, `swarm task pin --write` pins it anew"
        )
    return None


def _installed_or_none(package: Package) -> Package | None:
    """The installed distribution of a pin's name, if there is one."""
    try:
        return installed(package.distribution, package.digest is not None)
    except UsageError:
        return None


def _import_names(distribution: str) -> list[str]:
    wanted = normal_name(distribution)
    return [
        name
        for name, owners in metadata.packages_distributions().items()
        if any(normal_name(owner) == wanted for owner in owners)
    ]
