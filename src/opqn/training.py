"""Training: one resumable loop, from a folder of faces and a split file to a model folder.

The schedule is that of Zhang, Zhe, Yan 2023, section 4 (SGD, rate halved every few epochs) or a cosine. Every random
draw is a function of the seed and the step, so a resumed run gives bitwise the weights of an uninterrupted one on the
same CPU. The methods that OPQN is compared with go through the same loop, with a head and a loss of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from opqn._files import atomic_write_bytes
from opqn._version import __version__
from opqn.baselines.methods import method_of
from opqn.baselines.model import BaselineModel, load_model
from opqn.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint, stored_settings
from opqn.config import DEFAULT_METHOD, TrainingSettings
from opqn.data.augment import augment_batch, epoch_order
from opqn.data.dataset import Batch, FaceDataset, keep_batch
from opqn.data.images import SkippedImage
from opqn.data.splits import Split, person_of, validation_split
from opqn.errors import ConfigError, CorruptFileError, DataError, OpqnError
from opqn.losses import OPQNLoss
from opqn.model import CONFIG_FILE, OPQN, read_json
from opqn.quantizer import RefittedQuantizer
from opqn.refitting import MAX_DIM, fit_head
from opqn.validation import QUERY_TEMPERATURES, dataset_features, validate

HISTORY_FILE: Final = "history.jsonl"  # of a run: a line of JSON for every epoch
STEPS_BETWEEN_CHECKS: Final = 10
# They change how fast a training runs, not what comes of it.
# Where a network to start from lies makes no difference either; which one it is, is kept beside the settings.
FREE_SETTINGS: Final = {"device", "workers", "cache_mb", "checkpoint_minutes", "tensorboard", "start"}
# As many tell how images of one person differ, in seconds; of millions the other processes would wait too long.
REFIT_IMAGES: Final = 65_536


class TrainingDivergedError(OpqnError):
    """The loss became infinite, not a number, or far worse than chance."""


class TrainingInterruptedError(OpqnError):
    """The training was asked to stop, and saved what it had."""


@dataclass(frozen=True)
class Progress:
    """Where a training is. Losses are means since the epoch began.

    For a method other than OPQN ``original``, ``quantized`` and ``entropy`` are the terms that its loss puts there: see
    ``opqn.baselines.method.Method``.
    """

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
    """mAP of the model's codes on the validation split; with ``model.refit`` of the refitted head's."""
    history: tuple[dict[str, Any], ...]
    skipped: tuple[SkippedImage, ...]


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

    ``settings.method`` says which: OPQN, or a method it is compared with, whose result is an
    ``opqn.baselines.model.BaselineModel``.

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
        ConfigError: settings that do not go together, a checkpoint of other settings, or ``train.start`` names a model
            with another network.
        DataError: too few people or images, or ``train.start`` names no model.
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
        if settings.train.batch_size == parts:
            raise ConfigError(
                f"train.batch_size {settings.train.batch_size} in {parts} parts leaves one image a part, too few for "
                f"batch normalisation; set it to {2 * parts} or more"
            )
        torch.manual_seed(settings.train.seed)
        self.model = _build_model(settings).to(self.accelerator.device)
        started_from = None
        if settings.train.start:
            started_from = (
                _began_from(settings.train.start, self.checkpoint)
                if resuming
                else _start_from(self.model, settings.train.start)
            )
        self.data = _load_data(settings, root, split)
        self.model.training_facts = self._facts(split)
        if started_from is not None:
            self.model.training_facts["started_from"] = started_from
        self.loss = _build_loss(settings, self.model, len(self.data.classes)).to(self.accelerator.device)
        # Where a loss has a margin or a mu, it grows to what it was made with.
        self.ramped = {name: getattr(self.loss, name) for name in ("margin", "mu") if hasattr(self.loss, name)}
        if self.accelerator.device.type != "mps":
            # Convolutions run faster in it; mps has no fast path for it.
            self.model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        modules = {"model": self.model, "loss": self.loss}
        self.optimizer = torch.optim.SGD(
            [parameter for module in modules.values() for parameter in module.parameters()],
            settings.train.learning_rate,
            momentum=settings.train.momentum,
            weight_decay=settings.train.weight_decay,
        )
        self.state = _State(used=_no_words(self.model))
        self.fixed = {**settings.model_dump(mode="json", exclude={"train": FREE_SETTINGS}), "split": split.hash}
        if started_from is not None:
            self.fixed["started_from"] = started_from
        # Steps and classes are numbered by the readable images; with other ones the numbers would mean something else.
        self.fixed["readable_images"] = len(self.data.dataset)
        if resuming:
            stored = load_checkpoint(self.checkpoint, modules, self.optimizer, self.fixed)
            self.state = _State(**stored["progress"])
        self.modules = modules
        self.prepared_model, self.prepared_optimizer = self.accelerator.prepare(self.model, self.optimizer)
        # A loss without weights has nothing to keep alike in all processes, and torch refuses to try.
        has_weights = any(True for _ in self.loss.parameters())
        self.prepared_loss = self.accelerator.prepare(self.loss) if has_weights else self.loss
        if resuming and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(stored["scaler"])

    def run(self, stop: threading.Event, on_progress: Callable[[Progress], None]) -> TrainingResult:
        """Train what is left, then save the best model."""
        steps = self.settings.train.epochs * self.data.steps_per_epoch
        main = self.accelerator.is_main_process
        if main:
            atomic_write_bytes(self.out / "settings.json", self.settings.model_dump_json(indent=2).encode())
        with _tensorboard(self.out / "tensorboard", enabled=main and self.settings.train.tensorboard) as write:
            while self.state.step < steps:
                progress = self._run_epoch(stop, on_progress)
                if main:
                    progress = self._end_epoch(progress)
                    write(progress)
                    on_progress(progress)
                self.accelerator.wait_for_everyone()
                if self._agree(stop.is_set())[0] and self.state.step < steps:
                    raise self._interrupted()
        return self._finish()

    def _run_epoch(self, stop: threading.Event, on_progress: Callable[[Progress], None]) -> Progress:
        train, device = self.settings.train, self.accelerator.device
        epoch, first = divmod(self.state.step, self.data.steps_per_epoch)
        used = torch.tensor(self.state.used, dtype=torch.bool, device=device)  # (M, K)
        pending: list[Tensor] = []
        began, session_steps, last_save = time.monotonic(), 0, time.monotonic()
        seconds_before = self.state.seconds
        self.model.train()
        for number, batch in enumerate(self._batches(epoch, first)):
            part = number % train.accumulation
            is_last = part == train.accumulation - 1
            self._set_schedule(self.state.step / self.data.steps_per_epoch)
            # Dropout draws from the global generator: seeding it by step makes a resumed run draw the same.
            torch.manual_seed(_mix(train.seed, self.state.step, part, self.accelerator.process_index))
            crops = augment_batch(
                batch.images,
                self.settings.model.image_size,
                seed=train.seed,
                epoch=epoch,
                indices=batch.indices,
                settings=self.settings.augment,
            )
            with ExitStack() as stack:
                if not is_last:
                    stack.enter_context(self.accelerator.no_sync(self.prepared_model))
                    stack.enter_context(self.accelerator.no_sync(self.prepared_loss))
                output = self.prepared_model(self.model.normalise(crops))
                loss = self.prepared_loss(output, batch.labels.to(device))
                self.accelerator.backward(loss.total / train.accumulation)
            pending.append(torch.stack(loss).detach())
            used.scatter_(1, output.probs.detach().argmax(dim=2).T, value=True)
            if not is_last:
                continue
            if train.clip_norm:
                self.accelerator.clip_grad_norm_(self.optimizer.param_groups[0]["params"], train.clip_norm)
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
            used = self.accelerator.reduce(used.float(), reduction="sum") > 0
            progress = self._progress(epoch, used, session_steps, time.monotonic() - began)
            if at_end:
                break
            on_progress(progress)
            if asked or due:
                self.state.used = used.int().tolist()
                self._save()
                last_save = time.monotonic()
            if asked:
                raise self._interrupted()
        self.state.used = used.int().tolist()
        return progress

    def _batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield this process's share of the epoch's batches, from ``first_step`` of the epoch on."""
        train, data = self.settings.train, self.data
        order = epoch_order(len(data.dataset), train.seed, epoch)
        size = train.batch_size // (self.accelerator.num_processes * train.accumulation)
        starts = [
            step * train.batch_size + (part * self.accelerator.num_processes + self.accelerator.process_index) * size
            for step in range(first_step, data.steps_per_epoch)
            for part in range(train.accumulation)
        ]
        loader = DataLoader(
            data.dataset,
            batch_sampler=[order[start : start + size].tolist() for start in starts],
            num_workers=0 if data.dataset.fits else train.workers,
            collate_fn=keep_batch,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        for batch in loader:
            data.dataset.record(batch.skipped)
            yield batch._replace(labels=torch.from_numpy(np.searchsorted(data.classes, batch.labels.numpy())))

    def _set_schedule(self, epoch: float) -> None:
        for name, full in self.ramped.items():
            setattr(self.loss, name, full * _ramp(epoch, getattr(self.settings.loss, f"{name}_ramp_epochs")))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch, self.settings)

    def _add_up(self, pending: list[Tensor]) -> None:
        """Add the losses of the last steps to the epoch's, and stop if they show that the training went astray."""
        sums = self.accelerator.reduce(torch.stack(pending).sum(dim=0), reduction="mean").tolist()
        count = len(pending)
        pending.clear()
        limit, guessing = _highest_sane_loss(self.loss)
        if not all(map(math.isfinite, sums)) or sums[1] / count > limit:
            raise TrainingDivergedError(
                f"the training went astray at step {self.state.step}: loss {sums[0] / count:.3g}{guessing}. Lower "
                "train.learning_rate, set train.warmup_epochs to 1 or more, or train.clip_norm to 5; with "
                f"train.mixed_precision fp16 try bf16. The last checkpoint is in {self.checkpoint}"
            )
        self.state.sums = [
            old + new / self.settings.train.accumulation for old, new in zip(self.state.sums, sums, strict=True)
        ]

    def _agree(self, *wishes: bool) -> list[bool]:
        """Make every process act on what any of them wants."""
        wanted = torch.tensor(wishes, dtype=torch.float32, device=self.accelerator.device)
        return [value > 0 for value in self.accelerator.reduce(wanted, reduction="sum").tolist()]

    def _progress(self, epoch: int, used: Tensor, steps: int, seconds: float) -> Progress:
        train = self.settings.train
        count = self.state.step - epoch * self.data.steps_per_epoch
        total = train.epochs * self.data.steps_per_epoch
        means = [value / count for value in self.state.sums]
        return Progress(
            epoch=epoch + 1,
            epochs=train.epochs,
            step=self.state.step,
            steps=total,
            loss=means[0],
            original=means[1],
            quantized=means[2],
            entropy=means[3],
            used_words=tuple(used.sum(dim=1).tolist()),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_second=steps * train.batch_size / max(seconds, 1e-9),
            seconds_left=(total - self.state.step) * seconds / max(steps, 1),
        )

    def _end_epoch(self, progress: Progress) -> Progress:
        train, state = self.settings.train, self.state
        is_last = progress.epoch == train.epochs
        if self.data.gallery is not None and (is_last or progress.epoch % train.validation_every == 0):
            on_codes, on_features = self._validate()
            progress = replace(progress, validation_map=on_codes, validation_map_features=on_features)
        improved = progress.validation_map is not None and progress.validation_map >= state.best_map
        if improved or (self.data.gallery is None and is_last):
            state.best_map = progress.validation_map if progress.validation_map is not None else state.best_map
            state.best_epoch = progress.epoch
            self.model.training_facts = {
                **self.model.training_facts,
                "best_epoch": progress.epoch,
                "validation_map": progress.validation_map,
            }
            self.model.save_pretrained(self.out / "best")
        row = {key: value for key, value in asdict(progress).items() if key not in ("epochs", "steps", "seconds_left")}
        # As it comes back from a checkpoint: with lists, not tuples.
        state.history.append({**row, "used_words": list(progress.used_words), "seconds": round(state.seconds, 1)})
        state.sums, state.used = [0.0] * 4, _no_words(self.model)
        lines = "".join(json.dumps(row) + "\n" for row in state.history)
        atomic_write_bytes(self.out / HISTORY_FILE, lines.encode())
        self._save()
        return progress

    def _validate(self) -> tuple[float, float]:
        """Return the mAP of codes and of uncompressed features on the validation split."""
        if self.data.gallery is None or self.data.query is None:
            raise ConfigError("this training has no validation split")
        fits = self.settings.train.fit_query_temperature and self.settings.method == DEFAULT_METHOD
        temperatures = QUERY_TEMPERATURES if fits else (self.settings.model.query_temperature,)
        return validate(self.model, self.data.gallery, self.data.query, temperatures)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "settings": self.fixed,
            "progress": asdict(self.state),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        save_checkpoint(self.checkpoint, self.modules, self.optimizer, state)

    def _interrupted(self) -> TrainingInterruptedError:
        return TrainingInterruptedError(
            f"stopped at step {self.state.step}; everything up to here is in {self.checkpoint}. "
            "The same command with --resume goes on"
        )

    def _facts(self, split: Split) -> dict[str, Any]:
        train = self.settings.train
        method = self.model.method.name if isinstance(self.model, BaselineModel) else None
        return {
            **({} if method is None else {"method": method}),
            "split": split.name,
            "split_hash": split.hash,
            "people": len(self.data.classes),
            "images": len(self.data.dataset),
            "epochs": train.epochs,
            "seed": train.seed,
            "opqn_version": __version__,
            "torch_version": torch.__version__,
        }

    def _finish(self) -> TrainingResult:
        """Save the best model as ``model``."""
        target = self.out / "model"
        if self.accelerator.is_main_process:
            model = type(self.model).from_pretrained(self.out / "best", self.accelerator.device)
            if isinstance(model.quantizer, RefittedQuantizer):
                self._refit(model, model.quantizer)
            model.training_facts = {**model.training_facts, "seconds": round(self.state.seconds)}
            model.save_pretrained(target)
        self.accelerator.wait_for_everyone()
        self.state = broadcast_object_list([self.state])[0]
        return TrainingResult(
            type(self.model).from_pretrained(target),
            target,
            self.state.best_epoch,
            self.state.best_map if self.data.gallery is not None else None,
            tuple(self.state.history),
            self.data.skipped(),
        )

    def _refit(self, model: OPQN, head: RefittedQuantizer) -> None:
        """Fit the head anew to the features of the training images, and judge its codes as the epochs' were."""
        seed, data = self.settings.train.seed, self.data
        chosen = np.sort(epoch_order(len(data.dataset), seed, 0)[:REFIT_IMAGES]).tolist()
        features, labels = dataset_features(model, data.dataset, chosen)
        fitted = fit_head(features.numpy(), labels, model.num_books, model.num_words, seed)
        head.take(*map(torch.from_numpy, fitted))
        # A temperature that was fitted suits the paper's tables; these rank alike at any.
        model.with_query_temperature(self.settings.model.query_temperature)
        if data.gallery is not None and data.query is not None:
            on_codes, _ = validate(model, data.gallery, data.query, (model.config.query_temperature,))
            before = model.training_facts["validation_map"]
            facts = {"validation_map": on_codes, "validation_map_before_refit": before}
            model.training_facts = {**model.training_facts, **facts}
            self.state.best_map = on_codes


