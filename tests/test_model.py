"""The model: the same codes from whatever form an image comes in, and a folder that is what was saved or refused."""

import hashlib
import io
import json
import shutil
import struct
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm

from opqn.errors import ConfigError, CorruptFileError, DataError, OpqnError
from opqn.model import OPQN, ModelConfig

SMALL = {"backbone": "resnet20-32-narrow", "num_books": 2, "num_words": 4, "book_dim": 8}


def make_model(seed=0, **config):
    """Build a small model whose batch normalisation has seen pictures of many colours, so that codes differ."""
    torch.manual_seed(seed)
    model = OPQN(ModelConfig(**{**SMALL, **config}), {"people": 8}).train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # a plain mean over what it sees
    colours = torch.randint(0, 256, (16, 3, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        model(model.normalise(colours.repeat_interleave(8, 2).repeat_interleave(8, 3)))
    return model.eval()


def take_weights(model):
    """Give the head of a model to be refitted some weights."""
    torch.manual_seed(1)
    model.quantizer.take(*torch.randn(2, 2, 17, 4))


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "saved"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved model, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture(scope="module")
def pictures(drawn_faces):
    root, split = drawn_faces
    return [root / path for path in split.query]


def change_config(folder, **changes):
    path = folder / "config.json"
    stored = json.loads(path.read_bytes())
    stored["model"] |= changes.pop("model", {})
    path.write_text(json.dumps(stored | changes))


class TestConfig:
    @pytest.mark.parametrize(
        ("backbone", "image_size", "resize", "mean", "std"),
        [
            ("resnet20-32", 32, 35, (0.639, 0.479, 0.404), (0.216, 0.183, 0.171)),
            ("resnet20-32-narrow", 32, 35, (0.639, 0.479, 0.404), (0.216, 0.183, 0.171)),
            ("resnet20-32-small", 32, 35, (0.639, 0.479, 0.404), (0.216, 0.183, 0.171)),
            ("resnet20-112", 112, 120, (0.5,) * 3, (0.5,) * 3),
            ("iresnet50", 112, 120, (0.5,) * 3, (0.5,) * 3),
            ("timm/resnet18", 224, 240, (0.5,) * 3, (0.5,) * 3),
        ],
    )
    def test_defaults_follow_the_backbone(self, backbone, image_size, resize, mean, std):
        config = ModelConfig(backbone=backbone)
        assert (config.image_size, config.resize, config.mean, config.std) == (image_size, resize, mean, std)

    def test_what_is_given_stays(self):
        config = ModelConfig(backbone="resnet20-112", resize=112, mean=(0, 0.25, 1), std=(1, 2, 3), image_size=112)
        assert (config.image_size, config.resize, config.mean, config.std) == (112, 112, (0, 0.25, 1), (1, 2, 3))

    def test_lengths(self):
        config = ModelConfig(num_books=6, num_words=64, book_dim=86)
        assert (config.num_bits, config.feature_dim) == (36, 516)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"num_word": 4}, r"unknown setting 'num_word'; did you mean 'num_words'\?"),
            ({"num_words": 6}, "num_words is 6; it must be a power of two"),
            ({"num_books": 0}, "num_books is 0"),
            ({"num_words": 16, "book_dim": 8}, r"num_words \(16\) exceeds book_dim \(8\)"),
            ({"book_dim": 10**9}, "book_dim: Input should be less than or equal to 4096"),
            ({"codebooks": "dst"}, "codebooks: Input should be"),
            ({"codebook_seed": -1}, "codebook_seed: Input should be greater than or equal to 0"),
            ({"query_temperature": 0}, "query_temperature: Input should be greater than 0"),
            ({"query_temperature": float("nan")}, "query_temperature"),
            ({"dropout": 1}, "dropout: Input should be less than 1"),
            ({"image_size": 64}, "image_size is 64; 'resnet20-32-narrow' takes images of 32"),
            ({"image_size": 10**400}, "image_size: Input should be less than or equal to 1024"),
            ({"image_size": [32]}, "image_size: Input should be a valid integer"),
            ({"resize": 31}, r"resize \(31\) is smaller than the crop"),
            ({"mean": (0.5, 0.5)}, r"mean\.2: Field required"),
            ({"std": (1, 0, 1)}, "std positive"),
            ({"mean": (1, float("inf"), 1)}, "must be finite"),
            ({"backbone": ["resnet20-32"]}, "backbone: Input should be a valid string"),
        ],
    )
    def test_impossible_values_are_refused(self, values, message):
        with pytest.raises(ConfigError, match=message):
            ModelConfig(**{**SMALL, **values})

    def test_refit_is_written_only_where_it_is_wanted(self):
        assert "refit" not in ModelConfig(**SMALL, refit=False).model_dump(mode="json")
        config = ModelConfig(**SMALL, refit=True)
        assert config.model_dump()["refit"] is True
        assert ModelConfig(**config.model_dump(mode="json")) == config

    def test_unknown_backbone_lists_the_known(self):
        with pytest.raises(ConfigError, match="unknown backbone 'resnet50'; choose one of resnet20-32"):
            OPQN(ModelConfig(backbone="resnet50"))


