"""Training: what it leaves, what stops it, and that stopping changes nothing."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from opqn import training
from opqn.baselines.methods import make_method
from opqn.baselines.model import BaselineModel, load_model
from opqn.config import TrainingSettings
from opqn.data.splits import Split, person_of
from opqn.errors import ConfigError, CorruptFileError, DataError, OpqnError
from opqn.evaluation import evaluate
from opqn.losses import OPQNLoss
from opqn.model import OPQN, ModelConfig
from opqn.refitting import fit_head
from opqn.training import (
    TrainingDivergedError,
    TrainingInterruptedError,
    learning_rate_at,
    train,
)
from opqn.validation import QUERY_TEMPERATURES, dataset_features

STEPS = 5  # of an epoch: 4 people with 5 pictures each to train on and 2 to validate with, in batches of 4
VARIANTS = {
    "plain": {},
    "accumulation": {
        "train": {"accumulation": 2, "clip_norm": 1.0},
        "augment": {"rotate_degrees": 10.0, "contrast": 0.2, "erase": 0.3},
        "loss": {"margin_ramp_epochs": 1.5, "mu_ramp_epochs": 1.0},
    },
    "bf16": {"train": {"mixed_precision": "bf16"}},
    "unseen": {"train": {"validation": "unseen"}},
    "learned": {"model": {"codebooks": "learned"}, "train": {"validation": "none"}},
    "refit": {"model": {"refit": True, "flip_average": True}},
}


def make_settings(**changes):
    """Settings of a training of seconds, with ``changes`` by section."""
    base = {
        "model": {"backbone": "resnet20-32-narrow", "num_books": 2, "num_words": 8, "book_dim": 8},
        "loss": {"margin": 0.1, "scale": 10.0},
        "train": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.01,
            "validation": "seen",
            "validation_share": 0.25,
            "device": "cpu",
        },
        "augment": {},
    }
    return TrainingSettings(**{name: {**values, **changes.get(name, {})} for name, values in base.items()})


def interrupt_after(calls, number=signal.SIGINT):
    """Return an ``on_progress`` that sends this process a signal when it is called for the n-th time."""
    seen = []

    def on_progress(progress):
        seen.append(progress)
        if len(seen) == calls:
            os.kill(os.getpid(), number)

    return on_progress


def interrupted_run(settings, faces, out, calls=2):
    with pytest.raises(TrainingInterruptedError, match=r"stopped at step \d+; .*checkpoint.*--resume goes on"):
        train(settings, *faces, out, on_progress=interrupt_after(calls))


def timeless(history):
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in history
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def faces(drawn_faces):
    """The drawn faces and a split of the first 4 people."""
    root, split = drawn_faces
    train_paths = tuple(path for path in split.train if person_of(path) < "p4")
    return root, Split("drawn-seen", "seen", 0, train_paths, train_paths, split.query[:4])


@pytest.fixture(scope="module")
def uninterrupted(faces, tmp_path_factory):
    """Return a function that gives the result of a variant's training, run once without a stop."""
    results = {}

    def get(variant):
        if variant not in results:
            out = tmp_path_factory.mktemp("runs") / variant
            results[variant] = train(make_settings(**VARIANTS[variant]), *faces, out)
        return results[variant]

    return get


@pytest.fixture
def own_faces(faces, tmp_path):
    """The same faces in a folder that may be changed."""
    root, split = faces
    return Path(shutil.copytree(root, tmp_path / "faces")), split


def test_run_leaves_a_model_a_history_and_its_settings(uninterrupted):
    result = uninterrupted("plain")
    out = result.folder.parent
    assert sorted(path.name for path in out.iterdir()) == [
        "best",
        "checkpoint",
        "history.jsonl",
        "model",
        "settings.json",
    ]
    assert OPQN.from_pretrained(out / "model").fingerprint == result.model.fingerprint
    assert [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()] == json.loads(
        json.dumps(result.history)
    )
    assert [row["step"] for row in result.history] == [STEPS, 2 * STEPS]
    assert TrainingSettings(**json.loads((out / "settings.json").read_text())) == make_settings()
    facts = result.model.training_facts
    assert (facts["people"], facts["images"], facts["split"]) == (4, 20, "drawn-seen")
    assert facts["best_epoch"] == result.best_epoch
    assert result.validation_map == result.history[result.best_epoch - 1]["validation_map"]
    assert result.skipped == ()
    assert not result.model.training


@pytest.mark.slow
def test_training_learns(drawn_faces, tmp_path):
    changes = {
        "model": {"num_books": 4, "dropout": 0.0},
        "train": {"epochs": 12, "batch_size": 8, "learning_rate": 0.005},
    }
    result = train(make_settings(**changes, loss={"margin": 0.0}), *drawn_faces, tmp_path / "run")
    first, last = result.history[0], result.history[-1]
    assert last["loss"] < first["loss"] / 2
    assert last["original"] < first["original"] / 2
    assert last["quantized"] < first["quantized"] / 2
    assert result.validation_map > 0.7  # 0.27 by chance
    assert last["validation_map_features"] > 0.9


