"""OPQNQuantizer: scikit-learn's conventions, the method's identities, a folder that is what was saved or refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from opqn import orthonormal_codebooks
from opqn.errors import ConfigError, CorruptFileError, OpqnError
from opqn.estimator import OPQNQuantizer
from opqn.estimator import quantizer as module
from opqn.estimator.people import PeopleModel, to_unit_length
from opqn.estimator.words import find_words, share_axes
from opqn.evaluation import evaluate

ROOT = Path(__file__).parents[1]
SFACE = Path(os.environ.get("OPQN_SHARED") or ROOT.parent / "shared") / "data" / "lfw_sface.npz"


def make_people(people=60, images=6, dim=24, noise=0.6, seed=0):
    """Draw vectors of made-up people, who differ more on some axes than on others."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(2, 0.3, dim)
    labels = np.repeat(np.arange(people), images)
    vectors = (rng.normal(size=(people, dim)) * spread)[labels] + noise * rng.normal(size=(len(labels), dim))
    return vectors.astype(np.float32), labels


@pytest.fixture(autouse=True)
def fewer_made_up_people(monkeypatch):
    monkeypatch.setattr(module, "MADE_UP", 2048)


@pytest.fixture(scope="module")
def fitted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MADE_UP", 2048)
        return OPQNQuantizer(shape=(4, 16)).fit(*make_people())


@pytest.fixture
def folder(fitted, tmp_path):
    """A saved quantizer, to be damaged."""
    fitted.save(tmp_path / "saved")
    return tmp_path / "saved"


def change_config(folder, **changes):
    path = folder / "config.json"
    stored = json.loads(path.read_bytes())
    stored["quantizer"] |= changes.pop("quantizer", {})
    path.write_text(json.dumps(stored | changes))


@parametrize_with_checks([OPQNQuantizer()])
def test_scikit_learn_finds_its_conventions_kept(estimator, check):
    check(estimator)