@dataclass(frozen=True)
class _Data:
    """A training's images: those trained on, and those a model is chosen by."""

    dataset: FaceDataset
    gallery: FaceDataset | None
    query: FaceDataset | None
    classes: NDArray[np.int64]
    steps_per_epoch: int

    def skipped(self) -> tuple[SkippedImage, ...]:
        sets = [part for part in (self.dataset, self.gallery, self.query) if part is not None]
        return tuple(sorted({image for part in sets for image in part.skipped}))


def _load_data(settings: TrainingSettings, root: Path, split: Split) -> _Data:
    train = settings.train
    numbers = {person: number for number, person in enumerate(sorted({person_of(path) for path in split.train}))}

    def load(paths: Sequence[str]) -> FaceDataset:
        labels = [numbers[person_of(path)] for path in paths]
        dataset = FaceDataset(root, paths, labels, settings.model.resize, cache_bytes=train.cache_mb << 20)
        dataset.preload()
        return dataset

    kept, gallery, query = split.train, None, None
    if train.validation != "none":
        parts = validation_split(split.train, protocol=train.validation, share=train.validation_share, seed=train.seed)
        kept, gallery, query = parts.train, load(parts.gallery), load(parts.query)
        if not np.isin(query.labels, gallery.labels).any():
            raise DataError(
                f"too few of the validation images in {root} can be read: no query is left whose person is in the "
                "gallery; repair the images, or set train.validation to none"
            )
    dataset = load(kept)
    steps = len(dataset) // train.batch_size
    if len(dataset.classes) < 2:
        raise DataError(f"{len(dataset.classes)} person is left to train on in {root}; training needs at least 2")
    if not steps:
        raise ConfigError(
            f"train.batch_size is {train.batch_size} and there are {len(dataset)} images to train on; set "
            f"train.batch_size to at most {len(dataset)}"
        )
    return _Data(dataset, gallery, query, dataset.classes, steps)


