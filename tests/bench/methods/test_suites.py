"""Suites: what is compared differs in the method alone, and the recipes make the data that the suites want."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opqn.baselines.methods import METHODS, method_of
from opqn.bench.methods.fetch import SYNTHETIC
from opqn.bench.methods.jobs import Job
from opqn.bench.methods.runner import _Plan
from opqn.bench.methods.suites import SUITES, get_suite, narrowed
from opqn.config import TrainingSettings
from opqn.data.recipes import RECIPES, prepare
from opqn.data.splits import Split, person_of
from opqn.errors import ConfigError, DataError
from opqn.estimator.files import MAX_DIM

COMPARISONS = [SUITES[name] for name in ("smoke", "faces", "paper")]


def every_part(suites, wanted=lambda _part: True):
    parts = [(suite, part) for suite in suites for part in suite.data if wanted(part)]
    ids = [f"{suite.name}-{part.name}" for suite, part in parts]
    return pytest.mark.parametrize(("suite", "part"), parts, ids=ids)


def settings_of(suite, part, bits, *overrides):
    return _Plan(suite, None, None, "cpu").settings(part, suite.seeds[0], bits, *overrides)


def file_name(label):
    return Job("d", label, 8, 0, TrainingSettings(), None, None, (), (), None).name.removeprefix("d/")


def own_part(settings):
    """What may differ between the methods, and all else."""
    document = settings.model_dump()
    own = {name: document.pop(name, None) for name in ("method", "method_settings", "loss")}
    own["rate"] = document["train"].pop("learning_rate")
    own["refit"] = document["model"].pop("refit", False)
    return own, document


@every_part(COMPARISONS)
def test_methods_differ_in_nothing_but_themselves(suite, part):
    for bits in suite.bits:
        parts = [own_part(settings_of(suite, part, bits, *entry.overrides)) for entry in suite.entries]
        assert all(shared == parts[0][1] for _, shared in parts)
        for number, (own, _) in enumerate(parts):
            assert own not in [other for other, _ in parts[:number]], suite.entries[number].label


@every_part(SUITES.values())
def test_every_method_can_be_built_at_every_length(suite, part):
    for bits in suite.lengths:
        for entry in suite.entries:
            settings = settings_of(suite, part, bits, *entry.overrides)
            assert settings.model.num_bits == bits
            method = method_of(settings)
            if method is None:
                assert settings.model.feature_dim <= MAX_DIM or not settings.model.refit
            else:
                assert not settings.model.refit
                assert method.build_head(settings.model).num_books >= 1
                method.build_loss(settings.model, 10)


@every_part(SUITES.values(), lambda part: part.start is not None)
def test_one_network_can_start_every_training_of_a_data_set(suite, part):
    start = settings_of(suite, part, suite.lengths[-1], "method=cosface", *part.start)
    for bits in suite.bits:
        for entry in suite.entries:
            model = settings_of(suite, part, bits, *entry.overrides).model
            assert (model.backbone, model.feature_dim) == (start.model.backbone, start.model.feature_dim)


@pytest.mark.parametrize("suite", COMPARISONS, ids=lambda suite: suite.name)
def test_a_suite_has_opqn_and_every_method_that_it_is_compared_with(suite):
    assert sorted(entry.label for entry in suite.entries) == sorted(["opqn", "opqn-plus", *METHODS])
    for entry in suite.entries:
        settings = settings_of(suite, suite.data[0], suite.bits[0], *entry.overrides)
        assert settings.method == ("opqn" if entry.label == "opqn-plus" else entry.label)
        assert settings.model.refit == (entry.label == "opqn-plus")


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_nothing_stands_twice_in_a_suite_and_footnotes_are_of_its_rows(suite):
    labels = [entry.label for entry in suite.entries]
    for values in (labels, suite.seeds, [part.name for part in suite.data], list(map(file_name, labels))):
        assert len(set(values)) == len(values)
    assert sorted(set(suite.bits)) == list(suite.bits)
    assert suite.footnotes.keys() <= set(labels)
    assert all(file_name(label).replace("-", "").replace(".", "").isalnum() for label in labels)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_data_set_can_be_had(suite):
    names = [part.name for part in suite.data] + [where.data for part in suite.data for where in part.tests]
    assert set(names) <= {SYNTHETIC, *RECIPES}
    for part in suite.data:
        assert (part.draw is None) == bool(part.tests)


# The paper's data sets, in miniature


def picture(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(root, first, *paths):
    for number, path in enumerate(paths, start=first):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))
    return root


def of_people(names, count, pattern="{person}/{number}.png"):
    return [pattern.format(person=person, number=number) for person in names for number in range(count)]


NAMES = {"n1": "Ann Bell", "n2": "Bo Cox", "n3": "Cy Day", "n4": "Di Eve", "n5": "Ed Fox"}


@pytest.fixture(scope="module")
def papers_data(tmp_path_factory):
    """Every data set of the suite ``paper``, as its recipe makes it of a small download."""
    there, data = tmp_path_factory.mktemp("downloads"), tmp_path_factory.mktemp("prepared")
    faces = write(there / "vggface2", 0, *of_people(NAMES, 101, "train/{person}/{number}.png"))
    rows = [f"{person}, {name.replace(' ', '_')}\n" for person, name in NAMES.items()]
    (faces / "identity_meta.csv").write_text("Class_ID, Name\n" + "".join(rows))
    classes = ["airplane", "bird"]
    records = np.random.default_rng(0).integers(0, 256, (220, 3073), dtype=np.uint8)  # 100 of a class ask
    records[:, 0] = np.arange(220) % 2
    (there / "cifar-10").mkdir()
    (there / "cifar-10/data_batch_1.bin").write_bytes(records.tobytes())
    frames = of_people(["Ny", "Ov", "Pi"], 12, "{person}/0/{number}.png")
    for name, source in (
        ("facescrub", write(there / "facescrub", 1000, *of_people([*NAMES.values(), "Gil Hay", "Ida Jet"], 7))),
        ("cfw-60k", write(there / "cfw-60k", 2000, *of_people(["Ko", "Lu", "Mo"], 12))),
        ("youtube-faces", write(there / "youtube", 3000, *frames)),
        ("vggface2", faces),
        ("cifar-10", there / "cifar-10"),
        (
            "imagenet-100",
            write(
                there / "imagenet",
                4000,
                *of_people(classes, 9, "train/{person}/{number}.png"),
                *of_people(classes, 3, "val/{person}/{number}.png"),
            ),
        ),
    ):
        prepare(name, source, data / name, allow_incomplete=True)
    return data


def prepared(suite, data, name):
    """The tests of a data set, and what was said on the way."""
    plan, said = _Plan(suite, data, None, "cpu"), []
    (part,) = (part for part in suite.data if part.name == name)
    plan.prepare(part, 0, said.append)
    return *plan.splits[name, 0], said


@pytest.mark.parametrize("part", SUITES["paper"].data, ids=lambda part: part.name)
def test_the_recipes_make_the_split_files_of_the_papers_suite(part, papers_data):
    train, tests, said = prepared(SUITES["paper"], papers_data, part.name)
    assert said == []
    assert train.hash == Split.load(papers_data / part.name / "splits/seen.json").hash
    assert [(test.protocol, test.root) for test in tests] == [
        (where.protocol, papers_data / where.data / "images") for where in part.tests
    ]
    for test in tests:
        assert (test.data == part.name) == (test.root == papers_data / part.name / "images")
    if part.name in ("cifar-10", "imagenet-100"):
        assert set(train.train) <= set(tests[0].split.gallery)
        assert train.query == tests[0].split.query


def test_people_who_are_trained_on_do_not_ask_in_another_data_set(papers_data):
    train, tests, _ = prepared(SUITES["paper"], papers_data, "vggface2")
    trained = {NAMES[person_of(path)] for path in train.train}
    (elsewhere,) = (test.split for test in tests if test.root == papers_data / "facescrub/images")
    people = {person_of(path) for path in (*elsewhere.gallery, *elsewhere.query)}
    assert len(trained) == 4
    assert people == {*NAMES.values(), "Gil Hay", "Ida Jet"} - trained


def test_without_names_it_is_said_that_they_cannot_be_left_out(papers_data, tmp_path):
    for folder in papers_data.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "vggface2").unlink()
    (tmp_path / "cfw-60k").unlink()
    (tmp_path / "vggface2").mkdir()
    for name in ("images", "splits"):
        (tmp_path / "vggface2" / name).symlink_to(papers_data / "vggface2" / name)
    _, tests, said = prepared(SUITES["paper"], tmp_path, "vggface2")
    assert [test.data for test in tests if test.protocol == "unseen"] == [
        "vggface2",
        "facescrub, trained on vggface2",
        "youtube-faces, trained on vggface2",
    ]
    assert any("no cfw-60k/splits/unseen.json" in line for line in said)
    assert sum("people.csv" in line and "cannot be left out" in line for line in said) == 2


def test_a_split_that_tests_strangers_who_are_trained_on_is_refused(papers_data, tmp_path):
    (tmp_path / "vggface2/splits").mkdir(parents=True)
    (tmp_path / "vggface2/images").symlink_to(papers_data / "vggface2/images")
    seen, unseen = (Split.load(papers_data / f"vggface2/splits/{name}.json") for name in ("seen", "unseen"))
    seen.save(tmp_path / "vggface2/splits/seen.json")
    person = person_of(seen.train[0])
    others = [path for path in seen.train if person_of(path) == person]
    replace(unseen, train=(), gallery=tuple(others), query=unseen.query).save(tmp_path / "vggface2/splits/unseen.json")
    with pytest.raises(DataError, match=f"trains on 1 of them: {person}; prepare"):
        prepared(SUITES["paper"], tmp_path, "vggface2")


def test_a_data_set_without_the_split_to_train_on_says_what_to_do(papers_data, tmp_path):
    (tmp_path / "facescrub").mkdir()
    (tmp_path / "facescrub/images").symlink_to(papers_data / "facescrub/images")
    with pytest.raises(DataError, match=r"has no seen\.json; use `opqn data prepare`"):
        prepared(SUITES["paper"], tmp_path, "facescrub")


# Parts of a suite


def test_a_suite_is_found_by_its_name_and_a_wrong_name_gets_the_nearest():
    assert get_suite("faces") is SUITES["faces"]
    with pytest.raises(ConfigError, match=r"no suite 'papers'; did you mean 'paper'\? there are smoke, .*paper"):
        get_suite("papers")
    with pytest.raises(ConfigError, match=r"no suite 'x'; there are smoke, .*paper"):
        get_suite("x")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"data": ["lwf"]}, r"suite 'faces' has no data set 'lwf'; did you mean lfw\? it has synthetic, .*lfw"),
        (
            {"methods": ["opq"]},
            r"suite 'faces' has no method 'opq'; did you mean opqn\? it has opqn, opqn-plus, .*cosface",
        ),
        ({"bits": [SUITES["faces"].bits[0], 7]}, r"suite 'faces' has no length 7; it has \d+(, \d+)*$"),
    ],
)
def test_a_part_that_a_suite_does_not_have_is_refused_with_what_it_has(wanted, message):
    with pytest.raises(ConfigError, match=message):
        narrowed(SUITES["faces"], **wanted)


FACES = SUITES["faces"]


@given(
    st.lists(st.sampled_from([part.name for part in FACES.data])),
    st.lists(st.sampled_from([entry.label for entry in FACES.entries])),
    st.lists(st.sampled_from(FACES.bits)),
    st.lists(st.integers(0, 9)),
)
def test_a_part_of_a_suite_keeps_its_order_and_holds_nothing_twice(data, methods, bits, seeds):
    part = narrowed(FACES, data=data, methods=methods, bits=bits, seeds=seeds)
    assert part.data == tuple(one for one in FACES.data if not data or one.name in data)
    assert part.entries == tuple(entry for entry in FACES.entries if not methods or entry.label in methods)
    assert part.bits == tuple(length for length in FACES.bits if not bits or length in bits)
    assert set(part.seeds) == set(seeds or FACES.seeds)
    assert len(set(part.seeds)) == len(part.seeds)
    assert part.lengths == FACES.bits
    assert narrowed(part, bits=part.bits[:1]).lengths == FACES.bits