class TestEncode:
    def test_every_form_of_the_same_images_gives_the_same_codes_and_tables(self, model, pictures):
        images = [Image.open(path) for path in pictures]
        pixels = np.stack([np.asarray(image) for image in images])  # (8, 40, 40, 3)
        resized = np.stack([np.asarray(image.resize((35, 35), Image.Resampling.BILINEAR)) for image in images])
        middle = torch.from_numpy(resized[:, 1:33, 1:33].copy()).permute(0, 3, 1, 2)
        forms = {
            "paths": pictures,
            "texts": [str(path) for path in pictures],
            "bytes": [path.read_bytes() for path in pictures],
            "PIL": images,
            "arrays": list(pixels),
            "array": pixels,
            "resized array": resized,
            "tensor": torch.from_numpy(pixels).permute(0, 3, 1, 2),
            "mixed": [pictures[0], images[1], *(path.read_bytes() for path in pictures[2:])],
            "floats": model.normalise(middle),
            "doubles": model.normalise(middle).double(),
        }
        codes, tables = model.encode(pictures), model.lookup_tables(pictures)
        assert codes.shape == (8, 2)
        assert codes.dtype == np.uint8
        assert codes.max() < 4
        assert len(np.unique(codes, axis=0)) > 1
        for form, value in forms.items():
            assert np.array_equal(model.encode(value), codes), form
            assert np.array_equal(model.lookup_tables(value), tables), form

    def test_normalise_is_what_its_name_says(self, model):
        crops = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        mean, std = np.array(model.config.mean), np.array(model.config.std)
        expected = (crops.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
        assert np.allclose(model.normalise(crops).numpy(), expected, atol=1e-6)

    def test_code_is_the_argmax_of_the_projected_features(self, model, pictures):
        features = model.features(pictures)
        logits = np.einsum(
            "nmd,mdk->nmk", features.numpy().reshape(8, 2, 8), model.quantizer.projection.detach().numpy()
        )
        assert np.array_equal(model.encode(pictures), logits.argmax(axis=2))

    def test_tables_are_probabilities(self, model, pictures):
        tables = model.lookup_tables(pictures)
        assert tables.shape == (8, 2, 4)
        assert tables.dtype == np.float32
        assert (tables >= 0).all()
        assert np.allclose(tables.sum(axis=2), 1, atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
    def test_batch_size_changes_nothing(self, model, pictures, batch_size):
        assert np.array_equal(model.encode(pictures, batch_size), model.encode(pictures))
        assert np.allclose(model.lookup_tables(pictures, batch_size), model.lookup_tables(pictures), atol=1e-6)

    @pytest.mark.parametrize("form", [Path, str, Path.read_bytes, Image.open])
    def test_single_image(self, model, pictures, form):
        assert np.array_equal(model.encode(form(pictures[0])), model.encode(pictures[:1]))

    @pytest.mark.parametrize(
        "nothing",
        [
            [],
            (),
            np.empty((0, 9, 9, 3), np.uint8),
            torch.empty(0, 3, 9, 9, dtype=torch.uint8),
            torch.empty(0, 3, 32, 32),
        ],
        ids=["list", "tuple", "array", "tensor", "floats"],
    )
    def test_no_images_are_no_codes(self, model, nothing):
        assert model.encode(nothing).shape == (0, 2)
        assert model.encode(nothing).dtype == np.uint8
        assert model.lookup_tables(nothing).shape == (0, 2, 4)

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((2, 9, 9, 3), np.float32),
            np.zeros((9, 9, 3), np.uint8),
            np.zeros((2, 3, 9, 9), np.uint8),
            np.zeros((2, 0, 9, 3), np.uint8),
            [np.zeros((9, 9, 3))],
            [np.zeros((9, 9), np.uint8)],
            torch.zeros(2, 9, 9, 3, dtype=torch.uint8),
            torch.zeros(2, 3, 9, 9, dtype=torch.int64),
            torch.zeros(2, 3, 31, 31),
            torch.zeros(3, 32, 32),
            ["no/such/picture.png"],
            b"not a picture",
            [None],
        ],
        ids=lambda images: f"{type(images).__name__} {getattr(images, 'shape', images)}"[:40],
    )
    def test_what_is_no_image_is_refused(self, model, images):
        with pytest.raises(DataError):
            model.encode(images)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size_below_one_is_refused(self, model, pictures, batch_size):
        with pytest.raises(ConfigError, match="batch_size"):
            model.encode(pictures, batch_size)

    def test_encoding_changes_neither_mode_nor_statistics(self, pictures):
        model = make_model().train()
        before = model.fingerprint
        codes = model.encode(pictures)
        assert model.training
        assert model.fingerprint == before
        assert np.array_equal(codes, model.eval().encode(pictures))

    def test_temperature_sharpens_tables_and_leaves_codes(self, pictures):
        model = make_model()
        codes, tables = model.encode(pictures), model.lookup_tables(pictures)
        features = model.features(pictures)
        cold = model.tables_of_features(features, 4.0)
        assert np.array_equal(model.with_query_temperature(4.0).lookup_tables(pictures), cold)
        assert np.array_equal(model.encode(pictures), codes)
        assert (cold.max(axis=2) > tables.max(axis=2)).all()
        assert model.config.query_temperature == 4.0

    @pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
    def test_impossible_temperature_is_refused(self, temperature):
        model = make_model()
        with pytest.raises(ConfigError, match="query_temperature"):
            model.with_query_temperature(temperature)
        assert model.config.query_temperature == model.quantizer.query_temperature == 1


