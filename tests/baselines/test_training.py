"""Every comparison method goes through OPQN's training loop: it learns, resumes, and is judged by its own codes."""

import os
import signal
import threading

import pytest

from opqn import training
from opqn.baselines.methods import METHODS, method_of
from opqn.baselines.model import BaselineModel
from opqn.config import TrainingSettings, load_settings
from opqn.data.splits import Split
from opqn.errors import ConfigError
from opqn.evaluation import evaluate
from opqn.protocols import evaluate_split
from opqn.training import TrainingDivergedError, TrainingInterruptedError, train


def make_settings(method, **changes):
    """Settings of a training of seconds, with ``changes`` by section."""
    base = {
        "model": {"backbone": "resnet20-32-narrow", "num_books": 4, "num_words": 8, "book_dim": 16, "dropout": 0.0},
        "loss": {"margin": 0.1, "scale": 10.0},
        "train": {
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 0.01,
            "validation": "seen",
            "validation_share": 0.25,
            "device": "cpu",
        },
    }
    settings = {name: {**values, **changes.pop(name, {})} for name, values in base.items()}
    return TrainingSettings(method=method, **settings, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_training_learns_people(method, drawn_faces, tmp_path):
    root, split = drawn_faces
    settings = make_settings(method, train={"epochs": 8, "validation_every": 8})
    result = train(settings, root, split, tmp_path / "run")
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.validation_map > 0.5  # 0.27 by chance
    assert isinstance(result.model, BaselineModel)
    assert result.model.training_facts["method"] == method
    assert BaselineModel.from_pretrained(result.folder).fingerprint == result.model.fingerprint
    report = evaluate_split(result.model, root, split)
    assert report.codes.mean_average_precision > 0.5
    assert 0 <= report.quantization_error < 2


def settings_of_short_runs(method):
    return make_settings(method, train={"accumulation": 2}, loss={"margin_ramp_epochs": 1.5, "mu_ramp_epochs": 1.0})


@pytest.mark.parametrize("method", ["dcdh", "opqn-l2q"])
def test_interrupted_run_gives_bitwise_the_same(method, drawn_faces, tmp_path):
    settings = settings_of_short_runs(method)
    expected = train(settings, *drawn_faces, tmp_path / "whole")
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterruptedError, match="stopped at step"):
        train(settings, *drawn_faces, tmp_path / "parts", on_progress=interrupt)
    result = train(settings, *drawn_faces, tmp_path / "parts", resume=True)
    assert result.model.fingerprint == expected.model.fingerprint
    times = ("seconds", "images_per_second")
    assert [{k: v for k, v in row.items() if k not in times} for row in result.history] == [
        {k: v for k, v in row.items() if k not in times} for row in expected.history
    ]


def test_validation_is_that_of_the_methods_own_codes(drawn_faces, tmp_path):
    root, split = drawn_faces
    run = training._Run(make_settings("dpah"), root, split, tmp_path, resume=False)
    result = run.run(threading.Event(), lambda _: None)
    codes = result.model.encode([root / path for path in run.data.gallery.paths])
    tables = result.model.lookup_tables([root / path for path in run.data.query.paths])
    report = evaluate(codes, run.data.gallery.labels, tables, run.data.query.labels)
    assert result.validation_map == pytest.approx(report.mean_average_precision)
    assert result.model.config.query_temperature == 1  # none was fitted: there is none
    used = result.history[-1]["used_words"]
    assert len(used) == result.model.num_books == 2
    assert 0 < max(used) <= 32  # images trained on


