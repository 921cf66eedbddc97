"""Settings: presets, files, code lengths and --set, and what a wrong one says."""

import tomllib

import pytest

from opqn import config
from opqn.config import TrainingSettings, load_settings, preset_names
from opqn.errors import ConfigError
from opqn.model import OPQN


def lengths_of(preset):
    return sorted(map(int, tomllib.loads((config._presets() / f"{preset}.toml").read_text())["lengths"]))


PRESETS = [(preset, length) for preset in preset_names() for length in lengths_of(preset)]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_there_are_presets():
    assert {"orl", "facescrub", "vggface2"} <= set(preset_names())
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize(("preset", "length"), PRESETS)
def test_preset_loads_at_every_length_it_lists(preset, length):
    assert load_settings(preset, num_bits=length).model.num_bits == length


@pytest.mark.parametrize("preset", preset_names())
def test_default_length_of_a_preset_is_one_it_lists(preset):
    assert load_settings(preset).model.num_bits in lengths_of(preset)


def test_preset_describes_a_model_that_can_be_built():
    model = OPQN(load_settings("facescrub").model)
    assert model.quantizer.codebooks.shape == (8, 64, 64)


def test_presets_of_general_images_have_their_statistics_and_the_papers_temperature():
    cifar, imagenet = load_settings("cifar-10"), load_settings("imagenet-100")
    assert (cifar.model.backbone, cifar.model.resize) == ("resnet20-32", 35)
    assert (cifar.model.mean, cifar.model.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert (imagenet.model.backbone, imagenet.model.resize) == ("resnet20-112", 120)
    assert (imagenet.model.mean, imagenet.model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for settings, like in ((cifar, "facescrub"), (imagenet, "vggface2")):
        assert (settings.train.validation, settings.train.fit_query_temperature) == ("seen", False)
        assert settings.model.query_temperature == 1
        assert settings.loss == load_settings(like).loss
        own = {"validation": "seen"}
        assert settings.train == load_settings(like).train.model_copy(update=own)


@pytest.mark.parametrize(("preset", "like"), [("cifar-10", "facescrub"), ("imagenet-100", "vggface2")])
def test_presets_of_general_images_have_the_papers_code_shapes(preset, like):
    assert lengths_of(preset) == lengths_of(like) == [16, 24, 36, 48, 64]
    for length in lengths_of(preset):
        ours, theirs = (load_settings(name, num_bits=length).model for name in (preset, like))
        assert (ours.num_books, ours.num_words, ours.book_dim) == (theirs.num_books, theirs.num_words, theirs.book_dim)


def test_one_network_can_start_every_length_of_the_small_preset():
    models = [load_settings("small", num_bits=length).model for length in lengths_of("small")]
    assert {(model.backbone, model.feature_dim) for model in models} == {("resnet20-32-small", 528)}


def test_nothing_given_means_the_defaults():
    assert load_settings() == TrainingSettings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"lerning_rate": 1}}, r"train: unknown setting 'lerning_rate'; did you mean 'learning_rate'\?"),
        ({"model": {"num_book": 4}}, r"model: unknown setting 'num_book'; did you mean 'num_books'\?"),
        ({"augment": {"rotate": 3}}, r"unknown setting 'rotate'; did you mean 'rotate_degrees'\?"),
        ({"trian": {}}, r"unknown setting 'trian'; did you mean 'train'\?"),
        ({"zzz": 1}, "unknown setting 'zzz'; known settings: model, loss, train, augment"),
        ({"self": 1}, "unknown setting 'self'"),
        ({"train": 5}, "train: Input should be a valid dictionary"),
        ({"train": {"epochs": 0}}, "train: epochs: Input should be greater than or equal to 1"),
        ({"train": {"epochs": 0, "momentum": 1}}, "epochs: .*; momentum: "),
        ({"train": {"schedule": "linear"}}, "schedule: Input should be 'step' or 'cosine'"),
        ({"model": {"num_words": 5}}, "num_words is 5; it must be a power of two"),
        ({"model": {"num_words": 128}}, r"num_words \(128\) exceeds book_dim \(64\).*raise book_dim"),
    ],
)
def test_wrong_setting_says_what_and_what_to_do(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TrainingSettings(**values)
    assert "Value error" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        TrainingSettings().train.epochs = 3


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown preset 'facescrubs'; did you mean 'facescrub'\?"):
        load_settings("facescrubs")
    with pytest.raises(ConfigError, match=r"known presets: .*orl"):
        load_settings("../../..")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs=7", {"train": {"epochs": 7}}),
        (" train.epochs = 7 ", {"train": {"epochs": 7}}),
        ("train.learning_rate=1e-3", {"train": {"learning_rate": 0.001}}),
        ("train.tensorboard=true", {"train": {"tensorboard": True}}),
        ("train.schedule=cosine", {"train": {"schedule": "cosine"}}),
        ('train.schedule="cosine"', {"train": {"schedule": "cosine"}}),
        ("model.backbone=resnet20-32-narrow", {"model": {"backbone": "resnet20-32-narrow"}}),
        ("model.mean=[0.1, 0.2, 0.3]", {"model": {"mean": [0.1, 0.2, 0.3]}}),
        ("a.b.c=x=y", {"a": {"b": {"c": "x=y"}}}),
        ("train.seed=", {"train": {"seed": ""}}),
    ],
)
def test_override_is_read_as_toml_and_a_bare_word_as_text(text, expected):
    assert config.parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.epochs", "=5", " = 5", ""])