class TestFingerprint:
    def test_equal_models_have_equal_fingerprints(self):
        assert make_model().fingerprint == make_model().fingerprint
        assert len(make_model().fingerprint) == 64
        int(make_model().fingerprint, 16)

    def test_layout_in_memory_does_not_matter(self):
        assert make_model().to(memory_format=torch.channels_last).fingerprint == make_model().fingerprint

    def test_every_weight_and_buffer_counts(self):
        model = make_model()
        known = {model.fingerprint}
        for tensor in model.state_dict().values():
            before = tensor.flatten()[-1].item()
            with torch.no_grad():
                tensor.view(-1)[-1] += 1
            known.add(model.fingerprint)
            with torch.no_grad():
                tensor.view(-1)[-1] = before
        assert len(known) == 1 + len(model.state_dict())
        assert model.fingerprint == make_model().fingerprint

    @pytest.mark.parametrize(
        "change",
        [
            {"dropout": 0.25},
            {"resize": 36},
            {"mean": (0.5, 0.5, 0.5)},
            {"query_temperature": 1.5},
            {"codebook_seed": 1},
        ],
        ids=str,
    )
    def test_every_setting_counts(self, change):
        assert make_model(**change).fingerprint != make_model().fingerprint

    def test_it_is_what_it_was_before_there_was_another_head(self):
        model = make_model()
        config = {
            "backbone": "resnet20-32-narrow",
            "num_books": 2,
            "num_words": 4,
            "book_dim": 8,
            "codebooks": "dct",
            "codebook_seed": 0,
            "query_temperature": 1.0,
            "dropout": 0.5,
            "flip_average": False,
            "image_size": 32,
            "resize": 35,
            "mean": [0.639, 0.479, 0.404],
            "std": [0.216, 0.183, 0.171],
        }
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
        assert model.fingerprint == digest.hexdigest()
        assert model.quantizer.state_dict().keys() == {"codebooks", "projection"}

    def test_refitting_counts(self):
        model = make_model(refit=True)
        fingerprints = {make_model().fingerprint, model.fingerprint}
        take_weights(model)
        assert len(fingerprints | {model.fingerprint}) == 3

    def test_temperature_counts_and_can_be_taken_back(self):
        model = make_model()
        before = model.fingerprint
        assert model.with_query_temperature(2.0).fingerprint != before
        assert model.with_query_temperature(1.0).fingerprint == before


