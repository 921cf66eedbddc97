"""Features of files and reports of splits: what :mod:`opqn.protocols` adds to a model and to the metrics."""

import numpy as np
import pytest
import torch

from opqn import protocols
from opqn.data.images import SkippedImage
from opqn.data.splits import Split, person_of
from opqn.errors import ConfigError, DataError
from opqn.evaluation import evaluate, evaluate_features, quantization_error
from opqn.index import score
from opqn.model import OPQN, ModelConfig
from opqn.open_set import verification
from opqn.protocols import evaluate_split, image_features


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet20-32-narrow", num_books=4, num_words=8, book_dim=8, query_temperature=2.0)
    return OPQN(config).eval()


@pytest.fixture
def folder(drawn_faces, tmp_path):
    """Six good pictures of two people, two files that are no pictures, and a path where there is no file."""
    root, _ = drawn_faces
    good = [f"p{person}/{picture}.png" for person in (5, 2) for picture in (3, 0, 7)]
    for path in good:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((root / path).read_bytes())
    (tmp_path / "p2/empty.png").write_bytes(b"")
    (tmp_path / "p5/cut.png").write_bytes((root / "p5/3.png").read_bytes()[:300])
    return tmp_path, good, ["p2/empty.png", "p5/cut.png", "p5/none.png"]


def mixed(good, bad):
    return [bad[0], *good[:2], bad[1], *good[2:], bad[2]]


def test_features_are_those_the_model_makes_of_the_same_files(model, drawn_faces):
    root, split = drawn_faces
    result = image_features(model, root, split.query)
    assert torch.equal(result.features, model.features([root / path for path in split.query]))
    assert result.features.shape == (len(split.query), 32)
    assert result.features.dtype == torch.float32
    assert (result.paths, result.skipped) == (split.query, ())
    assert result.people().tolist() == [person_of(path) for path in split.query]


@pytest.mark.parametrize("at_once", [1, 2, 4, 256])
def test_order_is_kept_and_unreadable_images_are_listed_with_a_reason(model, folder, monkeypatch, at_once):
    root, good, bad = folder
    monkeypatch.setattr(protocols, "IMAGES_AT_ONCE", at_once)
    result = image_features(model, root, mixed(good, bad))
    assert result.paths == tuple(good)
    assert result.people().tolist() == ["p5"] * 3 + ["p2"] * 3
    assert [image.path for image in result.skipped] == bad
    assert all(isinstance(image, SkippedImage) and image.reason for image in result.skipped)
    # A batch of another size may round differently.
    torch.testing.assert_close(result.features, model.features([root / path for path in good]), rtol=1e-4, atol=1e-5)


def test_progress_counts_skipped_images_too_and_ends_at_all(model, folder, monkeypatch):
    root, good, bad = folder
    monkeypatch.setattr(protocols, "IMAGES_AT_ONCE", 4)
    seen = []
    image_features(model, root, mixed(good, bad), lambda done, count: seen.append((done, count)))
    assert seen == [(4, 9), (8, 9), (9, 9)]


def test_nothing_readable_is_an_error_that_names_a_file_and_its_reason(model, folder):
    root, _, bad = folder
    with pytest.raises(DataError, match=r"none of 3 images .* p2/empty\.png, "):
        image_features(model, root, bad)
    with pytest.raises(DataError, match="none of 0 images"):
        image_features(model, root, [])


def test_a_report_is_what_the_metrics_say_of_the_same_features(model, drawn_faces):
    root, split = drawn_faces
    report = evaluate_split(model, root, split, k=(1, 3))
    gallery, query = (model.features([root / path for path in paths]) for paths in (split.gallery, split.query))
    people, query_people = (np.array([person_of(path) for path in paths]) for paths in (split.gallery, split.query))
    codes, tables = model.encode_features(gallery), model.tables_of_features(query)
    by_hand = evaluate(codes, people, tables, query_people, (1, 3))
    assert report.codes.to_dict() == by_hand.to_dict()
    uncompressed = evaluate_features(gallery.numpy(), people, query.numpy(), query_people, (1, 3))
    assert report.features.to_dict() == uncompressed.to_dict()
    assert report.quantization_error == quantization_error(model.assignments(gallery))
    assert (report.protocol, report.split_hash, report.skipped) == ("seen", split.hash, ())
    assert report.to_dict()["codes"] == by_hand.to_dict()