def test_override_without_name_or_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"is not of the form a\.b=c"):
        load_settings(overrides=[text])


@pytest.mark.parametrize("text", ["train.epoch=5", "train.epochs=many", "train=5", "train.epochs.x=5", "lengths.8=1"])
def test_override_of_what_is_not_there_or_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match=r"train|lengths"):
        load_settings("orl", overrides=[text])


def test_later_source_wins(tmp_path):
    preset = load_settings("facescrub")
    file = write(tmp_path / "my.toml", "[train]\nepochs = 3\nseed = 4\n[model]\nnum_books = 2\ndropout = 0.25\n")
    both = load_settings("facescrub", file)
    assert (both.train.epochs, both.train.seed, both.model.dropout) == (3, 4, 0.25)
    assert both.train.batch_size == preset.train.batch_size
    assert (both.model.num_books, both.model.num_words) == (2, preset.model.num_words)
    assert load_settings("facescrub", file, 24).model.num_books == 4, "a length that was asked for wins over the file"
    last = load_settings("facescrub", file, 24, ["train.epochs=5", "model.num_books=3", "train.epochs=6"])
    assert (last.train.epochs, last.train.seed, last.model.num_books) == (6, 4, 3)


def test_file_may_bring_its_own_lengths(tmp_path):
    text = "default_bits = 8\n[lengths.8]\nnum_books = 2\nnum_words = 16\n[lengths.4]\nnum_books = 1\nnum_words = 16\n"
    file = write(tmp_path / "my.toml", text)
    assert load_settings(file=file).model.num_bits == 8
    assert load_settings(file=file, num_bits=4).model.num_bits == 4


def test_length_that_is_not_listed_names_those_that_are():
    with pytest.raises(ConfigError, match="no setting for 50 bits here; lengths: 16, 24, 36, 48, 64"):
        load_settings("facescrub", num_bits=50)
    with pytest.raises(ConfigError, match="lengths: none"):
        load_settings(num_bits=48)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train\nepochs = 3", r"my\.toml is not TOML: .*line 1"),
        ("epochs = ", r"my\.toml is not TOML"),
        ("[train]\nepoch = 3", "did you mean 'epochs'"),
        ("lengths = 3\ndefault_bits = 4", "lengths must be a table"),
        ("default_bits = 4\n[lengths]\n4 = 3", "model: Input should be a valid dictionary"),
        ("x = " + "[" * 100_000, "my\\.toml"),
    ],
)
def test_bad_file_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(file=write(tmp_path / "my.toml", text))


def test_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(ConfigError, match="cannot read the settings file"):
            load_settings(file=path)


def test_settings_survive_json():
    settings = load_settings("orl", overrides=["train.seed=3"])
    assert TrainingSettings(**settings.model_dump(mode="json")) == settings