class TestResume:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_interrupted_run_gives_bitwise_the_same(self, variant, faces, tmp_path, uninterrupted):
        settings, expected = make_settings(**VARIANTS[variant]), uninterrupted(variant)
        interrupted_run(settings, faces, tmp_path)
        assert not (tmp_path / "model").exists()
        progress = json.loads((tmp_path / "checkpoint/state.json").read_text())["progress"]
        assert progress["step"] == 3
        result = train(settings, *faces, tmp_path, resume=True)
        assert result.model.fingerprint == expected.model.fingerprint
        assert timeless(result.history) == timeless(expected.history)
        assert (result.best_epoch, result.validation_map) == (expected.best_epoch, expected.validation_map)

    @pytest.mark.parametrize("calls", [1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS - 2])
    def test_it_does_not_matter_where(self, calls, faces, tmp_path, uninterrupted):
        interrupted_run(make_settings(), faces, tmp_path, calls)
        result = train(make_settings(), *faces, tmp_path, resume=True)
        assert result.model.fingerprint == uninterrupted("plain").model.fingerprint
        assert timeless(result.history) == timeless(uninterrupted("plain").history)

    def test_stop_in_the_last_step_is_too_late(self, faces, tmp_path, uninterrupted):
        result = train(make_settings(), *faces, tmp_path, on_progress=interrupt_after(2 * STEPS - 1))
        assert result.model.fingerprint == uninterrupted("plain").model.fingerprint

    def test_terminated_run_saves_too(self, faces, tmp_path):
        with pytest.raises(TrainingInterruptedError):
            train(make_settings(), *faces, tmp_path, on_progress=interrupt_after(2, signal.SIGTERM))
        assert training.has_checkpoint(tmp_path / "checkpoint")

    def test_second_signal_does_not_wait(self, faces, tmp_path):
        before = signal.getsignal(signal.SIGINT)

        def on_progress(_):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            train(make_settings(), *faces, tmp_path, on_progress=on_progress)
        assert signal.getsignal(signal.SIGINT) is before

    def test_thread_other_than_the_main_one_can_train(self, faces, tmp_path, uninterrupted):
        results = []
        thread = threading.Thread(target=lambda: results.append(train(make_settings(), *faces, tmp_path)))
        thread.start()
        thread.join()
        assert results[0].model.fingerprint == uninterrupted("plain").model.fingerprint

    @pytest.mark.parametrize("variant", ["plain", "refit"])
    def test_finished_run_resumes_to_the_same_result(self, variant, faces, tmp_path, uninterrupted):
        expected = uninterrupted(variant)
        out = shutil.copytree(expected.folder.parent, tmp_path / "run")
        shutil.rmtree(out / "model")
        result = train(make_settings(**VARIANTS[variant]), *faces, out, resume=True)
        assert result.model.fingerprint == expected.model.fingerprint
        assert result.validation_map == expected.validation_map
        assert timeless(result.history) == timeless(expected.history)

    def test_resume_without_a_checkpoint_starts(self, faces, tmp_path, uninterrupted):
        result = train(make_settings(), *faces, tmp_path, resume=True)
        assert result.model.fingerprint == uninterrupted("plain").model.fingerprint

    def test_run_is_not_overwritten_without_resume(self, faces, tmp_path):
        interrupted_run(make_settings(), faces, tmp_path)
        before = contents(tmp_path / "checkpoint")
        with pytest.raises(ConfigError, match="holds a training already; pass --resume"):
            train(make_settings(), *faces, tmp_path)
        assert contents(tmp_path / "checkpoint") == before

    def test_other_settings_are_refused_by_name(self, faces, tmp_path):
        root, split = faces
        interrupted_run(make_settings(), faces, tmp_path)
        before = contents(tmp_path / "checkpoint")
        for changes, message in (
            ({"train": {"learning_rate": 0.02}}, r"train\.learning_rate was 0\.01, is 0\.02"),
            ({"loss": {"mu": 0.2}}, r"loss\.mu was 0\.1, is 0\.2"),
            ({"model": {"num_words": 4}}, r"model\.num_words was 8, is 4"),
            ({"augment": {"erase": 0.5}}, r"augment\.erase was 0\.0, is 0\.5"),
        ):
            with pytest.raises(ConfigError, match=message):
                train(make_settings(**changes), root, split, tmp_path, resume=True)
        other = Split("other", "seen", 1, split.train, split.train, split.query)
        with pytest.raises(ConfigError, match="split was"):
            train(make_settings(), root, other, tmp_path, resume=True)
        assert contents(tmp_path / "checkpoint") == before

    def test_images_that_became_unreadable_are_refused(self, own_faces, tmp_path):
        root, _ = own_faces
        interrupted_run(make_settings(), own_faces, tmp_path / "run")
        (root / "p0/0.png").write_bytes(b"broken")
        (root / "p0/1.png").write_bytes(b"broken")
        (root / "p0/2.png").write_bytes(b"broken")
        with pytest.raises(ConfigError, match=r"readable_images was 20, is 1[789]"):
            train(make_settings(), *own_faces, tmp_path / "run", resume=True)

    def test_damaged_checkpoint_is_refused(self, faces, tmp_path):
        interrupted_run(make_settings(), faces, tmp_path)
        tensors = tmp_path / "checkpoint/state.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-1])
        with pytest.raises(CorruptFileError, match=r"delete .*checkpoint to start again"):
            train(make_settings(), *faces, tmp_path, resume=True)

    @pytest.mark.parametrize("room", [0, 2, 3, 4])
    def test_full_disk_leaves_the_old_checkpoint(
        self, room, faces, tmp_path, uninterrupted, full_disk_after, monkeypatch
    ):
        interrupted_run(make_settings(), faces, tmp_path)
        before = contents(tmp_path / "checkpoint")
        full_disk_after(room)
        with pytest.raises(OpqnError, match=f"the disk is full.*unchanged|{os.strerror(errno.ENOSPC)}"):
            train(make_settings(), *faces, tmp_path, resume=True)
        assert contents(tmp_path / "checkpoint") == before
        monkeypatch.undo()
        result = train(make_settings(), *faces, tmp_path, resume=True)
        assert result.model.fingerprint == uninterrupted("plain").model.fingerprint

    @pytest.mark.slow
    def test_killed_run_gives_bitwise_the_same(self, faces, tmp_path, uninterrupted):
        root, split = faces
        split.save(tmp_path / "split.json")
        settings = make_settings(train={"checkpoint_minutes": 1e-9})  # a checkpoint every step
        (tmp_path / "settings.json").write_text(settings.model_dump_json())
        command = [sys.executable, "-c", KILLED_PROGRAM, str(tmp_path), str(root)]
        rng = np.random.default_rng()
        for _ in range(3):
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for _ in range(rng.integers(1, 4)):
                    assert process.stdout.readline() in ("step\n", "")  # nothing where the training was done already
                threading.Event().wait(rng.uniform(0, 0.2))
                process.kill()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = OPQN.from_pretrained(tmp_path / "run/model")
        assert result.fingerprint == uninterrupted("plain").model.fingerprint
        history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
        assert timeless(history) == timeless(json.loads(json.dumps(uninterrupted("plain").history)))