@pytest.mark.parametrize(
    ("method", "changes", "complaint"),
    [
        ("dcdx", {}, "unknown method 'dcdx'; did you mean 'dcdh'"),
        ("csq", {"method_settings": {"quantum": 1.0}}, "unknown setting 'quantum'"),
        ("opqn", {"method_settings": {"scale": 1.0}}, "method_settings has 'scale'.*table loss"),
        ("csq", {"model": {"refit": True}}, r"model\.refit finds OPQN's head anew, and csq"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_image_is_read(method, changes, complaint, tmp_path):
    paths = ("a/1.png", "a/2.png", "b/1.png")
    split = Split("none", "seen", 0, paths, paths, ("b/2.png",))
    with pytest.raises(ConfigError, match=complaint):
        train(make_settings(method, **changes), tmp_path / "nowhere", split, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_method_is_refused_by_name(drawn_faces, tmp_path):
    train(make_settings("csq", train={"epochs": 1}), *drawn_faces, tmp_path)
    with pytest.raises(ConfigError, match="method was csq, is ddqh"):
        train(make_settings("ddqh", train={"epochs": 1}), *drawn_faces, tmp_path, resume=True)
    with pytest.raises(ConfigError, match="method was csq, is None"):
        train(make_settings("opqn", train={"epochs": 1}), *drawn_faces, tmp_path, resume=True)


def test_absurd_learning_rate_is_noticed(drawn_faces, tmp_path):
    settings = make_settings("dcwh", train={"learning_rate": 1e30})
    with pytest.raises(TrainingDivergedError, match=r"at step \d+: loss (nan|inf)\. Lower train\.learning_rate"):
        train(settings, *drawn_faces, tmp_path)


def test_scale_margin_and_mu_follow_opqns_unless_a_method_is_given_its_own():
    method = method_of(make_settings("opqn-l2q", loss={"scale": 30.0, "margin": 0.2, "mu": 0.3}))
    assert (method.scale, method.margin, method.mu) == (30, 0.2, 0.3)
    own = method_of(make_settings("cosface", loss={"scale": 30.0}, method_settings={"scale": 64.0}))
    assert (own.scale, own.margin) == (64, 0.1)
    assert method_of(make_settings("gpq")) == METHODS["gpq"]()
    assert method_of(TrainingSettings()) is None


def test_margin_and_mu_grow_to_the_methods_own(drawn_faces, tmp_path, monkeypatch):
    seen = []
    method = METHODS["opqn-l2q"]
    build = method.build_loss

    def build_and_watch(self, config, num_classes):
        loss = build(self, config, num_classes)
        loss.register_forward_pre_hook(lambda module, _: seen.append((module.margin, module.mu)))
        return loss

    monkeypatch.setattr(method, "build_loss", build_and_watch)
    settings = make_settings(
        "opqn-l2q", loss={"margin_ramp_epochs": 1.0, "mu_ramp_epochs": 0.5}, method_settings={"margin": 0.4, "mu": 0.2}
    )
    result = train(settings, *drawn_faces, tmp_path)
    steps = result.history[0]["step"]
    assert [margin for margin, _ in seen] == pytest.approx([0.4 * min(1, i / steps) for i in range(2 * steps)])
    assert [mu for _, mu in seen] == pytest.approx([0.2 * min(1, 2 * i / steps) for i in range(2 * steps)])


def test_settings_come_from_a_file_and_the_command_line(tmp_path):
    (tmp_path / "settings.toml").write_text('method = "csq"\n[method_settings]\nquantization = 0.5\n')
    settings = load_settings(file=tmp_path / "settings.toml", overrides=["method_settings.seed=4"])
    assert method_of(settings) == METHODS["csq"](quantization=0.5, seed=4)
    assert TrainingSettings(**settings.model_dump(mode="json")) == settings
    assert method_of(load_settings(overrides=["method=dpq", "method_settings.central=0"])).central == 0


def test_opqns_settings_are_written_as_before_there_were_methods():
    dumped = TrainingSettings().model_dump(mode="json", exclude={"train": {"device"}})
    assert set(dumped) == {"model", "loss", "train", "augment"}
    assert "device" not in dumped["train"]
    assert "seed" in dumped["train"]
    assert TrainingSettings(**dumped) == TrainingSettings()
