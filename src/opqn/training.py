"""Training: one resumable loop, from a folder of faces and a split file to a model folder.

The schedule is that of Zhang, Zhe, Yan 2023, section 4 (SGD, rate halved every few epochs) or a cosine. Every random draw is
a function of the seed and the step, so a resumed run gives bitwise the weights of an uninterrupted one on the same CPU.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from opqn._files import atomic_write_bytes
from opqn._version import __version__
from opqn.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from opqn.config import TrainingSettings
from opqn.data.augment import augment_batch, center_crop, epoch_order
from opqn.data.dataset import FaceDataset
from opqn.data.splits import Split, person_of, validation_split
from opqn.errors import ConfigError, DataError, OpqnError
from opqn.evaluation import evaluate, evaluate_features
from opqn.losses import OPQNLoss
from opqn.model import OPQN

STEPS_BETWEEN_CHECKS: Final = 10
QUERY_TEMPERATURES: Final = tuple(float(2 ** (power / 2)) for power in range(-2, 13))  # 0.5 .. 64


class TrainingDivergedError(OpqnError):
    """The loss became infinite, not a number, or far worse than chance."""


class TrainingInterruptedError(OpqnError):
    """The training was asked to stop, and saved what it had."""


@dataclass(frozen=True)
class Progress:
    """Where a training is. Losses are means since the epoch began."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    original: float
    quantized: float
    entropy: float
    used_words: tuple[int, ...]
    """Codewords, of K, that a training image of this epoch was assigned to, per book."""
    learning_rate: float
    images_per_second: float
    seconds_left: float
    validation_map: float | None = None
    """mAP of the codes on the validation split, where the epoch ended with one."""
    validation_map_features: float | None = None
    """The same for the network's uncompressed features."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves."""

    model: OPQN
    folder: Path
    best_epoch: int
    validation_map: float | None
    history: tuple[dict[str, Any], ...]
    skipped: tuple[tuple[str, str], ...]


@dataclass
class _State:
    """All of a run that changes, beside tensors."""

    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    used: list[list[int]] = field(default_factory=list)
    seconds: float = 0.0
    best_map: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def fit_query_temperature(
    gallery_codes: NDArray[np.uint8],
    gallery_labels: NDArray[np.int64],
    tables_at: Callable[[float], NDArray[np.float32]],
    query_labels: NDArray[np.int64],
    temperatures: Sequence[float] = QUERY_TEMPERATURES,
) -> tuple[float, dict[float, float]]:
    """Choose the query temperature T with the highest mAP. Give it data of the training people, never the test queries.

    Args:
        gallery_codes: (N, M) uint8.
        gallery_labels: (N,).
        tables_at: makes the queries' (Q, M, K) float32 tables at a temperature.
        query_labels: (Q,).
        temperatures: candidates.

    Returns:
        The best temperature (of equal ones the lowest), and the mAP at each.
    """
    maps = {
        temperature: evaluate(
            gallery_codes, gallery_labels, tables_at(temperature), query_labels
        ).mean_average_precision
        for temperature in temperatures
    }
    return max(maps, key=lambda temperature: (maps[temperature], -temperature)), maps