KILLED_PROGRAM = """
import json, pathlib, sys
from opqn.config import TrainingSettings
from opqn.data.splits import Split
from opqn.training import train
here = pathlib.Path(sys.argv[1])
settings = TrainingSettings(**json.loads((here / "settings.json").read_text()))
train(settings, sys.argv[2], Split.load(here / "split.json"), here / "run", resume=True,
      on_progress=lambda _: print("step", flush=True))
"""


class TestImages:
    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 1])
    def test_result_does_not_depend_on_the_cache(self, workers, faces, tmp_path, uninterrupted):
        result = train(make_settings(train={"cache_mb": 0, "workers": workers}), *faces, tmp_path)
        assert result.model.fingerprint == uninterrupted("plain").model.fingerprint
        assert timeless(result.history) == timeless(uninterrupted("plain").history)

    def test_test_images_are_never_opened(self, own_faces, tmp_path):
        root, split = own_faces
        train_paths = tuple(path for path in split.train if person_of(path) < "p3")
        tested = [path for path in split.train if person_of(path) == "p3"]
        unseen = Split("drawn-unseen", "unseen", 0, train_paths, tuple(tested[::2]), tuple(tested[1::2]))
        for path in tested:
            (root / path).unlink()
        settings = make_settings(train={"epochs": 1})
        assert train(settings, root, unseen, tmp_path / "run").skipped == ()

    @pytest.mark.parametrize("validation", ["unseen", "seen"])
    def test_validation_images_are_in_no_batch(self, validation, faces, tmp_path, monkeypatch):
        root, split = faces
        trained = set()
        batches = training._Run._batches

        def spy(run, *arguments):
            for batch in batches(run, *arguments):
                trained.update(run.data.dataset.paths[index] for index in batch.indices.tolist())
                yield batch

        monkeypatch.setattr(training._Run, "_batches", spy)
        run = training._Run(make_settings(train={"validation": validation}), root, split, tmp_path, resume=False)
        run.run(threading.Event(), lambda _: None)
        assert len(trained) > 10
        assert trained <= set(run.data.dataset.paths) < set(split.train)
        assert not trained & set(run.data.query.paths)
        if validation == "unseen":
            tested = {person_of(path) for path in (*run.data.gallery.paths, *run.data.query.paths)}
            assert len(tested) == 2
            assert not tested & {person_of(path) for path in trained}

    def test_every_step_has_its_own_images(self, faces, tmp_path, monkeypatch):
        drawn = []
        augment = training.augment_batch

        def spy(images, crop, **options):
            drawn.append((options["epoch"], options["indices"].tolist()))
            return augment(images, crop, **options)

        monkeypatch.setattr(training, "augment_batch", spy)
        train(make_settings(train={"accumulation": 2}), *faces, tmp_path)
        assert [epoch for epoch, _ in drawn] == [0] * 2 * STEPS + [1] * 2 * STEPS
        first, second = ([index for epoch, part in drawn if epoch == number for index in part] for number in (0, 1))
        assert sorted(first) == sorted(second) == list(range(20))
        assert first != second

    @pytest.mark.parametrize("cache_mb", [0, 100])
    def test_unreadable_images_are_left_out_and_listed(self, cache_mb, own_faces, tmp_path):
        root, split = own_faces
        broken = {path for path in split.train if person_of(path) == "p1"} | {"p0/0.png", "p3/3.png"}
        for path in broken:
            (root / path).write_bytes(b"broken")
        settings = make_settings(train={"cache_mb": cache_mb, "workers": 0, "epochs": 4, "validation": "none"})
        result = train(settings, root, split, tmp_path / "run")
        assert {image.path for image in result.skipped} == broken
        assert all(image.reason for image in result.skipped)
        assert result.model.training_facts["people"] == 3
        assert all(math.isfinite(row["loss"]) for row in result.history)

    def test_validation_without_readable_matches_is_refused_at_the_start(self, own_faces, tmp_path):
        root, split = own_faces
        with pytest.MonkeyPatch.context() as patch:
            gallery, query = ("p0/0.png", "p1/0.png"), ("p2/0.png",)
            patch.setattr(training, "validation_split", lambda *_, **__: training_parts(split, gallery, query))
            with pytest.raises(DataError, match=r"set train.validation to none"):
                train(make_settings(), root, split, tmp_path / "run")

    def test_batch_larger_than_the_data_names_the_largest_that_fits(self, faces, tmp_path):
        with pytest.raises(ConfigError, match=r"train.batch_size is 64 and there are 20 images.*at most 20"):
            train(make_settings(train={"batch_size": 64}), *faces, tmp_path)
        train(make_settings(train={"batch_size": 20, "epochs": 1}), *faces, tmp_path)

    def test_one_person_is_too_few(self, faces, tmp_path):
        root, split = faces
        paths = split.train[:7]
        one = Split("one", "seen", 0, paths, paths, split.query[:1])
        with pytest.raises(DataError, match=r"1 person is left .* at least 2"):
            train(make_settings(train={"validation": "none", "batch_size": 2}), root, one, tmp_path)
        with pytest.raises(DataError, match=r"too few .* set train.validation to 'seen' or 'none'"):
            train(make_settings(train={"validation": "unseen"}), root, one, tmp_path)

    def test_folder_without_readable_images_is_refused(self, faces, tmp_path):
        _, split = faces
        with pytest.raises(DataError, match=r"none of the .* can be read"):
            train(make_settings(), tmp_path / "nowhere", split, tmp_path / "run")


