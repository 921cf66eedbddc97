"""Comparison methods as models: images to codes, a folder that comes back the same, and refuses damage."""

import io
import json

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch

from opqn import OPQN, ConfigError, CorruptFileError, DataError, ModelConfig
from opqn.baselines.methods import METHODS, make_method
from opqn.baselines.model import BaselineModel, load_model

CONFIG = ModelConfig(backbone="resnet20-32-narrow", num_books=6, num_words=8, book_dim=8)  # 18 bits


def make_model(name="csq", **settings):
    torch.manual_seed(0)
    return BaselineModel(CONFIG, make_method(name, settings), {"people": 3}).eval()


def images(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_model_encodes_the_same(name, tmp_path):
    model = make_model(name)
    model.save_pretrained(tmp_path / "model")
    loaded = BaselineModel.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.method == model.method
    assert loaded.config == CONFIG
    assert loaded.training_facts == {"people": 3}
    assert not loaded.training
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    codes, tables = model.encode(images()), model.lookup_tables(images())
    np.testing.assert_array_equal(loaded.encode(images()), codes)
    np.testing.assert_array_equal(loaded.lookup_tables(images()), tables)
    assert codes.dtype == np.uint8
    assert codes.shape == (5, model.num_books)
    assert tables.shape == (5, model.num_books, model.num_words)
    probs = model.assignments(model.features(images()))
    np.testing.assert_array_equal(probs.argmax(axis=2), codes)


def test_fingerprint_tells_methods_settings_and_weights_apart():
    models = [make_model(), make_model(quantization=0.5), make_model("dpah"), make_model("ddqh")]
    changed = make_model()
    with torch.no_grad():
        changed.quantizer.linear.bias[0] += 1
    assert len({model.fingerprint for model in [*models, changed]}) == 5
    assert make_model().fingerprint == models[0].fingerprint


def test_a_method_with_a_head_of_its_own_cannot_be_refitted(tmp_path):
    config = ModelConfig(**CONFIG.model_dump(), refit=True)
    with pytest.raises(
        ConfigError, match=r"model\.refit finds OPQN's head anew, and csq has .* leave model\.refit out"
    ):
        BaselineModel(config, make_method("csq", {}))
    make_model().save_pretrained(tmp_path / "model")
    stored = json.loads((tmp_path / "model/config.json").read_text())
    stored["model"]["refit"] = True
    (tmp_path / "model/config.json").write_text(json.dumps(stored))
    with pytest.raises(CorruptFileError, match=r"describes no model that can be built: model\.refit"):
        load_model(tmp_path / "model")


def test_neither_model_class_reads_the_others_folder(tmp_path):
    make_model().save_pretrained(tmp_path / "baseline")
    OPQN(CONFIG).save_pretrained(tmp_path / "opqn")
    with pytest.raises(CorruptFileError, match="not the configuration of an opqn-model"):
        OPQN.from_pretrained(tmp_path / "baseline")
    with pytest.raises(CorruptFileError, match="not the configuration of an opqn-baseline"):
        BaselineModel.from_pretrained(tmp_path / "opqn")
    with pytest.raises(DataError, match="no such folder"):
        BaselineModel.from_pretrained(tmp_path / "nowhere")


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def set_key(*keys, value):
    def change(config):
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (set_key("format_version", value=99), "format version 99.*update opqn"),
        (set_key("format_version", value="1"), "format_version is missing or not a int"),
        (set_key("fingerprint", value="0" * 64), "fingerprint differs"),
        (set_key("method", value=None), "method is missing"),
        (set_key("method", value={}), "describes no model.*has no name or no settings"),
        (set_key("method", "name", value="cqs"), "did you mean 'csq'"),
        (set_key("method", "name", value=["csq"]), "describes no model"),
        (set_key("method", "settings", value={"zzz": 1}), "unknown setting 'zzz'"),
        (set_key("method", "settings", value=[1]), "describes no model"),
        (set_key("method", "settings", "quantization", value=0.5), "fingerprint differs"),
        (set_key("model", "book_dim", value=10**9), "describes no model"),
        (set_key("model", "book_dim", value=16), "does not fit the configuration"),
        (set_key("model", "num_books", value=7), "does not fit the configuration"),
        (set_key("model", "zzz", value=1), "unknown setting 'zzz'"),
    ],
)
def test_a_changed_configuration_is_refused(change, complaint, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    edit(tmp_path / "model", change)
    with pytest.raises(CorruptFileError, match=complaint):
        BaselineModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none_is_refused(text, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model/config.json").write_bytes(text)
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        BaselineModel.from_pretrained(tmp_path / "model")


def test_damaged_weights_are_refused(tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    data = path.read_bytes()
    weights = safetensors.torch.load(data)
    less = {name: tensor for name, tensor in weights.items() if name != "quantizer.linear.bias"}
    other = {**weights, "quantizer.linear.bias": weights["quantizer.linear.bias"] + 1}
    for damaged, complaint in (
        (b"", "cannot be read as safetensors"),
        (data[:-1], "cannot be read as safetensors"),
        (safetensors.torch.save(less), "does not fit.*quantizer.linear.bias"),
        (safetensors.torch.save({**weights, "more": torch.zeros(1)}), "1 tensors missing, unknown.*first more"),
        (safetensors.torch.save(other), "fingerprint differs"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match=complaint):
            BaselineModel.from_pretrained(tmp_path / "model")
    path.unlink()
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is missing"):
        BaselineModel.from_pretrained(tmp_path / "model")


@pytest.fixture
def folders(tmp_path):
    """A folder of each kind of model, by the class that reads it."""
    made = {OPQN: tmp_path / "opqn", BaselineModel: tmp_path / "baseline"}
    OPQN(CONFIG).save_pretrained(made[OPQN])
    make_model().save_pretrained(made[BaselineModel])
    return made


@pytest.mark.parametrize("kind", [OPQN, BaselineModel])
def test_a_folder_of_either_kind_is_opened_by_its_format(kind, folders):
    expected = kind.from_pretrained(folders[kind])
    for name in (folders[kind], str(folders[kind])):
        loaded = load_model(name, torch.device("cpu"))
        assert type(loaded) is kind
        assert loaded.fingerprint == expected.fingerprint
        assert not loaded.training
    assert load_model(folders[kind], "meta").device == torch.device("meta")
    # A kill while the folder was replaced leaves the old one beside it.
    folders[kind].rename(folders[kind].with_name(f".{folders[kind].name}.old"))
    assert load_model(folders[kind]).fingerprint == expected.fingerprint


def test_what_is_no_folder_is_asked_of_the_hub(folders, tmp_path, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, len(allow_patterns)))
        return str(folders[OPQN])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert type(load_model("someone/faces")) is OPQN
    assert asked == [("someone/faces", 3)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folders[BaselineModel]))
    with pytest.raises(CorruptFileError, match="not the configuration of an opqn-model"):
        load_model("someone/faces")
    monkeypatch.undo()
    with pytest.raises(DataError, match="no such model folder here"):
        load_model(tmp_path / "none")


@pytest.mark.parametrize("kind", [OPQN, BaselineModel])
@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("opqn-quantizer", "'opqn-quantizer'"),
        ("opqn-model\n", r"'opqn-model\\n'"),
        (None, "None"),
        (7, "7"),
        (["opqn-model"], r"\['opqn-model'\]"),
        ({"opqn-model": 1}, "{'opqn-model': 1}"),
        ("x" * 100_000, r"'x+\.\.\.x+'"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_folder_of_an_unknown_format_is_refused_in_one_short_line(kind, found, shown, folders):
    edit(folders[kind], set_key("format", value=found))
    with pytest.raises(CorruptFileError, match=f"its format is {shown}; give the folder of a model") as caught:
        load_model(folders[kind])
    assert len(str(caught.value)) < len(str(folders[kind])) + 250
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [OPQN, BaselineModel])
def test_a_damaged_folder_is_refused_whatever_its_kind(kind, folders):
    folder = folders[kind]
    config, weights = folder / "config.json", folder / "model.safetensors"
    whole, pickled = config.read_bytes(), io.BytesIO()
    torch.save(kind.from_pretrained(folder).state_dict(), pickled)
    other = "baseline" if kind is OPQN else "model"
    for text, complaint in (
        (b"", r"config\.json cannot be read"),
        (b"[" * 100_000, r"config\.json cannot be read"),
        (b"[]", r"config\.json holds no JSON object"),
        (b"{}", "its format is None"),
        (whole.replace(b'"format_version": 1', b'"format_version": 2'), "format version 2.*update opqn"),
        (whole.replace(kind.FORMAT.encode(), f"opqn-{other}".encode()), "method is missing|does not fit"),
    ):
        config.write_bytes(text)
        with pytest.raises(CorruptFileError, match=complaint):
            load_model(folder)
    config.write_bytes(whole)
    weights.write_bytes(pickled.getvalue())
    with pytest.raises(CorruptFileError, match="cannot be read as safetensors"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is missing"):
        load_model(folder)
    config.unlink()
    with pytest.raises(CorruptFileError, match=r"config\.json is missing"):
        load_model(folder)


def test_the_nearest_method_is_named():
    with pytest.raises(ConfigError, match="unknown method 'oqpn'; did you mean 'opqn'"):
        make_method("oqpn", {})
    with pytest.raises(ConfigError, match="unknown method 'zzz'; known methods: opqn, cosface, csq"):
        make_method("zzz", {})
    with pytest.raises(ConfigError, match="unknown setting 'quantisation'; did you mean 'quantization'"):
        make_method("csq", {"quantisation": 1.0})
    with pytest.raises(ConfigError, match="vertex: Input should be greater than or equal to 0"):
        make_method("dcwh", {"vertex": -1.0})


def test_methods_are_known_by_their_names():
    assert set(METHODS) == {"cosface", "csq", "dcdh", "dcwh", "ddqh", "dpah", "dpq", "gpq", "opqn-l2q"}
    for name, kind in METHODS.items():
        assert kind.name == name
        assert kind.paper