class TestCodes:
    @pytest.mark.parametrize(
        ("num_bits", "shape"),
        [(16, (2, 256)), (24, (4, 64)), (36, (6, 64)), (48, (8, 64)), (64, (8, 256)), (32, (4, 256))],
    )
    def test_bits_have_the_shape_of_the_paper(self, num_bits, shape):
        quantizer = OPQNQuantizer(num_bits)
        assert (quantizer.num_books, quantizer.num_words) == shape

    def test_code_is_the_likeliest_word_of_the_table(self, fitted):
        vectors = make_people(seed=1)[0]
        codes, tables = fitted.encode(vectors), fitted.lookup_tables(vectors)
        assert (codes.dtype, codes.shape) == (np.uint8, (360, 4))
        assert (tables.dtype, tables.shape) == (np.float32, (360, 4, 16))
        np.testing.assert_array_equal(codes, tables.argmax(axis=2))
        np.testing.assert_array_equal(codes, fitted.transform(vectors))

    def test_tables_are_logarithms_of_soft_assignments_to_orthonormal_words(self, fitted):
        books = orthonormal_codebooks(4, 16, 16)  # (M, d, K)
        probs = np.exp(fitted.lookup_tables(make_people(seed=1)[0]))
        np.testing.assert_allclose(probs.sum(axis=2), 1, rtol=1e-5)
        soft = np.einsum("nmk,mdk->nmd", probs, books)
        np.testing.assert_allclose(np.einsum("nmd,mdk->nmk", soft, books), probs, atol=1e-6)

    def test_table_ranks_by_distance_to_centroids(self, fitted):
        query = make_people(seed=1)[0][:1]
        unit = query / np.linalg.norm(query)
        parts = (unit - fitted.mean_) @ fitted.axes_.transpose(0, 2, 1)  # (M, 1, d)
        centroids = fitted.projection_[:, :-1]  # (M, d, K)
        distances = ((parts.transpose(0, 2, 1) - centroids) ** 2).sum(axis=1)  # (M, K)
        table = fitted.lookup_tables(query)[0]
        offsets = table + fitted.query_temperature * distances / 2
        np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], offsets.shape), atol=1e-3)

    @pytest.mark.parametrize("temperature", [0.02, 1.0])
    def test_temperature_moves_no_code_and_no_rank(self, fitted, temperature):
        vectors, labels = make_people(seed=1)
        other = clone(fitted).set_params(query_temperature=temperature).fit(*make_people())
        codes = fitted.encode(vectors)
        np.testing.assert_array_equal(codes, other.encode(vectors))
        reports = [evaluate(codes, labels, q.lookup_tables(vectors), labels) for q in (fitted, other)]
        assert reports[0].mean_average_precision == pytest.approx(reports[1].mean_average_precision, abs=1e-4)

    def test_length_of_a_vector_does_not_matter_and_zero_is_no_nan(self, fitted):
        vectors = make_people(seed=1)[0][:20]
        scales = np.logspace(-30, 30, 20, dtype=np.float32)[:, None]
        np.testing.assert_array_equal(fitted.encode(vectors.astype(float) * scales), fitted.encode(vectors))
        assert np.isfinite(fitted.lookup_tables(np.zeros((2, 24)))).all()

    def test_lengths_count_where_they_are_said_to(self):
        vectors, labels = make_people()
        quantizer = OPQNQuantizer(shape=(4, 16), normalize=False).fit(vectors, labels)
        assert (quantizer.encode(vectors) != quantizer.encode(3 * vectors)).any()

    def test_codes_do_not_depend_on_what_else_is_encoded(self, fitted, monkeypatch):
        vectors = make_people(seed=1)[0]
        whole = fitted.encode(vectors), fitted.lookup_tables(vectors)
        monkeypatch.setattr(module, "CHUNK_NUMBERS", 7 * 64)
        np.testing.assert_array_equal(fitted.encode(vectors), whole[0])
        np.testing.assert_allclose(fitted.lookup_tables(vectors), whole[1], rtol=1e-6)
        assert fitted.encode(vectors[:0]).shape == (0, 4)
        assert fitted.lookup_tables(vectors[:0]).shape == (0, 4, 16)

    def test_table_of_a_code_is_that_of_its_centroid(self, fitted):
        codes = fitted.encode(make_people(seed=1)[0])
        tables = fitted.tables_of_codes(codes)
        assert (tables.dtype, tables.shape) == (np.float32, (360, 4, 16))
        np.testing.assert_allclose(np.exp(tables).sum(axis=2), 1, rtol=1e-5)
        np.testing.assert_array_equal(tables.argmax(axis=2), codes)

    @pytest.mark.parametrize(
        "codes", [[[0, 0, 0, 0]], np.zeros((2, 3), np.uint8), np.zeros((2, 4), int), np.full((1, 4), 16, np.uint8)]
    )
    def test_codes_of_something_else_are_refused(self, fitted, codes):
        with pytest.raises(ConfigError, match="codes must"):
            fitted.tables_of_codes(codes)