def learning_rate_at(epoch: float, settings: TrainingSettings) -> float:
    """Learning rate at a point in time, in epochs since the start."""
    train = settings.train
    if epoch < train.warmup_epochs:
        return train.learning_rate * epoch / train.warmup_epochs
    if train.schedule == "step":
        return train.learning_rate * train.step_factor ** (int(epoch) // train.step_epochs)
    share = (epoch - train.warmup_epochs) / max(train.epochs - train.warmup_epochs, 1e-9)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def train(
    settings: TrainingSettings,
    root: str | Path,
    split: Split,
    out: str | Path,
    *,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Train a model on the ``train`` role of a split, and leave it in ``out/model``.

    ``out`` also gets ``checkpoint/`` (to resume from), ``best/`` (best so far by validation mAP), ``history.jsonl`` and
    ``settings.json``. Ctrl-C or SIGTERM save a checkpoint first.

    Args:
        settings: see :func:`opqn.config.load_settings`.
        root: folder that the split's paths start from.
        split: its gallery and queries are never looked at.
        out: folder of the run.
        resume: go on from the run's checkpoint; without one, start.
        on_progress: called about every ten steps and after every epoch.

    Raises:
        ConfigError: settings that do not go together, or a checkpoint of other settings.
        DataError: too few people or images.
        TrainingDivergedError: the loss is not finite or far above chance.
        TrainingInterruptedError: asked to stop; a checkpoint is saved.
        OpqnError: a full disk; the last checkpoint stands.
    """
    run = _Run(settings, Path(root), split, Path(out), resume=resume)
    with _stop_on_signal() as stop:
        return run.run(stop, on_progress or (lambda _: None))


class _Run:
    """One training: what :func:`train` does, step by step."""

    def __init__(self, settings: TrainingSettings, root: Path, split: Split, out: Path, *, resume: bool) -> None:
        self.settings, self.out, self.checkpoint = settings, out, out / "checkpoint"
        resuming = has_checkpoint(self.checkpoint)
        if resuming and not resume:
            raise ConfigError(f"{out} holds a training already; pass --resume to go on, or choose another --out")
        self.accelerator = _make_accelerator(settings)
        parts = self.accelerator.num_processes * settings.train.accumulation
        if settings.train.batch_size % parts:
            raise ConfigError(
                f"train.batch_size is {settings.train.batch_size}; it must be a multiple of processes x "
                f"train.accumulation, {parts}"
            )
        self.data = _load_data(settings, root, split)
        torch.manual_seed(settings.train.seed)
        self.model = OPQN(settings.model, self._facts(split)).to(self.accelerator.device)
        self.loss = OPQNLoss(
            len(self.data.people),
            settings.model.num_books,
            settings.model.book_dim,
            settings.loss.scale,
            settings.loss.margin,
            settings.loss.mu,
        ).to(self.accelerator.device)
        if self.accelerator.device.type != "mps":
            # Convolutions run faster in it; mps has no fast path for it.
            self.model.backbone.to(memory_format=torch.channels_last)
        modules = {"model": self.model, "loss": self.loss}
        self.optimizer = torch.optim.SGD(
            [parameter for module in modules.values() for parameter in module.parameters()],
            settings.train.learning_rate,
            momentum=settings.train.momentum,
            weight_decay=settings.train.weight_decay,
        )
        self.state = _State(used=_no_words(self.model))
        self.fixed = {**settings.model_dump(mode="json", exclude={"train": FREE_SETTINGS}), "split": split.hash}
        if resuming:
            stored = load_checkpoint(self.checkpoint, modules, self.optimizer, self.fixed)
            self.state = _State(**stored["progress"])
        self.modules = modules
        self.prepared_model, self.prepared_loss, self.prepared_optimizer = self.accelerator.prepare(
            self.model, self.loss, self.optimizer
        )
        if resuming and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(stored["scaler"])

    def run(self, stop: threading.Event, on_progress: Callable[[Progress], None]) -> TrainingResult:
        """Train what is left, then choose the best model and its query temperature, and save it."""
        epochs = self.settings.train.epochs
        if self.accelerator.is_main_process:
            atomic_write_bytes(self.out / "settings.json", self.settings.model_dump_json(indent=2).encode())
        with _tensorboard(self.out if self._writes_tensorboard() else None) as write_scalars:
            while self.state.step < epochs * self.data.steps_per_epoch:
                progress = self._run_epoch(stop, on_progress)
                if self.accelerator.is_main_process:
                    progress = self._end_epoch(progress)
                    write_scalars(progress)
                    on_progress(progress)
                self.accelerator.wait_for_everyone()
        return self._finish()

    def _run_epoch(self, stop: threading.Event, on_progress: Callable[[Progress], None]) -> Progress:
        train, device = self.settings.train, self.accelerator.device
        epoch, first = divmod(self.state.step, self.data.steps_per_epoch)
        used = torch.tensor(self.state.used, dtype=torch.bool, device=device)  # (M, K)
        pending: list[Tensor] = []
        began, session_steps, last_save = time.monotonic(), 0, time.monotonic()
        seconds_before = self.state.seconds
        self.model.train()
        for number, (images, labels, indices) in enumerate(self._batches(epoch, first)):
            part = number % train.accumulation
            is_last = part == train.accumulation - 1
            self._set_schedule(self.state.step / self.data.steps_per_epoch)
            # Dropout draws from the global generator: seeding it by step makes a resumed run draw the same.
            torch.manual_seed(_mix(train.seed, self.state.step, part, self.accelerator.process_index))
            crops = augment_batch(
                images,
                self.settings.model.image_size,
                seed=train.seed,
                epoch=epoch,
                indices=indices,
                settings=self.settings.augment,
            )
            with ExitStack() as stack:
                if not is_last:
                    stack.enter_context(self.accelerator.no_sync(self.prepared_model))
                    stack.enter_context(self.accelerator.no_sync(self.prepared_loss))
                output = self.prepared_model(self.model.normalise(crops))
                loss = self.prepared_loss(output, labels.to(device))
                self.accelerator.backward(loss.total / train.accumulation)
            pending.append(torch.stack(loss).detach())
            used.scatter_(1, output.probs.detach().argmax(dim=2).T, value=True)
            if not is_last:
                continue
            if train.clip_norm:
                self.accelerator.clip_grad_norm_(self.parameters, train.clip_norm)
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad()
            self.state.step += 1
            session_steps += 1
            at_end = self.state.step % self.data.steps_per_epoch == 0
            # Looking at a loss waits for the device; on the CPU it costs nothing.
            if not at_end and device.type != "cpu" and session_steps % STEPS_BETWEEN_CHECKS:
                continue
            self._add_up(pending)
            self.state.seconds = seconds_before + time.monotonic() - began
            due = time.monotonic() - last_save > 60 * train.checkpoint_minutes
            asked, due = self._agree(stop.is_set(), due)
            progress = self._progress(epoch, used, session_steps, time.monotonic() - began)
            if at_end:
                break
            on_progress(progress)
            if asked or due:
                self._save(used)
                last_save = time.monotonic()
            if asked:
                raise self._interrupted()
        self.state.used = used.int().tolist()
        return progress