def test_the_query_temperature_given_goes_before_the_models_own(model, drawn_faces):
    root, split = drawn_faces
    default = evaluate_split(model, root, split)
    assert evaluate_split(model, root, split, query_temperature=2.0).to_dict() == default.to_dict()
    gallery, query = (image_features(model, root, paths) for paths in (split.gallery, split.query))
    tables = model.tables_of_features(query.features, 16.0)
    by_hand = evaluate(model.encode_features(gallery.features), gallery.people(), tables, query.people())
    assert evaluate_split(model, root, split, query_temperature=16.0).codes.to_dict() == by_hand.to_dict()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_none_is_refused_before_any_image_is_read(model, drawn_faces, tmp_path, temperature):
    _, split = drawn_faces
    with pytest.raises(ConfigError, match="query_temperature"):
        evaluate_split(model, tmp_path, split, query_temperature=temperature)


def test_images_that_became_unreadable_are_left_out_of_a_report_and_listed(model, folder):
    root, good, _ = folder
    gallery, query = (*good[:2], *good[3:5], "p5/cut.png"), (good[2], good[5], "p2/empty.png")
    broken = Split("broken", "unseen", 0, (), gallery, query)
    clean = Split("clean", "unseen", 0, (), gallery[:-1], query[:-1])
    report = evaluate_split(model, root, broken)
    assert [image.path for image in report.skipped] == ["p5/cut.png", "p2/empty.png"]
    assert report.codes.to_dict() == evaluate_split(model, root, clean).codes.to_dict()
    assert (report.codes.num_gallery, report.codes.num_queries) == (4, 2)


def test_progress_of_a_split_runs_over_gallery_and_queries(model, drawn_faces, monkeypatch):
    root, split = drawn_faces
    monkeypatch.setattr(protocols, "IMAGES_AT_ONCE", 20)
    seen = []
    evaluate_split(model, root, split, on_images=lambda done, count: seen.append((done, count)))
    assert seen == [(20, 64), (40, 64), (56, 64), (64, 64)]


def test_a_role_without_a_readable_image_is_an_error(model, folder):
    root, good, _ = folder
    split = Split("no query", "unseen", 0, (), tuple(good), ("p2/empty.png",))
    with pytest.raises(DataError, match="none of 1 images"):
        evaluate_split(model, root, split)


def test_open_set_figures_are_those_of_a_gallery_of_half_of_the_people(model, drawn_faces):
    root, split = drawn_faces
    report = evaluate_split(model, root, split, open_set_seed=4).open_set
    assert (report.seed, report.num_enrolled) == (4, 4)
    gallery, query = (image_features(model, root, paths) for paths in (split.gallery, split.query))
    people = np.unique(gallery.people())
    known = people[np.random.default_rng(4).permutation(len(people))[:4]]
    codes, tables = model.encode_features(gallery.features), model.tables_of_features(query.features)
    names = np.concatenate([query.people(), gallery.people()])
    unit = torch.nn.functional.normalize
    cosines = (unit(query.features) @ unit(gallery.features).T).numpy()
    # Per query and known person 3/4 of the best face and 1/4 of the second; codes of this model tie, cosines do not.
    best = np.stack(
        [np.sort(cosines[:, gallery.people() == person], axis=1)[:, -2:] @ [0.25, 0.75] for person in known], axis=1
    )
    is_known = np.isin(query.people(), known)
    rank1 = (known[best[is_known].argmax(axis=1)] == query.people()[is_known]).mean()
    found = report.features.identification
    assert found.rank_at[1] == pytest.approx(rank1)
    assert found.fnir[-1] == pytest.approx(1 - rank1)  # where every stranger may be named
    for figures in (found, report.codes.identification):
        assert figures.num_probes == is_known.sum() == 4
        assert figures.num_stranger_faces == (~np.isin(names, known)).sum() == 4 * 8
        assert figures.num_strangers == 4
    same = query.people()[:, None] == gallery.people()
    assert report.codes.verification.to_dict() == verification(score(tables, codes).ravel(), same.ravel()).to_dict()
    assert report.features.verification.equal_error_rate == pytest.approx(
        verification(cosines.ravel(), same.ravel()).equal_error_rate, abs=1e-6
    )


def test_of_many_pairs_a_sample_is_verified(model, drawn_faces, monkeypatch):
    root, split = drawn_faces
    monkeypatch.setattr(protocols, "MAX_PAIRS", 3 * len(split.gallery))
    found = evaluate_split(model, root, split, open_set_seed=0).open_set.codes.verification
    assert found.num_genuine + found.num_impostor == 3 * len(split.gallery)


def test_one_person_cannot_be_divided_into_known_and_unknown(model, drawn_faces):
    root, split = drawn_faces
    one = Split("x", "seen", 0, split.gallery[:5], split.gallery[:5], split.query[:1])
    with pytest.raises(DataError, match="known and unknown"):
        evaluate_split(model, root, one, open_set_seed=0)