def _make_accelerator(settings: TrainingSettings) -> Accelerator:
    device, precision = settings.train.device, settings.train.mixed_precision
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device != "auto" and not available[device]:
        raise ConfigError(f"train.device is {device}, which this machine or this build of torch does not have")
    use_cpu = device == "cpu" or not (available["cuda"] or available["mps"])
    if precision == "fp16" and use_cpu:
        raise ConfigError("train.mixed_precision fp16 needs a GPU; use bf16 or no on the CPU")
    # Accelerate keeps one device and precision a process; a second training may have others.
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 (there is no public way)
    return Accelerator(cpu=use_cpu, mixed_precision=precision)


def _build_model(settings: TrainingSettings) -> OPQN:
    method = method_of(settings)
    if settings.model.refit and settings.model.feature_dim > MAX_DIM:
        raise ConfigError(
            f"model.refit takes features of at most {MAX_DIM} numbers, and num_books x book_dim is "
            f"{settings.model.feature_dim}; lower model.book_dim, or leave model.refit out"
        )
    return OPQN(settings.model) if method is None else BaselineModel(settings.model, method)


def _start_from(model: OPQN, folder: str) -> str:
    """Give a model the network of another one, trained by whatever method, and return the other's fingerprint."""
    other = load_model(folder, model.device)
    theirs, ours = other.config, model.config
    if (theirs.backbone, theirs.feature_dim) != (ours.backbone, ours.feature_dim):
        raise ConfigError(
            f"train.start: the network of {folder} is {theirs.backbone} with {theirs.feature_dim} features, and this "
            f"training's is {ours.backbone} with {ours.feature_dim}; set model.backbone, and model.num_books x "
            "model.book_dim, to the same, or start from another model"
        )
    model.backbone.load_state_dict(other.backbone.state_dict())
    return other.fingerprint