class TestFolder:
    @pytest.mark.parametrize("codebooks", ["dct", "hadamard", "random", "learned"])
    def test_loaded_model_is_the_saved_one(self, tmp_path, pictures, codebooks):
        model = make_model(codebooks=codebooks, query_temperature=2.5)
        model.save_pretrained(tmp_path / "model")
        loaded = OPQN.from_pretrained(tmp_path / "model")
        assert loaded.fingerprint == model.fingerprint
        assert loaded.config == model.config
        assert loaded.training_facts == {"people": 8}
        assert np.array_equal(loaded.encode(pictures), model.encode(pictures))
        assert np.array_equal(loaded.lookup_tables(pictures), model.lookup_tables(pictures))
        assert not loaded.training
        trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in model.named_parameters()}

    def test_loaded_refitted_model_is_the_saved_one(self, tmp_path, pictures):
        model = make_model(refit=True, query_temperature=0.2)
        before = model.encode(pictures)
        take_weights(model)
        model.save_pretrained(tmp_path / "model")
        loaded = OPQN.from_pretrained(tmp_path / "model")
        assert loaded.fingerprint == model.fingerprint
        assert loaded.config == model.config
        codes = model.encode(pictures)
        assert not np.array_equal(codes, before)
        assert np.array_equal(loaded.encode(pictures), codes)
        assert np.array_equal(loaded.lookup_tables(pictures), model.lookup_tables(pictures))
        assert np.array_equal(loaded.assignments(loaded.features(pictures)).argmax(axis=2), codes)

    def test_model_to_be_refitted_is_saved_before_it_is(self, tmp_path, pictures):
        model = make_model(refit=True)
        model.save_pretrained(tmp_path / "model")
        loaded = OPQN.from_pretrained(tmp_path / "model")
        assert loaded.fingerprint == model.fingerprint
        assert not loaded.quantizer.is_refitted
        assert np.array_equal(loaded.encode(pictures), make_model().encode(pictures))

    def test_loaded_model_can_be_trained_on(self, saved):
        loaded = OPQN.from_pretrained(saved).train()
        loaded(torch.randn(4, 3, 32, 32)).soft.sum().backward()
        assert all(parameter.grad is not None for parameter in loaded.parameters())

    def test_folder_holds_what_it_should_and_no_prototypes(self, saved, model):
        assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        stored = safetensors.torch.load_file(saved / "model.safetensors")
        assert stored.keys() == model.state_dict().keys()
        assert not [name for name in stored if "prototype" in name]
        config = json.loads((saved / "config.json").read_text())
        assert config["fingerprint"] == model.fingerprint
        assert config["format_version"] == 1
        card = (saved / "README.md").read_text()
        assert "OPQN, 4 bits a face" in card
        assert "| people | 8 |" in card

    def test_saving_again_replaces_the_folder(self, tmp_path):
        make_model(0).save_pretrained(tmp_path / "model")
        make_model(1).save_pretrained(tmp_path / "model")
        assert OPQN.from_pretrained(tmp_path / "model").fingerprint == make_model(1).fingerprint
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_folder_can_be_the_working_folder(self, folder, model, monkeypatch):
        monkeypatch.chdir(folder)
        assert OPQN.from_pretrained(".").fingerprint == model.fingerprint

    def test_folder_with_other_files_is_left_alone(self, tmp_path, model):
        (tmp_path / "README.md").write_text("my project")
        with pytest.raises(ConfigError, match=r"holds other files \(README.md\)"):
            model.save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["README.md"]

    def test_full_disk_leaves_the_old_model(self, folder, full_disk_after):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for written in range(3):
            full_disk_after(written)
            with pytest.raises(OpqnError, match="the disk is full"):
                make_model(1).save_pretrained(folder)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
            assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    def test_kill_between_the_renames_is_recovered(self, folder, model):
        folder.rename(folder.with_name(f".{folder.name}.old"))
        assert OPQN.from_pretrained(folder).fingerprint == model.fingerprint