def training_parts(split, gallery, query):
    from opqn.data.splits import ValidationSplit

    return ValidationSplit(split.train[14:], gallery, query)


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"train": {"mixed_precision": "fp16"}}, "fp16 needs a GPU; use bf16 or no on the CPU"),
            ({"train": {"accumulation": 3}}, "batch_size is 4; it must be a multiple of .*, 3"),
            ({"train": {"accumulation": 4}}, "leaves one image a part.*set it to 8 or more"),
            ({"model": {"backbone": "resnet50"}}, "unknown backbone"),
            (
                {"model": {"refit": True, "num_books": 3, "book_dim": 4096}},
                "at most 8192 numbers, and .* is 12288; lower model.book_dim",
            ),
        ],
    )
    def test_impossible_combinations_are_refused_before_any_image_is_read(self, changes, message, tmp_path):
        paths = ("a/1.png", "a/2.png", "b/1.png")
        split = Split("none", "seen", 0, paths, paths, ("b/2.png",))
        with pytest.raises(ConfigError, match=message):
            train(make_settings(**changes), tmp_path / "nowhere", split, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("device", ["cuda", "mps"])
    def test_device_that_is_not_there_is_refused(self, device, faces, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=f"train.device is {device}, which this machine"):
            train(make_settings(train={"device": device}), *faces, tmp_path)

    def test_tensorboard_files_are_written(self, faces, tmp_path):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        result = train(make_settings(train={"tensorboard": True}), *faces, tmp_path)
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert {"loss", "learning_rate", "validation_map", "used_words/0", "used_words/1"} <= set(
            events.Tags()["scalars"]
        )
        losses = [(event.step, event.value) for event in events.Scalars("loss")]
        assert losses == [(row["step"], pytest.approx(row["loss"])) for row in result.history]

    def test_without_validation_the_last_epoch_is_kept(self, uninterrupted):
        result = uninterrupted("learned")
        assert result.best_epoch == 2
        assert result.validation_map is None
        assert result.model.config.query_temperature == 1
        assert result.history[-1]["validation_map"] is None


class TestSchedule:
    def test_step(self):
        settings = make_settings(train={"epochs": 100, "learning_rate": 0.2, "step_epochs": 10, "step_factor": 0.5})
        for epoch in (0, 0.5, 9.99, 10, 25, 99.9):
            assert learning_rate_at(epoch, settings) == 0.2 * 0.5 ** math.floor(epoch / 10)

    def test_cosine_falls_from_the_rate_to_zero(self):
        settings = make_settings(train={"epochs": 40, "learning_rate": 0.2, "schedule": "cosine"})
        rates = [learning_rate_at(epoch, settings) for epoch in range(41)]
        assert rates[0] == 0.2
        assert rates[20] == pytest.approx(0.1)
        assert rates[10] == pytest.approx(0.2 * (1 + math.sqrt(0.5)) / 2)
        assert rates[40] == pytest.approx(0, abs=1e-15)
        assert rates == sorted(rates, reverse=True)

    @pytest.mark.parametrize("schedule", ["step", "cosine"])
    def test_warmup_grows_linearly_from_zero(self, schedule):
        settings = make_settings(
            train={"epochs": 12, "learning_rate": 0.2, "schedule": schedule, "warmup_epochs": 2, "step_epochs": 5}
        )
        assert [learning_rate_at(epoch, settings) for epoch in (0, 0.5, 1, 1.5)] == pytest.approx([0, 0.05, 0.1, 0.15])
        assert learning_rate_at(2, settings) == 0.2
        assert learning_rate_at(7, settings) == pytest.approx(0.1)

    def test_warmup_may_fill_the_training(self):
        settings = make_settings(train={"epochs": 4, "learning_rate": 0.2, "schedule": "cosine", "warmup_epochs": 4})
        assert learning_rate_at(3, settings) == pytest.approx(0.15)
        assert math.isfinite(learning_rate_at(4, settings))

    def test_rate_margin_and_mu_move_with_every_step(self, faces, tmp_path, monkeypatch):
        seen = []
        forward = OPQNLoss.forward

        def spy(loss, *arguments):
            seen.append((loss.margin, loss.mu))
            return forward(loss, *arguments)

        monkeypatch.setattr(OPQNLoss, "forward", spy)
        settings = make_settings(
            train={"epochs": 3, "warmup_epochs": 2, "validation_every": 3},
            loss={"margin": 0.3, "mu": 0.2, "margin_ramp_epochs": 1.5, "mu_ramp_epochs": 0.5},
        )
        rates = {}
        train(settings, *faces, tmp_path, on_progress=lambda p: rates.setdefault(p.step, p.learning_rate))
        epochs = [step / STEPS for step in range(3 * STEPS)]
        assert [margin for margin, _ in seen] == pytest.approx([0.3 * min(1, epoch / 1.5) for epoch in epochs])
        assert [mu for _, mu in seen] == pytest.approx([0.2 * min(1, epoch / 0.5) for epoch in epochs])
        assert rates == {step + 1: learning_rate_at(epoch, settings) for step, epoch in enumerate(epochs)}


class TestDivergence:
    def test_loss_that_is_no_number_stops_and_leaves_the_checkpoint(self, faces, tmp_path, monkeypatch, uninterrupted):
        interrupted_run(make_settings(), faces, tmp_path)
        before = contents(tmp_path / "checkpoint")
        forward = OPQNLoss.forward

        def break_off(*arguments):
            parts = forward(*arguments)
            return parts._replace(total=parts.total * math.nan)

        with monkeypatch.context() as patch:
            patch.setattr(OPQNLoss, "forward", break_off)
            with pytest.raises(TrainingDivergedError, match=r"at step 4: loss nan.*Lower train\.learning_rate"):
                train(make_settings(), *faces, tmp_path, resume=True)
        assert contents(tmp_path / "checkpoint") == before
        result = train(make_settings(), *faces, tmp_path, resume=True)
        assert result.model.fingerprint == uninterrupted("plain").model.fingerprint

    def test_absurd_learning_rate_is_noticed(self, faces, tmp_path):
        with pytest.raises(TrainingDivergedError, match=r"Lower train\.learning_rate, set train\.warmup_epochs"):
            train(make_settings(train={"learning_rate": 1e30}), *faces, tmp_path)
        assert not (tmp_path / "model").exists()

    def test_first_steps_of_short_books_are_no_divergence(self, drawn_faces, tmp_path):
        changes = {"model": {"num_words": 4, "book_dim": 4}, "loss": {"scale": 20.0, "margin": 0.2}}
        settings = make_settings(**changes, train={"epochs": 1, "batch_size": 8, "learning_rate": 1e-4})
        result = train(settings, *drawn_faces, tmp_path)
        assert result.history[0]["original"] > 12  # a few random directions are never far from each other


class TestBestModel:
    def fake_validation(self, monkeypatch, values):
        fingerprints = []

        def validate(run):
            fingerprints.append(run.model.fingerprint)
            return values[len(fingerprints) - 1], 0.5

        monkeypatch.setattr(training._Run, "_validate", validate)
        return fingerprints

    @pytest.mark.parametrize(
        ("values", "best"), [([0.3, 0.9, 0.5], 2), ([0.9, 0.3, 0.5], 1), ([0.0, 0.0, 0.4], 3), ([0.7, 0.7, 0.2], 2)]
    )
    def test_best_by_validation_is_kept(self, values, best, faces, tmp_path, monkeypatch):
        fingerprints = self.fake_validation(monkeypatch, values)
        settings = make_settings(train={"epochs": 3, "fit_query_temperature": False})
        result = train(settings, *faces, tmp_path)
        assert len(set(fingerprints)) == 3
        assert result.best_epoch == best
        assert result.validation_map == values[best - 1]
        assert result.model.fingerprint == fingerprints[best - 1]
        assert result.model.training_facts["best_epoch"] == best

    def test_last_epoch_is_always_validated(self, faces, tmp_path, monkeypatch):
        self.fake_validation(monkeypatch, [0.3, 0.2])
        result = train(make_settings(train={"epochs": 3, "validation_every": 2}), *faces, tmp_path)
        assert [row["validation_map"] for row in result.history] == [None, 0.3, 0.2]
        assert result.best_epoch == 2

    @pytest.mark.parametrize(("fit", "refit"), [(True, False), (False, False), (True, True)])
    def test_reported_map_is_that_of_the_saved_model(self, fit, refit, faces, tmp_path):
        settings = make_settings(model={"refit": refit}, train={"fit_query_temperature": fit})
        run = training._Run(settings, *faces, tmp_path, resume=False)
        result = run.run(threading.Event(), lambda _: None)
        root = faces[0]
        codes = result.model.encode([root / path for path in run.data.gallery.paths])
        tables = result.model.lookup_tables([root / path for path in run.data.query.paths])
        report = evaluate(codes, run.data.gallery.labels, tables, run.data.query.labels)
        assert report.mean_average_precision == pytest.approx(result.validation_map)
        assert result.model.training_facts["validation_map"] == result.validation_map

    def test_fitting_improves_validation_and_leaves_the_weights(self, faces, tmp_path, uninterrupted):
        fitted = uninterrupted("plain")
        plain = train(make_settings(train={"fit_query_temperature": False}), *faces, tmp_path)
        assert plain.model.config.query_temperature == 1
        assert fitted.model.config.query_temperature in QUERY_TEMPERATURES
        for with_it, without in zip(fitted.history, plain.history, strict=True):
            assert with_it["validation_map"] >= without["validation_map"]
            assert with_it["loss"] == without["loss"]
            assert with_it["validation_map_features"] == without["validation_map_features"]


class TestRefit:
    def test_the_head_is_fitted_to_the_training_images(self, faces, tmp_path):
        settings = make_settings(model={"refit": True}, train={"seed": 3})
        run = training._Run(settings, *faces, tmp_path, resume=False)
        model = run.run(threading.Event(), lambda _: None).model
        features, labels = dataset_features(model, run.data.dataset)
        found = fit_head(features.numpy(), labels, 2, 8, seed=3)
        assert np.array_equal(model.quantizer.code_weights, found.codes)
        assert np.array_equal(model.quantizer.table_weights, found.tables)
        assert not run.model.quantizer.is_refitted

    def test_everything_else_is_as_without_it(self, faces, tmp_path, uninterrupted):
        plain = uninterrupted("plain")
        result = train(make_settings(model={"refit": True}), *faces, tmp_path)
        assert timeless(result.history) == timeless(plain.history)
        assert result.best_epoch == plain.best_epoch
        best = OPQN.from_pretrained(tmp_path / "best")
        assert not best.quantizer.is_refitted
        assert best.config.query_temperature == plain.model.config.query_temperature
        expected, state = plain.model.state_dict(), result.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        assert state.keys() - expected.keys() == {
            f"quantizer.{name}" for name in ("code_weights", "table_weights", "is_refitted")
        }
        assert result.model.quantizer.is_refitted
        assert result.model.training_facts["validation_map_before_refit"] == plain.validation_map

    @pytest.mark.parametrize("temperature", [1.0, 0.2])
    def test_temperature_that_was_fitted_for_other_tables_is_not_kept(self, temperature, faces, tmp_path, monkeypatch):
        monkeypatch.setattr(training, "QUERY_TEMPERATURES", (8.0,))
        settings = make_settings(model={"refit": True, "query_temperature": temperature}, train={"epochs": 1})
        result = train(settings, *faces, tmp_path)
        assert OPQN.from_pretrained(tmp_path / "best").config.query_temperature == 8.0
        assert result.model.config.query_temperature == temperature
        assert OPQN.from_pretrained(tmp_path / "model").quantizer.query_temperature == temperature

    @pytest.mark.parametrize(
        "paths",
        [
            ("p0/0.png", "p1/0.png", "p1/1.png"),  # one person with a single image
            ("p0/0.png", "p1/0.png", "p2/0.png", "p3/0.png"),  # all of them
        ],
        ids=["one", "all"],
    )
    def test_few_images_are_enough(self, paths, faces, tmp_path):
        root, split = faces
        few = Split("few", "seen", 0, paths, paths, split.query[:1])
        changes = {"epochs": 1, "batch_size": 2, "validation": "none", "seed": (1 << 32) + 5}
        model = train(make_settings(model={"refit": True}, train=changes), root, few, tmp_path).model
        assert model.quantizer.is_refitted
        assert "validation_map_before_refit" not in model.training_facts
        codes = model.encode([root / path for path in split.train])
        assert codes.max() < 8
        assert len(np.unique(codes, axis=0)) > 1
        assert np.isfinite(model.lookup_tables([root / path for path in split.query])).all()

    def test_of_many_images_some_are_drawn(self, faces, tmp_path, monkeypatch, uninterrupted):
        sizes = []

        def spy(features, labels, *rest):
            sizes.append((len(features), np.unique(labels).size))
            return fit_head(features, labels, *rest)

        monkeypatch.setattr(training, "fit_head", spy)
        results = []
        for limit in (19, 20):
            monkeypatch.setattr(training, "REFIT_IMAGES", limit)
            out = shutil.copytree(uninterrupted("refit").folder.parent, tmp_path / str(limit))
            results.append(train(make_settings(**VARIANTS["refit"]), *faces, out, resume=True).model.fingerprint)
        assert sizes == [(19, 4), (20, 4)]
        assert results[0] != results[1] == uninterrupted("refit").model.fingerprint


class TestStart:
    @pytest.fixture
    def other(self, tmp_path, uninterrupted):
        """The folder of a trained model, to start from."""
        return Path(shutil.copytree(uninterrupted("plain").folder, tmp_path / "other"))

    def settings(self, folder, **changes):
        return make_settings(**{**changes, "train": {"start": str(folder), "seed": 7, **changes.get("train", {})}})

    def test_network_is_the_others_and_the_head_is_new(self, faces, tmp_path, other):
        run = training._Run(self.settings(other), *faces, tmp_path / "run", resume=False)
        theirs = OPQN.from_pretrained(other)
        ours = run.model.backbone.state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.backbone.state_dict().items())
        without = training._Run(make_settings(train={"seed": 7}), *faces, tmp_path / "run", resume=False).model
        assert torch.equal(run.model.quantizer.projection, without.quantizer.projection)
        assert not torch.equal(run.model.quantizer.projection, theirs.quantizer.projection)
        assert not torch.equal(ours["stages.0.weight"], without.backbone.state_dict()["stages.0.weight"])

    @pytest.mark.parametrize("is_baseline", [False, True])
    def test_methods_may_start_from_each_other(self, is_baseline, faces, tmp_path):
        config = ModelConfig(**make_settings(model={"num_books": 4, "num_words": 4, "book_dim": 4}).model.model_dump())
        method = make_method("csq", {})
        theirs = BaselineModel(config, method) if is_baseline else OPQN(config)
        theirs.save_pretrained(tmp_path / "other")
        settings = self.settings(tmp_path / "other", train={"epochs": 1})
        settings = settings.model_copy(update={"method": "opqn" if is_baseline else "csq"})
        run = training._Run(settings, *faces, tmp_path / "run", resume=False)
        ours = run.model.backbone.state_dict()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.backbone.state_dict().items())
        result = run.run(threading.Event(), lambda _: None)
        assert result.model.training_facts["started_from"] == theirs.fingerprint

    def test_it_is_told_which_network_it_was(self, faces, tmp_path, other, uninterrupted):
        result = train(self.settings(other), *faces, tmp_path / "run")
        assert result.model.training_facts["started_from"] == uninterrupted("plain").model.fingerprint
        assert "started_from" not in uninterrupted("plain").model.training_facts
        card = (tmp_path / "run/model/README.md").read_text()
        assert f"| started_from | {uninterrupted('plain').model.fingerprint} |" in card

    @pytest.mark.parametrize(
        "model",
        [{"backbone": "resnet20-32-small"}, {"num_books": 3}, {"book_dim": 16}],
        ids=lambda model: next(iter(model)),
    )
    def test_another_network_or_length_is_refused(self, model, faces, tmp_path, other):
        with pytest.raises(
            ConfigError,
            match=r"train\.start: the network of .*other is resnet20-32-narrow with 16 features, and this training's "
            r"is resnet20-32-\w+ with \d+; set model\.backbone, and .*to the same",
        ):
            train(self.settings(other, model=model), *faces, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_folder_that_is_none_is_refused(self, faces, tmp_path, other):
        with pytest.raises(DataError, match="none: no such model folder here"):
            train(self.settings(tmp_path / "none"), *faces, tmp_path / "run")
        (other / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises(CorruptFileError, match="cannot be read as safetensors"):
            train(self.settings(other), *faces, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_interrupted_run_does_not_need_the_folder_again(self, faces, tmp_path, other):
        expected = train(self.settings(other), *faces, tmp_path / "whole")
        interrupted_run(self.settings(other), faces, tmp_path / "run")
        interrupted = tmp_path / "run"
        moved = other.rename(tmp_path / "moved")
        ways = {"gone": other, "moved": moved, "damaged": tmp_path / "damaged"}
        ways["damaged"].mkdir()
        (ways["damaged"] / "config.json").write_text("{")
        for name, folder in ways.items():
            out = shutil.copytree(interrupted, tmp_path / name / "run")
            result = train(self.settings(folder), *faces, out, resume=True)
            assert result.model.fingerprint == expected.model.fingerprint, name
            facts = dict(result.model.training_facts, seconds=0)
            assert facts == dict(expected.model.training_facts, seconds=0), name
            assert timeless(result.history) == timeless(expected.history), name

    def test_run_does_not_go_on_under_another_start(self, faces, tmp_path, other, uninterrupted):
        interrupted_run(self.settings(other), faces, tmp_path / "run")
        before = contents(tmp_path / "run/checkpoint")
        ours = uninterrupted("plain").model.fingerprint
        theirs = uninterrupted("unseen").model.fingerprint
        with pytest.raises(ConfigError, match=f"started_from was {ours}, is None"):
            train(make_settings(train={"seed": 7}), *faces, tmp_path / "run", resume=True)
        shutil.rmtree(other)
        shutil.copytree(uninterrupted("unseen").folder, other)
        with pytest.raises(ConfigError, match=f"started_from was {ours}, is {theirs}"):
            train(self.settings(other), *faces, tmp_path / "run", resume=True)
        assert contents(tmp_path / "run/checkpoint") == before

    @pytest.mark.parametrize("is_there", [True, False])
    def test_run_that_began_without_does_not_start_from_a_network_later(self, is_there, faces, tmp_path, other):
        interrupted_run(make_settings(train={"seed": 7}), faces, tmp_path / "run")
        if not is_there:
            shutil.rmtree(other)
        with pytest.raises(ConfigError, match=r"started_from was None, is \S+"):
            train(self.settings(other), *faces, tmp_path / "run", resume=True)


PROCESSES_PROGRAM = """
import hashlib, json, os, pathlib, sys, threading
from opqn import training
from opqn.config import TrainingSettings
from opqn.data.splits import Split
here = pathlib.Path(sys.argv[1])
settings = TrainingSettings(**json.loads((here / "settings.json").read_text()))
run = training._Run(settings, pathlib.Path(sys.argv[2]), Split.load(here / "split.json"), here / "run", resume=False)
result = run.run(threading.Event(), lambda _: None)
digest = hashlib.sha256()
for module in (run.model, run.loss):
    for parameter in module.parameters():
        digest.update(parameter.detach().numpy().tobytes())
report = {"processes": run.accelerator.num_processes, "weights": digest.hexdigest(), "model": result.model.fingerprint,
          "map": result.validation_map, "epochs": len(result.history), "used": result.history[-1]["used_words"]}
(here / f"rank{os.environ['RANK']}.json").write_text(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "refit"),
    [("opqn", False), ("opqn", True), ("csq", False)],  # the loss of csq has no weights
)
def test_two_processes_train_one_model(method, refit, faces, tmp_path):
    root, split = faces
    split.save(tmp_path / "split.json")
    settings = make_settings(model={"refit": refit}, train={"accumulation": 2, "batch_size": 8})
    settings = settings.model_copy(update={"method": method})
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    (tmp_path / "program.py").write_text(PROCESSES_PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command = [sys.executable, *launcher, str(tmp_path / "program.py"), str(tmp_path), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["processes"] == 2
    assert first["epochs"] == 2
    assert 0 < first["map"] <= 1
    model = load_model(tmp_path / "run/model")
    assert model.fingerprint == first["model"]
    assert model.training_facts["validation_map"] == first["map"]
    assert model.config.refit == refit
    assert bool(getattr(model.quantizer, "is_refitted", False)) == refit