def _began_from(folder: str, checkpoint: Path) -> str:
    """Return the fingerprint of the model that a training to be resumed began from.

    Its network has done its part, so the folder may be gone. If it holds a model, that must be the same one: else a
    run would go under the name of a network that it never saw.
    """
    try:
        return str(read_json(Path(folder) / CONFIG_FILE)["fingerprint"])
    except (CorruptFileError, KeyError):
        return str(stored_settings(checkpoint).get("started_from", folder))


def _build_loss(settings: TrainingSettings, model: OPQN, num_classes: int) -> nn.Module:
    if isinstance(model, BaselineModel):
        return model.method.build_loss(settings.model, num_classes)
    config, loss = settings.model, settings.loss
    return OPQNLoss(
        num_classes, config.num_books, config.book_dim, loss.scale, loss.margin, loss.mu, loss.original_share
    )


def _highest_sane_loss(loss: nn.Module) -> tuple[float, str]:
    """Return the classification loss that no working training exceeds, and what to say of it in a message."""
    if not isinstance(loss, OPQNLoss):
        return math.inf, ""  # of the other losses it is only known that they are finite
    chance = _chance_level(loss)
    return chance + loss.scale, f", where guessing gives {chance:.3g}"


def _chance_level(loss: OPQNLoss) -> float:
    """Cross-entropy of a network that sees no likeness at all: every cosine zero."""
    rivals = loss.prototypes.shape[1] - 1
    return loss.scale * loss.margin + math.log(math.exp(-loss.scale * loss.margin) + rivals)


def _no_words(model: OPQN) -> list[list[int]]:
    return [[0] * model.num_words for _ in range(model.num_books)]


def _ramp(epoch: float, epochs: float) -> float:
    return min(1.0, epoch / epochs) if epochs else 1.0


def _mix(*numbers: int) -> int:
    """Hash numbers into a seed; equal on every machine."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event; the second acts as it always does."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _tensorboard(folder: Path, *, enabled: bool) -> Iterator[Callable[[Progress], None]]:
    if not enabled:
        yield lambda _: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise ConfigError("train.tensorboard needs tensorboard: pip install 'opqn[tensorboard]'") from error
    with SummaryWriter(str(folder)) as writer:

        def write(progress: Progress) -> None:
            for name, value in asdict(progress).items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, progress.step)
            for book, words in enumerate(progress.used_words):
                writer.add_scalar(f"used_words/{book}", words, progress.step)
            writer.flush()

        yield write