class TestFit:
    def test_unseen_people_are_found_better_with_labels_than_without_them(self):
        # Images differ most on three axes, as they may by light, pose and age, which only labels can tell.
        nuisance = np.random.default_rng(2).normal(size=(800, 3)) * 4
        (vectors, labels), (others, whose) = (make_people(people=200, images=4, seed=seed) for seed in (0, 1))
        vectors[:, 12:15] += nuisance
        others[:, 12:15] += nuisance[::-1]
        known, unknown = (OPQNQuantizer(shape=(4, 16), normalize=False).fit(vectors, y) for y in (labels, None))
        scores = [
            evaluate(
                q.encode(others), whose, q.lookup_tables(others), whose, exclude=np.arange(len(whose))
            ).mean_average_precision
            for q in (known, unknown)
        ]
        assert scores[0] > scores[1]

    def test_same_seed_same_fingerprint(self, fitted):
        again = OPQNQuantizer(shape=(4, 16)).fit(*make_people())
        assert again.fingerprint == fitted.fingerprint
        assert OPQNQuantizer(shape=(4, 16), random_state=1).fit(*make_people()).fingerprint != fitted.fingerprint

    def test_names_of_people_do_not_matter(self, fitted):
        vectors, labels = make_people()
        names = np.array([f"person {label:03}" for label in labels])
        assert clone(fitted).fit(vectors, names).fingerprint == fitted.fingerprint

    @pytest.mark.parametrize(("count", "dim"), [(1, 4), (2, 1), (10, 1), (10, 3), (30, 5), (50, 130)])
    def test_few_vectors_and_few_dimensions_do(self, count, dim):
        vectors = np.random.default_rng(0).normal(size=(count, dim))
        quantizer = OPQNQuantizer(64).fit(vectors, np.arange(count) // 2)
        codes = quantizer.encode(vectors)
        assert codes.shape == (count, 8)
        assert np.isfinite(quantizer.lookup_tables(vectors)).all()

    def test_people_with_one_vector_each_are_no_labels(self):
        vectors = make_people()[0]
        singles, none = (OPQNQuantizer(shape=(4, 16)).fit(vectors, y) for y in (np.arange(len(vectors)), None))
        assert singles.fingerprint == none.fingerprint

    @pytest.mark.parametrize("normalize", [True, False])
    def test_equal_vectors_are_no_nan(self, normalize):
        vectors = np.ones((20, 4))
        quantizer = OPQNQuantizer(shape=(2, 4), normalize=normalize).fit(vectors, np.arange(20) // 5)
        assert np.isfinite(quantizer.lookup_tables(vectors)).all()

    def test_facts_say_what_it_was_fitted_on(self, fitted):
        assert fitted.training_facts_.items() >= {"vectors": 360, "people": 60}.items()
        assert OPQNQuantizer().fit(make_people()[0]).training_facts_["people"] is None

    def test_in_a_pipeline_with_names_of_columns(self):
        vectors, labels = make_people()
        pipeline = make_pipeline(StandardScaler(), OPQNQuantizer(24))
        assert pipeline.fit_transform(vectors, labels).dtype == np.uint8
        assert pipeline.get_feature_names_out().tolist() == [f"opqnquantizer{book}" for book in range(4)]

    @pytest.mark.parametrize(
        ("vectors", "labels", "message"),
        [
            (np.zeros(5), None, "2D"),
            (np.full((5, 3), np.nan), None, "NaN"),
            (np.zeros((0, 3)), None, "0 sample"),
            (np.zeros((5, 3)), [1, 2], "labels"),
            (np.zeros((5, 3)), [[1, 2]] * 5, "labels"),
            (np.zeros((1, 8193)), None, "8193"),
        ],
    )
    def test_what_cannot_be_fitted_is_refused(self, vectors, labels, message):
        with pytest.raises(ConfigError, match=message):
            OPQNQuantizer().fit(vectors, labels)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_bits": 33}, "num_bits is 33"),
            ({"num_bits": "48"}, "num_bits is '48'"),
            ({"num_bits": -8}, "num_bits"),
            ({"num_bits": 8 * 65}, "num_books is 65"),
            ({"shape": (4, 48)}, "power of two"),
            ({"shape": 4}, "num_books, num_words"),
            ({"shape": (4, 16, 2)}, "num_books, num_words"),
            ({"query_temperature": 0.0}, "query_temperature"),
            ({"query_temperature": np.nan}, "query_temperature"),
        ],
    )
    def test_impossible_settings_are_refused(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            OPQNQuantizer(**settings).fit(*make_people())

    def test_numbers_too_large_to_square_are_refused(self):
        with pytest.raises(ConfigError, match="scale them down"):
            OPQNQuantizer(normalize=False).fit(1e25 * make_people()[0].astype(float))

    @pytest.mark.parametrize(
        "use", [lambda q: q.encode(np.zeros((1, 3))), lambda q: q.fingerprint, lambda q: q.save("x")]
    )
    def test_unfitted_says_so(self, use):
        with pytest.raises(NotFittedError):
            use(OPQNQuantizer())

    def test_vectors_of_another_length_are_refused(self, fitted):
        with pytest.raises(ConfigError, match="23 features"):
            fitted.encode(np.zeros((2, 23)))


class TestParts:
    def test_whitening_makes_people_alike_and_the_covariances_diagonal(self):
        vectors, labels = make_people(people=400, images=5)
        model = PeopleModel.fit(vectors.astype(float), labels)
        white = (vectors - model.mean) @ model.whitening.T
        within = white - model.people[labels]
        np.testing.assert_allclose(within.T @ within / (len(labels) - 400), np.eye(24), atol=0.06)
        total = np.cov(white.T)
        np.testing.assert_allclose(total, np.diag(np.diag(total)), atol=0.01)
        # What they were drawn with: the variances of people over that of images.
        np.testing.assert_allclose(model.between, np.linspace(2, 0.3, 24) ** 2 / 0.36, rtol=0.35, atol=0.1)

    def test_made_up_people_are_distributed_as_the_real_ones(self):
        vectors, labels = make_people(people=400, images=5)
        model = PeopleModel.fit(vectors.astype(float), labels)
        made_up = model.make_up(20_000, unit_length=False, rng=np.random.default_rng(0))
        np.testing.assert_allclose(made_up.mean(axis=0), 0, atol=0.12)
        np.testing.assert_allclose(made_up.var(axis=0), model.between + 1, rtol=0.1)

    def test_unit_length(self):
        units = to_unit_length(np.array([[3.0, 4.0], [0.0, 0.0], [1e300, 0.0], [0.0, 1e-300]]))
        np.testing.assert_allclose(units, [[0.6, 0.8], [0, 0], [1, 0], [0, 1]])

    @pytest.mark.parametrize(("num_axes", "num_books"), [(128, 8), (128, 6), (3, 8), (1, 1)])
    def test_every_axis_has_one_book(self, num_axes, num_books):
        axes = share_axes(np.linspace(9, 1, num_axes), num_books)
        assert axes.shape == (num_books, -(-num_axes // num_books))
        assert sorted(axes[axes >= 0]) == list(range(num_axes))

    def test_books_have_much_the_same_to_tell(self):
        variances = np.geomspace(100, 1, 128)
        products = np.log(variances)[share_axes(variances, 8)].sum(axis=1)
        assert products.max() - products.min() < 0.05 * products.mean()

    def test_words_find_clusters(self):
        rng = np.random.default_rng(0)
        centres = 10 * rng.normal(size=(4, 3))
        points = (centres[rng.integers(4, size=2000)] + 0.1 * rng.normal(size=(2000, 3))).astype(np.float32)
        words = find_words(points, 16, rng)
        distances = np.linalg.norm(centres[:, None] - words, axis=2)
        assert distances.min(axis=1).max() < 0.2


class TestFolder:
    def test_loaded_quantizer_is_the_saved_one(self, fitted, folder):
        loaded = OPQNQuantizer.load(folder)
        vectors = make_people(seed=1)[0]
        assert loaded.fingerprint == fitted.fingerprint
        assert loaded.training_facts_ == fitted.training_facts_
        np.testing.assert_array_equal(loaded.encode(vectors), fitted.encode(vectors))
        np.testing.assert_array_equal(loaded.lookup_tables(vectors), fitted.lookup_tables(vectors))
        assert clone(loaded).fit(*make_people()).fingerprint == fitted.fingerprint
        assert pickle.loads(pickle.dumps(loaded)).fingerprint == fitted.fingerprint

    def test_folder_holds_weights_and_no_vectors(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * (24 + 24 * 24 + 4 * 7 * 16) + 4000
        assert "4 books of 16 words" in (folder / "README.md").read_text()

    def test_random_state_that_is_no_number_is_not_kept(self, tmp_path):
        quantizer = OPQNQuantizer(shape=(2, 4), random_state=np.random.RandomState(0)).fit(*make_people())
        quantizer.save(tmp_path / "saved")
        assert OPQNQuantizer.load(tmp_path / "saved").random_state is None

    def test_every_setting_counts(self, fitted):
        prints = {fitted.fingerprint}
        for change in ({"query_temperature": 0.3}, {"normalize": False}):
            prints.add(pickle.loads(pickle.dumps(fitted)).set_params(**change).fingerprint)
        assert len(prints) == 3

    def test_full_disk_leaves_the_old_folder(self, fitted, folder, full_disk_after):
        full_disk_after(1)
        with pytest.raises(OpqnError, match="disk is full"):
            fitted.save(folder)
        assert OPQNQuantizer.load(folder).fingerprint == fitted.fingerprint

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_missing_file_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(CorruptFileError, match=name):
            OPQNQuantizer.load(folder)

    def test_no_folder(self, tmp_path):
        with pytest.raises(CorruptFileError, match=r"config\.json is missing"):
            OPQNQuantizer.load(tmp_path / "nothing")

    def test_file_that_is_a_folder(self, folder):
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        with pytest.raises(CorruptFileError, match="cannot be read"):
            OPQNQuantizer.load(folder)

    def test_missing_card_does_no_harm(self, folder, fitted):
        (folder / "README.md").unlink()
        assert OPQNQuantizer.load(folder).fingerprint == fitted.fingerprint

    def test_every_changed_byte_of_the_weights_is_noticed(self, folder):
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        for position in np.random.default_rng(0).integers(len(data), size=40):
            damaged = bytearray(data)
            damaged[position] ^= 0x11
            path.write_bytes(damaged)
            with pytest.raises(CorruptFileError):
                OPQNQuantizer.load(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "opqn-model"}', "[" * 100_000, " " * (2 << 20)])
    def test_config_that_is_none(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(CorruptFileError):
            OPQNQuantizer.load(folder)

    @pytest.mark.parametrize(
        "change",
        [
            {"num_books": 1 << 30},
            {"num_books": 3},
            {"num_books": 0},
            {"num_words": 8},
            {"num_words": 17},
            {"dim": 1 << 40},
            {"dim": 25},
            {"normalize": None},
            {"normalize": False},
            {"query_temperature": -1},
            {"query_temperature": 0.3},
            {"num_bits": 64},
            {"unknown": 1},
        ],
    )
    def test_hostile_or_changed_settings(self, folder, change):
        change_config(folder, quantizer=change)
        with pytest.raises(CorruptFileError):
            OPQNQuantizer.load(folder)

    def test_newer_format_asks_for_an_update(self, folder):
        change_config(folder, format_version=2, something={})
        with pytest.raises(CorruptFileError, match="update opqn"):
            OPQNQuantizer.load(folder)

    @pytest.mark.parametrize(
        "change",
        [
            lambda weights: weights.pop("mean"),
            lambda weights: weights.update(more=weights["mean"]),
            lambda weights: weights.update(mean=weights["mean"][:-1]),
            lambda weights: weights.update(mean=weights["mean"].astype(np.float64)),
            lambda weights: weights["mean"].fill(np.nan),
            lambda weights: weights.update(more=np.zeros(1 << 20, np.float32)),
            lambda weights: weights["mean"].fill(0.5),
        ],
    )
    def test_weights_of_something_else(self, folder, change):
        path = folder / "model.safetensors"
        weights = {name: array.copy() for name, array in safetensors.numpy.load_file(path).items()}
        change(weights)
        path.write_bytes(safetensors.numpy.save(weights))
        with pytest.raises(CorruptFileError):
            OPQNQuantizer.load(folder)

    def test_pickle_is_never_opened(self, folder, tmp_path):
        class Bomb:
            def __reduce__(self):
                return Path.touch, (tmp_path / "exploded",)

        (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CorruptFileError):
            OPQNQuantizer.load(folder)
        assert not (tmp_path / "exploded").exists()

    def test_copied_folder_is_the_same(self, folder, tmp_path, fitted):
        assert OPQNQuantizer.load(shutil.copytree(folder, tmp_path / "copy")).fingerprint == fitted.fingerprint


def test_fitting_encoding_saving_and_loading_need_no_torch(tmp_path):
    program = """
import sys
import numpy as np
from opqn.estimator import OPQNQuantizer
vectors = np.random.default_rng(0).normal(size=(40, 8))
quantizer = OPQNQuantizer(shape=(2, 4)).fit(vectors, np.arange(40) // 4)
quantizer.save(sys.argv[1])
loaded = OPQNQuantizer.load(sys.argv[1])
assert loaded.fingerprint == quantizer.fingerprint
assert (loaded.encode(vectors) == loaded.lookup_tables(vectors).argmax(axis=2)).all()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program, tmp_path / "saved"], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not SFACE.exists(), reason="the SFace vectors of LFW are not here; see docs/vectors.md")
@pytest.mark.parametrize(("num_bits", "floor"), [(24, 0.65), (48, 0.88), (64, 0.93)])
def test_unseen_people_of_lfw_are_found(monkeypatch, num_bits, floor):
    from opqn.bench import vectors as bench

    monkeypatch.setattr(module, "MADE_UP", 65_536)
    with np.load(SFACE, allow_pickle=False) as file:
        people = np.unique([name.split("/")[0] for name in file["n"]], return_inverse=True)[1]
        first, second = bench.halves(bench.Vectors(file["e"], people), 0)
    quantizer = OPQNQuantizer(num_bits).fit(*first)
    chosen = bench.queries_of(second)
    report = evaluate(
        quantizer.encode(second.vectors),
        second.people,
        quantizer.lookup_tables(second.vectors[chosen]),
        second.people[chosen],
        exclude=chosen,
    )
    assert report.mean_average_precision > floor
