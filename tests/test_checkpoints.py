"""Checkpoints: everything that goes in comes out, and what was damaged is refused."""

import errno
import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from opqn.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint, stored_settings
from opqn.errors import ConfigError, CorruptFileError, OpqnError

SETTINGS = {"train": {"epochs": 3, "learning_rate": 0.1}, "split": "abc"}
STATE = {"settings": SETTINGS, "progress": {"step": 7, "history": [{"loss": 0.1 + 0.2}]}, "scaler": None}


def make_training(seed, steps):
    """Build modules and an optimiser, and take some steps so that weights, statistics and momentum move."""
    torch.manual_seed(seed)
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    modules = {"model": nn.Sequential(convolution, nn.BatchNorm2d(4)), "loss": nn.Linear(4, 2)}
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    for _ in range(steps):
        features = modules["model"](torch.randn(5, 3, 6, 6)).mean(dim=(2, 3))
        modules["loss"](features).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return modules, optimizer


def tensors_of(modules, optimizer):
    weights = {f"{key}.{name}": t for key, module in modules.items() for name, t in module.state_dict().items()}
    momentum = {
        str(number): optimizer.state[parameter]["momentum_buffer"]
        for number, parameter in enumerate(optimizer.param_groups[0]["params"])
        if "momentum_buffer" in optimizer.state.get(parameter, {})
    }
    return weights | momentum


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", *make_training(0, 3), STATE)
    return tmp_path / "checkpoint"


def load(folder, settings=SETTINGS):
    return load_checkpoint(folder, *make_training(1, 0), settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_tensors_and_state_come_back_bit_for_bit(tmp_path, steps):
    saved = make_training(0, steps)
    save_checkpoint(tmp_path / "checkpoint", *saved, STATE)
    loaded = make_training(1, 0)
    assert load_checkpoint(tmp_path / "checkpoint", *loaded, SETTINGS) == STATE
    expected, found = tensors_of(*saved), tensors_of(*loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].stride() == expected[name].stride() for name in expected)


def test_settings_can_be_read_alone(folder):
    assert stored_settings(folder) == SETTINGS
    (folder / "state.safetensors").unlink()
    assert stored_settings(folder) == SETTINGS


def test_folder_holds_no_pickle(folder):
    assert sorted(contents(folder)) == ["state.json", "state.safetensors"]
    json.loads((folder / "state.json").read_text())
    safetensors.torch.load_file(folder / "state.safetensors")


def test_has_checkpoint(tmp_path, folder):
    assert has_checkpoint(folder)
    assert not has_checkpoint(tmp_path / "none")
    assert not has_checkpoint(tmp_path)


def test_checkpoint_that_a_kill_left_half_exchanged_is_put_back(folder):
    folder.rename(folder.with_name(".checkpoint.old"))
    assert has_checkpoint(folder)
    assert load(folder) == STATE


def test_full_disk_leaves_the_old_checkpoint(folder, monkeypatch):
    before = contents(folder)

    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OpqnError, match="the disk is full"):
        save_checkpoint(folder, *make_training(2, 1), STATE)
    assert contents(folder) == before
    assert load(folder) == STATE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "split": "xyz"}, r"other settings \(split was abc, is xyz\); resume with the settings"),
        ({**SETTINGS, "train": {"epochs": 4, "learning_rate": 0.1}}, r"\(train\.epochs was 3, is 4\)"),
        ({**SETTINGS, "train": {"epochs": 3}}, r"\(train\.learning_rate was 0\.1, is None\)"),
        ({**SETTINGS, "loss": {"mu": 1}}, r"\(loss was None, is \{'mu': 1\}\)"),
    ],
)
def test_other_settings_are_refused_by_name(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        load(folder, settings)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_changed_byte_is_noticed_wherever_it_is(folder, name):
    data = (folder / name).read_bytes()
    for place in range(0, len(data), 7):
        (folder / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((CorruptFileError, ConfigError)):
            load(folder)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("length", [0, 5, -1])
def test_truncated_file_is_refused(folder, name, length):
    (folder / name).write_bytes((folder / name).read_bytes()[:length])
    with pytest.raises(CorruptFileError, match=r"delete .*checkpoint to start again"):
        load(folder)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(CorruptFileError, match="to start again"):
        load(folder)


@pytest.mark.parametrize("text", ["null", "[]", "3", "{}", '{"format_version": "new"}', "[" * 200_000])
def test_state_that_is_none_is_refused(folder, text):
    (folder / "state.json").write_text(text)
    for read in (load, stored_settings):
        with pytest.raises(CorruptFileError, match=r"state\.json is no checkpoint"):
            read(folder)


def test_newer_format_is_refused(folder):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format_version": 2}))
    for read in (load, stored_settings):
        with pytest.raises(CorruptFileError, match="format version 2; this opqn reads up to 1"):
            read(folder)


def test_tensors_of_another_network_are_refused(folder):
    modules, optimizer = make_training(1, 0)
    modules["loss"] = nn.Linear(4, 3)
    with pytest.raises(CorruptFileError, match="does not hold this training's tensors"):
        load_checkpoint(folder, modules, optimizer, SETTINGS)
