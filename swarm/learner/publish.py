"""Puts the model on the Hugging Face hub every so many rounds, beside the training.

The snapshot is written by the node's thread, so it is one consistent state; all else happens in a thread
that has a child process upload it (`python -m swarm.learner.publish`): the hub's client has no timeouts, and
threads of its own. Whatever fails is one warning, and the next snapshot is tried afresh.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
from msgspec import Struct
from safetensors import SafetensorError

from swarm.errors import UsageError
from swarm.learner.child import Child, ChildError, end_after, one_line, serve

if TYPE_CHECKING:  # the child has no use for them
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("swarm.learner")

_UPLOAD_SECONDS = 3600.0  # a longer upload is given up: the next snapshot waits for it
_CLOSE_SECONDS = 10.0


class HubPush:
    """Uploads snapshots, one at a time; a newer one takes the place of one that waits."""

    def __init__(
        self,
        repo: str,
        every_rounds: int,
        private: bool,
        *,
        swarm_id: bytes,
        base_model: str,
        work_dir: Path,
        endpoint: str | None = None,
    ) -> None:
        """Nothing is sent before the first `offer` that is due.

        Args:
            repo: OWNER/NAME, made if it does not exist; `UsageError` if malformed.
            every_rounds: a snapshot is due in rounds divisible by this, or in the next one that is offered.
            private: whether a repository that is made is only for its owner.
            base_model: what the manifest calls it; named on the model card.
            work_dir: snapshots are kept in a folder in there until they are sent.
            endpoint: another hub than huggingface.co (`HF_ENDPOINT`); the login is the user's (`HF_TOKEN`).
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise UsageError(f"cannot publish to {repo!r}: {one_line(error)}") from None
        if "/" not in repo:
            raise UsageError(f"cannot publish to {repo!r}: name the hub's repository as OWNER/NAME")
        if every_rounds < 1:
            raise UsageError(f"cannot publish every {every_rounds} rounds: it must be at least 1")
        self._repo = repo
        self._every_rounds = every_rounds
        self._private = private
        self._card = _Card(swarm_id.hex(), base_model)
        self._folder = work_dir / "publish"
        # The tokenizer's and uploader's progress bars are for terminals.
        self._environment = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if endpoint is not None:
            self._environment["HF_ENDPOINT"] = endpoint
        self._last_round: int | None = None
        self._changed = threading.Condition()
        self._waiting: _Snapshot | None = None
        self._child: Child | None = None
        self._closing = self._cut_off = False
        self._thread: threading.Thread | None = None

    def offer(self, round: int, write: Callable[[Path], None]) -> None:
        """After each round: if a snapshot is due, have `write` fill an empty folder with the model.

        `write` (see `write_model`) is called at once, in this thread. A full disk is a warning.
        """
        last = round - 1 if self._last_round is None else self._last_round
        self._last_round = round
        if round // self._every_rounds == last // self._every_rounds:
            return
        try:
            if self._thread is None:
                shutil.rmtree(self._folder, ignore_errors=True)  # what a killed node left
            self._folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                write(folder)
                is_adapter = (folder / "adapter_config.json").exists()
                (folder / "README.md").write_text(self._card.text(round, is_adapter), encoding="utf-8")
            except (OSError, SafetensorError):
                shutil.rmtree(folder, ignore_errors=True)
                raise
        except (OSError, SafetensorError) as error:
            log.warning("model not published round=%d error=%r", round, one_line(error))
            return
        self._hand_over(_Snapshot(round, folder))

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Let the upload under way finish within `timeout` seconds; what waits is not sent any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._child is None, timeout)
            if self._child is not None:
                self._cut_off = True
                self._child.kill()
        if self._thread is not None:
            self._thread.join(1.0)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _hand_over(self, snapshot: _Snapshot) -> None:
        with self._changed:
            superseded, self._waiting = self._waiting, snapshot
            self._changed.notify_all()
        if superseded is not None:
            shutil.rmtree(superseded.folder, ignore_errors=True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hub-push", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting is not None)
                if self._closing or self._waiting is None:
                    return
                snapshot, self._waiting = self._waiting, None
                try:
                    self._child = Child("swarm.learner.publish", self._environment)
                except OSError as error:
                    log.warning("model not published round=%d error=%r", snapshot.round, one_line(error))
                    continue
            self._upload(snapshot, self._child)
            shutil.rmtree(snapshot.folder, ignore_errors=True)
            with self._changed:
                self._child = None
                self._changed.notify_all()

    def _upload(self, snapshot: _Snapshot, child: Child) -> None:
        began = time.monotonic()
        message = f"Round {snapshot.round} of swarm {self._card.swarm}"
        try:
            child.send(_Upload(self._repo, self._private, str(snapshot.folder), message))
            child.wait(_UPLOAD_SECONDS)
        except ChildError as error:
            child.kill()
            reason = "cut off: the node ends" if self._cut_off else str(error)
            log.warning("model not published round=%d error=%r", snapshot.round, reason)
            return
        log.info(
            "published round=%d repo=%s seconds=%.0f", snapshot.round, self._repo, time.monotonic() - began
        )


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The weights, or only the adapter of a PEFT model, and the tokenizer, for `from_pretrained`.

    `OSError` or `SafetensorError` if they cannot be written.
    """
    from transformers.utils import logging as transformers_logging

    options: dict[str, bool] = {}
    if hasattr(model, "peft_config"):
        # PEFT would ask the hub whether the vocabulary has grown; ours never does.
        options["save_embedding_layers"] = False
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(str(folder), **options)
        try:
            tokenizer.save_pretrained(str(folder))
        except Exception as error:  # tokenizers raises nothing narrower on a full disk
            raise OSError(f"tokenizer not written: {error}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


class _Snapshot(Struct, frozen=True):
    round: int
    folder: Path


class _Upload(Struct, frozen=True):
    """What the child is told."""

    repo: str
    private: bool
    folder: str
    message: str


class _Card(Struct, frozen=True):
    """The model card."""

    swarm: str  # its id in hex
    base_model: str

    def text(self, round: int, is_adapter: bool) -> str:
        """Markdown; the front matter is what the hub's search knows."""
        library = "peft" if is_adapter else "transformers"
        lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation"]
        # The hub refuses a card whose base model is not a hub's: the embedded one, or a folder.
        if self.base_model.count("/") == 1 and not self.base_model.startswith((".", "/", "~")):
            lines.append(f"base_model: {self.base_model.partition('@')[0]}")
        lines += ["tags:", "- swarm-rl", "- grpo", "- reinforcement-learning", "---", ""]
        lines += [
            "# A model from a swarm",
            "",
            "Trained with GRPO by one peer of a swarm; each round is a commit.",
            "",
            f"- swarm: `{self.swarm}`",
            f"- round: {round}",
            f"- base model: `{self.base_model}`",
            "",
        ]
        return "\n".join(lines)


def _send_snapshot(messages: BinaryIO) -> None:
    """The child's work: one `_Upload`."""
    upload = msgspec.json.decode(messages.readline(), type=_Upload)
    threading.Thread(target=_end_with, args=[messages], daemon=True).start()
    from huggingface_hub import HfApi

    api = HfApi(library_name="swarm-rl")
    api.create_repo(upload.repo, private=upload.private, exist_ok=True)
    api.upload_folder(repo_id=upload.repo, folder_path=upload.folder, commit_message=upload.message)


def _end_with(messages: BinaryIO) -> None:
    """End when the node does: half a commit is none."""
    with contextlib.suppress(OSError):
        messages.read()
    os._exit(1)


if __name__ == "__main__":
    end_after(_UPLOAD_SECONDS)
    serve(_send_snapshot)