class TestDamagedFolder:
    def test_every_changed_byte_of_the_weights_is_noticed(self, folder):
        path = folder / "model.safetensors"
        data = path.read_bytes()
        header = struct.unpack("<Q", data[:8])[0] + 8
        for place in {0, 9, header // 2, header, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(CorruptFileError, match=r"changed after|cannot be read|does not fit"):
                OPQN.from_pretrained(folder)

    def test_weights_of_another_model_of_the_same_shape_are_noticed(self, folder, tmp_path):
        make_model(1).save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other/model.safetensors", folder)
        with pytest.raises(CorruptFileError, match=r"fingerprint differs.*get the folder again"):
            OPQN.from_pretrained(folder)

    @pytest.mark.parametrize("other", [{"num_books": 4}, {"num_words": 8}, {"codebooks": "learned", "num_words": 2}])
    def test_weights_of_another_shape_name_a_tensor(self, folder, tmp_path, other):
        make_model(**other).save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other/model.safetensors", folder)
        with pytest.raises(CorruptFileError, match=r"does not fit the configuration.*first (backbone|quantizer)"):
            OPQN.from_pretrained(folder)

    @pytest.mark.parametrize("change", ["missing", "added", "dtype"])
    def test_tensors_must_be_exactly_those_of_the_model(self, folder, change):
        path = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        if change == "missing":
            del tensors["quantizer.projection"]
        elif change == "added":
            tensors["quantizer.extra"] = torch.zeros(1)
        else:
            tensors["quantizer.projection"] = tensors["quantizer.projection"].double()
        safetensors.torch.save_file(tensors, path)
        with pytest.raises(
            CorruptFileError, match=r"1 tensors missing, unknown or of another shape, first quantizer\."
        ):
            OPQN.from_pretrained(folder)

    @pytest.mark.parametrize("length", [0, 4, 100, -1])
    def test_truncated_weights(self, folder, length):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(CorruptFileError, match=r"model.safetensors cannot be read as safetensors"):
            OPQN.from_pretrained(folder)

    def test_header_that_claims_a_huge_length(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])
        with pytest.raises(CorruptFileError, match="cannot be read as safetensors"):
            OPQN.from_pretrained(folder)

    def test_pickle_is_never_opened(self, folder):
        weights = io.BytesIO()
        torch.save(make_model().state_dict(), weights)
        (folder / "model.safetensors").write_bytes(weights.getvalue())
        with pytest.raises(CorruptFileError, match="cannot be read as safetensors"):
            OPQN.from_pretrained(folder)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_missing_file_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(CorruptFileError, match=f"is no model folder: {name} is missing"):
            OPQN.from_pretrained(folder)

    def test_missing_card_does_no_harm(self, folder, model):
        (folder / "README.md").unlink()
        assert OPQN.from_pretrained(folder).fingerprint == model.fingerprint

    def test_newer_format_asks_for_an_update(self, folder):
        change_config(folder, format_version=2)
        with pytest.raises(CorruptFileError, match="format version 2; this opqn reads up to 1: update opqn"):
            OPQN.from_pretrained(folder)

    @pytest.mark.parametrize(
        "text", ["", "{", "[1, 2]", "null", "\x00", '{"format": "other"}', "[" * 200_000, "\ud800"]
    )
    def test_config_that_is_no_configuration(self, folder, text):
        (folder / "config.json").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(CorruptFileError, match=r"config.json"):
            OPQN.from_pretrained(folder)

    @pytest.mark.parametrize("key", ["format", "format_version", "fingerprint", "model", "training"])
    @pytest.mark.parametrize("value", [None, 1.5, [[1]]], ids=str)
    def test_config_with_a_field_of_another_type(self, folder, key, value):
        change_config(folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        with pytest.raises(CorruptFileError, match=r"config.json"):
            OPQN.from_pretrained(folder)

    @pytest.mark.parametrize(
        "change",
        [
            {"num_books": 10**30},
            {"num_books": 64, "book_dim": 10**18},
            {"num_words": 10**9},
            {"num_words": -2},
            {"num_books": 1e300},
            {"num_books": "many"},
            {"num_books": None, "unknown": 1},
            {"image_size": 10**400},
            {"image_size": 10**6, "resize": 10**6},
            {"backbone": [[["resnet20-32"]]]},
            {"backbone": "resnet20-64"},
            {"backbone": "\ud800"},
            {"\ud800": 1},
            {"self": 1},
            {"values": 1},
            {"codebooks": "random", "codebook_seed": -1},
            {"codebooks": {"a": 1}},
            {"mean": [[1, 2, 3]]},
            {"std": [0, 0, 0]},
            {"query_temperature": float("nan")},
            {"dropout": True},
        ],
        ids=lambda change: ascii(change)[:40],
    )
    def test_hostile_description_of_the_model(self, folder, change):
        change_config(folder, model=change)
        with pytest.raises(CorruptFileError, match=r"config\.json describes no model that can be built"):
            OPQN.from_pretrained(folder)

    def test_changed_setting_is_noticed(self, folder):
        change_config(folder, model={"query_temperature": 3.0})
        with pytest.raises(CorruptFileError, match="fingerprint differs"):
            OPQN.from_pretrained(folder)


@pytest.mark.usefixtures("no_network")
class TestHub:
    def test_hub_repository_is_downloaded_and_read(self, saved, model, monkeypatch):
        asked = []

        def download(name, allow_patterns):
            asked.append((name, sorted(allow_patterns)))
            return str(saved)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert OPQN.from_pretrained("someone/faces").fingerprint == model.fingerprint
        assert asked == [("someone/faces", ["README.md", "config.json", "model.safetensors"])]

    def test_local_folder_never_asks_the_hub(self, saved, monkeypatch):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
        OPQN.from_pretrained(saved)

    @pytest.mark.parametrize(
        "error",
        [
            LocalEntryNotFoundError("Cannot find it on disk\nand outgoing traffic is disabled"),
            HFValidationError("bad name"),
            ConnectionError(),
            TimeoutError("timed out"),
            RuntimeError("of some HTTP library"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_failing_hub_is_a_data_error(self, monkeypatch, error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(
            DataError, match=r"someone/faces: no such model folder here, and not to be had from the Hub \(\S"
        ):
            OPQN.from_pretrained("someone/faces")

    def test_repository_that_does_not_exist(self, monkeypatch):
        def fail(*_, **__):
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(DataError, match="not to be had from the Hub"):
            OPQN.from_pretrained("someone/faces")

    def test_path_that_cannot_be_a_repository_needs_no_network(self, tmp_path):
        with pytest.raises(DataError, match="no such model folder here"):
            OPQN.from_pretrained(tmp_path / "none")


def test_flip_average_is_the_mean_of_an_image_and_its_mirror():
    torch.manual_seed(0)
    plain = OPQN(ModelConfig(backbone="resnet20-32-narrow", num_books=2, num_words=4, book_dim=8))
    averaged = OPQN(plain.config.model_copy(update={"flip_average": True}))
    averaged.load_state_dict(plain.state_dict())
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    mirrored = torch.from_numpy(images).permute(0, 3, 1, 2).flip(3)
    batch = plain.normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = (plain.features(batch) + plain.features(plain.normalise(mirrored))) / 2
    torch.testing.assert_close(averaged.features(batch), expected)
    torch.testing.assert_close(averaged.features(plain.normalise(mirrored)), expected)
