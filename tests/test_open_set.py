"""Open sets: figures equal their definitions, intervals cover what they promise, thresholds hold on strangers."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from opqn.errors import ConfigError, DataError
from opqn.index import CodeIndex
from opqn.open_set import (
    CURVE_LEVELS,
    RankedPeople,
    calibrate,
    identification,
    leave_one_person_out,
    person_scores,
    verification,
)

DATA = Path(os.environ.get("OPQN_SHARED") or Path(__file__).parents[2] / "shared") / "data"
SOME = st.integers(-3, 3).map(float)  # few values, so that many scores are equal


def f32(values):
    return np.array(values, np.float32)


@pytest.fixture(scope="session")
def lfw():
    """Vectors, file names and people of LFW."""
    path = DATA / "lfw_sface.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: face vectors of LFW are not here; set OPQN_SHARED to the folder that holds data/")
    with np.load(path, allow_pickle=False) as file:
        vectors, names = file["e"].astype(np.float32), file["n"]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    _, people = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    return vectors, names, people


# People of faces


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from([-np.inf, -2, 0, 1, 1.5]), st.integers(-1, 3)), min_size=1)))
def test_a_person_is_worth_three_parts_of_the_best_face_and_one_of_the_second(hits):
    width = max(map(len, hits), default=1)
    hits = [row + [(-np.inf, -1)] * (width - len(row)) for row in hits]
    ranked = person_scores(
        f32([[score for score, _ in row] for row in hits]).reshape(len(hits), width),
        np.array([[who for _, who in row] for row in hits], np.int64).reshape(len(hits), width),
    )
    assert ranked.scores.shape == ranked.people.shape == (len(hits), width)
    for q, row in enumerate(hits):
        real = [(score, who) for score, who in row if score > -np.inf]
        expected = []
        for person in {who for _, who in real if who >= 0}:
            best, second = [*sorted((score for score, who in real if who == person), reverse=True), None][:2]
            stand_in = min(score for score, _ in real)
            expected.append((0.75 * best + 0.25 * (stand_in if second is None else second), person))
        expected.sort(key=lambda entry: (-entry[0], entry[1]))
        found = [(score, who) for score, who in zip(ranked.scores[q], ranked.people[q], strict=True) if who >= 0]
        assert found == expected
        assert (ranked.scores[q, len(found) :] == -np.inf).all()
        assert ranked.best[q] == (expected[0][0] if expected else -np.inf)


def test_a_second_look_alike_outweighs_one_and_nobody_is_found_among_faces_without_names():
    ranked = person_scores(f32([[0.9, 0.89, 0.88, 0.1], [0.9, 0.8, 0.7, 0.6]]), np.array([[5, 7, 7, 9], [-1] * 4]))
    assert ranked.people.tolist() == [[7, 5, 9, -1], [-1] * 4]
    assert ranked.best[1] == -np.inf


@pytest.mark.parametrize(
    ("scores", "people"),
    [
        (np.zeros((1, 2)), np.zeros((1, 2), int)),
        (f32([0.0]), np.array([0])),
        (np.zeros((1, 0), np.float32), np.zeros((1, 0), int)),
        (f32([[0.0]]), np.array([[0.0]])),
        (f32([[0.0]]), np.array([[0, 1]])),
        (f32([[0.0]]), np.array([[-2]])),
        (f32([[np.nan]]), np.array([[0]])),
    ],
)
def test_what_are_no_hits_is_refused(scores, people):
    with pytest.raises(ConfigError):
        person_scores(scores, people)


# Verification


def slow_rate(scores, threshold):
    return sum(score >= threshold for score in scores) / len(scores)


def candidates(*scores):
    """Return a threshold between any two scores that differ, at each score, and beyond the ends."""
    every = sorted({score for some in scores for score in some if score > -np.inf})
    return [-1e9, *every, *[(low + high) / 2 for low, high in itertools.pairwise(every)], 1e9]


@settings(deadline=None)
@given(st.lists(SOME, min_size=1, max_size=12), st.lists(SOME, min_size=1, max_size=80))
def test_verification_equals_its_definition(genuine, impostor):
    report = verification(np.array(genuine + impostor), np.arange(len(genuine) + len(impostor)) < len(genuine))
    tries = candidates(genuine, impostor)

    def highest(level):
        return max(slow_rate(genuine, t) for t in tries if slow_rate(impostor, t) <= level)

    levels = [level for level in CURVE_LEVELS if len(impostor) * level >= 3 * (1 - 1e-9)]
    assert report.fmr.tolist() == levels
    assert report.tmr.tolist() == [highest(level) for level in levels]
    for level, rate in report.tmr_at.items():
        assert rate == (highest(level) if len(impostor) * level >= 3 * (1 - 1e-9) else None)
        threshold = report.threshold_at[level]
        if rate is not None:
            assert slow_rate(impostor, threshold) <= level
            assert slow_rate(genuine, threshold) == rate
    # At the equal error rate both errors cross: below it one is larger, above it the other.
    for t in tries:
        errors = slow_rate(impostor, t), 1 - slow_rate(genuine, t)
        assert min(errors) <= report.equal_error_rate + 1e-12
        assert max(errors) >= report.equal_error_rate - 1e-12
    assert (report.num_genuine, report.num_impostor) == (len(genuine), len(impostor))
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_equal_error_rate_of_two_bells_is_the_one_in_the_book():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(2, 1, 200_000), rng.normal(0, 1, 200_000)])
    report = verification(scores, np.arange(400_000) < 200_000)
    assert report.equal_error_rate == pytest.approx(0.158655, abs=0.002)  # the normal distribution beyond 1
    assert report.tmr_at[0.01] == pytest.approx(0.3721, abs=0.006)  # beyond 2.3263 - 2
    assert report.accuracy is None


def test_a_fold_is_decided_by_the_threshold_of_the_others():
    # The first fold's best threshold is 0.5, the second's 5: each is judged by the other's.
    scores = np.array([1.0, 2.0, 0.0, -1.0, 10.0, 9.0, 1.0, 0.0])
    same = np.array([True, True, False, False] * 2)
    report = verification(scores, same, np.repeat(["one", "two"], 4))
    assert report.accuracy == pytest.approx((0.5 + 0.75) / 2)
    assert report.accuracy_standard_error == pytest.approx(0.125 / math.sqrt(2))


@settings(deadline=None)
@given(st.lists(st.tuples(SOME, st.booleans(), st.integers(0, 2)), min_size=4, max_size=20))
def test_accuracy_equals_its_definition(pairs):
    scores, same, folds = (np.array(column) for column in zip(*pairs, strict=True))
    if len(set(folds)) < 2 or same.all() or not same.any():
        return
    accuracies = []
    for fold in sorted(set(folds)):
        others = folds != fold
        every = np.unique(scores[others])
        cuts = [np.inf, *((every[:-1] + every[1:]) / 2)[::-1], -np.inf]
        best = max(cuts, key=lambda cut: ((scores[others] >= cut) == same[others]).sum())
        accuracies.append(((scores >= best) == same)[~others].mean())
    report = verification(scores, same, folds)
    assert report.accuracy == pytest.approx(np.mean(accuracies))
    assert report.accuracy_standard_error == pytest.approx(np.std(accuracies) / math.sqrt(len(accuracies)))


def test_too_few_impostors_show_no_small_rate():
    rng = np.random.default_rng(0)
    report = verification(rng.normal(size=3300), np.arange(3300) < 300)
    assert [level for level, rate in report.tmr_at.items() if rate is None] == [1e-4]
    assert report.fmr[0] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scores": np.zeros((2, 1))}, ConfigError),
        ({"scores": np.zeros(2, int)}, ConfigError),
        ({"scores": np.array([0.0, np.nan])}, ConfigError),
        ({"scores": np.array([0.0, np.inf])}, ConfigError),
        ({"same": np.array([0, 1])}, ConfigError),
        ({"same": np.array([True])}, ConfigError),
        ({"same": np.array([True, True])}, DataError),
        ({"same": np.array([False, False])}, DataError),
        ({"folds": np.array([1])}, ConfigError),
        ({"folds": np.array([1, 1])}, ConfigError),
    ],
)
def test_what_cannot_be_verified_is_refused(changes, error):
    with pytest.raises(error):
        verification(**({"scores": np.zeros(2), "same": np.array([True, False])} | changes))


def test_lfw_pairs_are_told_apart_as_well_as_the_networks_card_says(lfw):
    vectors, names, _ = lfw
    place = {name: number for number, name in enumerate(names)}
    pairs = []
    for line in (DATA / "lfw_pairs.txt").read_text().splitlines()[1:]:
        parts = line.split("\t")
        files = [(parts[0], parts[1]), (parts[0] if len(parts) == 3 else parts[2], parts[-1])]
        pairs.append([place[f"{person}/{person}_{int(number):04d}.jpg"] for person, number in files])
    first, second = np.array(pairs).T
    same = np.tile(np.arange(600) < 300, 10)
    report = verification((vectors[first] * vectors[second]).sum(axis=1), same, np.repeat(np.arange(10), 600))
    assert report.accuracy == pytest.approx(0.994, abs=0.003)
    assert report.tmr_at[1e-3] == pytest.approx(0.989, abs=0.003)
    assert report.tmr_at[1e-4] is None


# Identification


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.tuples(SOME, st.integers(0, 3)), max_size=4), st.integers(0, 3)), min_size=1),
    st.lists(st.tuples(SOME | st.just(-np.inf), st.integers(0, 20)), min_size=1, max_size=60),
    st.booleans(),
)
def test_identification_equals_its_definition(probes, strangers, by_person):
    hits = [sorted({who: score for score, who in found}.items(), key=lambda hit: -hit[1]) for found, _ in probes]
    ranked = RankedPeople(
        f32([[score for _, score in row] + [-np.inf] * (4 - len(row)) for row in hits]),
        np.array([[who for who, _ in row] + [-1] * (4 - len(row)) for row in hits]),
    )
    wanted = [who for _, who in probes]
    scores, people = zip(*strangers, strict=True)
    report = identification(ranked, np.array(wanted), f32(scores), np.array(people) if by_person else None)
    ranks = [[who for who, _ in row].index(w) if w in dict(row) else 99 for row, w in zip(hits, wanted, strict=True)]

    def fnir(t):
        found = [rank == 0 and row[0][1] >= t for rank, row in zip(ranks, hits, strict=True)]
        return 1 - sum(found) / len(found)

    def fpir(t):
        if not by_person:
            return slow_rate(scores, t)
        shares = [slow_rate([s for s, p in strangers if p == person], t) for person in set(people)]
        return sum(shares) / len(shares)

    tries = candidates(scores, [score for row in hits for _, score in row])
    trials = len(set(people)) if by_person else len(strangers)
    for level, rate in zip(report.fpir, report.fnir, strict=True):
        assert rate == pytest.approx(min(fnir(t) for t in tries if fpir(t) <= level * (1 + 1e-9)))
    assert len(report.fpir) == sum(trials * level >= 3 * (1 - 1e-9) for level in CURVE_LEVELS)
    for level, rate in report.dir_at.items():
        assert (rate is None) == (trials * level < 3 * (1 - 1e-9))
        if rate is not None:
            assert fpir(report.threshold_at[level]) <= level * (1 + 1e-9)
            assert 1 - fnir(report.threshold_at[level]) == pytest.approx(rate)
    assert report.rank_at == {k: sum(rank < k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    assert report.num_strangers == trials
    assert (report.num_probes, report.num_stranger_faces) == (len(probes), len(strangers))
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_stranger_at_the_threshold_is_named_and_an_enrolled_face_at_it_is_found():
    ranked = RankedPeople(f32([[0.5], [0.7]]), np.array([[0], [1]]))
    strangers = f32([0.5] * 4 + [0.1] * 36)  # a tenth of them scores as high as the first probe
    report = identification(ranked, np.array([0, 1]), strangers)
    assert report.dir_at == {0.1: 1.0, 0.01: None, 0.001: None}
    assert identification(ranked, np.array([0, 1]), np.append(strangers, f32([0.5]))).dir_at[0.1] == 0.5


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"probe_people": np.array([0])}, ConfigError),
        ({"probe_people": np.array([0.0, 1.0])}, ConfigError),
        ({"probe_people": np.array([0, -1])}, ConfigError),
        ({"stranger_scores": np.array([[0.0]])}, ConfigError),
        ({"stranger_scores": np.array([np.nan])}, ConfigError),
        ({"stranger_people": np.array([1, 2])}, ConfigError),
        ({"stranger_scores": np.empty(0)}, DataError),
        (
            {"probes": RankedPeople(np.empty((0, 1), np.float32), np.empty((0, 1), int)), "probe_people": []},
            ConfigError,
        ),
        (
            {
                "probes": RankedPeople(np.empty((0, 1), np.float32), np.empty((0, 1), int)),
                "probe_people": np.empty(0, int),
            },
            DataError,
        ),
    ],
)
def test_what_cannot_be_identified_is_refused(changes, error):
    given_well = {
        "probes": RankedPeople(f32([[1.0], [2.0]]), np.array([[0], [1]])),
        "probe_people": np.array([0, 1]),
        "stranger_scores": np.array([0.5]),
    }
    with pytest.raises(error):
        identification(**(given_well | changes))


# Calibration


def coverage(draw, true_rate, repeats, **options):
    """Return how often either interval covers the truth: at 1 %, of seeded draws of (scores, people)."""
    thresholds = rates = 0
    for seed in range(repeats):
        one = calibrate(*draw(np.random.default_rng(seed)), 0.01, gallery_people=100, **options)
        thresholds += true_rate(one.threshold_high) <= 0.01 <= true_rate(one.threshold_low)
        rates += one.fpir_low <= true_rate(one.threshold) <= one.fpir_high
        assert one.threshold_low <= one.threshold <= one.threshold_high
    return thresholds / repeats, rates / repeats


# Of 600 repeats at 95 %, chance alone leaves 0.95 by 0.018 two times in a hundred, and exact intervals cover more.
LEAST = 0.95 - 0.018


@pytest.mark.parametrize("strangers", [400, 3000])
def test_the_intervals_cover_as_often_as_they_say(strangers):
    covered = coverage(lambda rng: (rng.random(strangers), np.arange(strangers)), lambda t: 1 - t, 600)
    assert LEAST <= min(covered) <= max(covered) <= 0.995


def test_the_intervals_cover_where_strangers_have_faces_that_resemble_each_other():
    # A person's faces score as the person does, give or take: of all scores 1 % lies above a normal's 2.3263.
    def draw(rng):
        faces = rng.integers(1, 9, 500)
        whose = np.repeat(np.arange(500), faces)
        return rng.normal(0, 0.9, 500)[whose] + rng.normal(0, math.sqrt(1 - 0.81), len(whose)), whose

    covered = coverage(draw, lambda t: math.erfc(t / math.sqrt(2)) / 2, 600)
    assert min(covered) >= LEAST


def test_people_who_find_each_other_count_half():
    # Everyone's score with everyone, the same both ways, and of each person the best: uniform scores to the power 999.
    def draw(rng):
        both = np.triu(rng.random((1000, 1000), np.float32), 1)
        return np.maximum(both.max(axis=0), both.max(axis=1)).astype(float), np.arange(1000)

    def true_rate(t):
        return 1 - t**999

    assert min(coverage(draw, true_rate, 150, mutual=True)) >= 0.95 - 0.036
    assert min(coverage(draw, true_rate, 150)) < 0.92


@pytest.mark.parametrize("wanted", [20, 100, 500])
def test_independent_scores_follow_the_law_for_galleries_of_another_size(wanted):
    rng = np.random.default_rng(3)
    scores = rng.random(50_000) ** (1 / 100)  # the best of 100 people
    one = calibrate(scores, np.arange(len(scores)), 0.02, gallery_people=100, for_people=wanted)
    assert 1 - one.threshold**wanted == pytest.approx(0.02, rel=0.15)
    assert one.fpir_low <= 1 - one.threshold**wanted <= one.fpir_high
    assert one.gallery_people == wanted


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.02, 0.1]), st.booleans())
def test_without_repeated_faces_the_intervals_are_binomial(seed, fpir, ties):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(400, 900))
    scores = rng.integers(0, 40, count).astype(float) if ties else rng.random(count)
    one = calibrate(scores, np.arange(count), fpir, gallery_people=10)
    above = int((scores > one.threshold_high).sum())
    assert binom.cdf(above, count, fpir) <= 0.025  # so few above are too unlikely for the quantile to lie higher
    lower = scores[scores < one.threshold_high]
    assert not lower.size or binom.cdf((scores > lower.max()).sum(), count, fpir) > 0.025
    if one.threshold_low > scores.min():
        reach = int((scores >= one.threshold_low).sum())
        assert binom.sf(reach - 1, count, fpir) <= 0.025
    assert (scores >= one.threshold).mean() <= fpir
    below = scores[scores < one.threshold]
    assert not below.size or (scores >= below.max()).mean() > fpir
    named = int((scores >= one.threshold).sum())
    assert one.fpir_low == 0.0 if named == 0 else binom.sf(named - 1, count, one.fpir_low) == pytest.approx(0.025)
    assert binom.cdf(named, count, one.fpir_high) == pytest.approx(0.025)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_a_lower_rate_and_a_larger_gallery_raise_the_threshold(seed):
    rng = np.random.default_rng(seed)
    scores, people = rng.normal(size=3000).round(1), rng.integers(0, 1500, 3000)
    rates = [calibrate(scores, people, rate, gallery_people=50) for rate in (0.3, 0.1, 0.03, 0.01)]
    sizes = [calibrate(scores, people, 0.1, gallery_people=50, for_people=size) for size in (10, 50, 200)]
    for order in (rates, sizes):
        for name in ("threshold", "threshold_low", "threshold_high"):
            values = [getattr(one, name) for one in order]
            assert values == sorted(values)


def test_more_faces_of_one_stranger_change_nothing():
    rng = np.random.default_rng(0)
    scores, people = rng.normal(size=1000), np.arange(1000)
    once = calibrate(scores, people, gallery_people=5)
    loud = calibrate(np.append(scores, [scores[7]] * 500), np.append(people, [7] * 500), gallery_people=5)
    assert loud.num_faces == 1500
    assert loud.to_dict() | {"num_faces": 1000} == once.to_dict()
    json.dumps(once.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("mutual", "needed"), [(False, 368), (True, 736)])
def test_too_few_strangers_are_refused_with_the_number_it_takes(mutual, needed):
    def run(count, **options):
        people = np.arange(count).astype(str)
        return calibrate(np.linspace(0, 1, count), people, gallery_people=9, mutual=mutual, **options)

    assert run(needed).threshold_high == 1.0
    with pytest.raises(DataError, match=f"it takes {needed}"):
        run(needed - 1)
    with pytest.raises(DataError, match="in a gallery of 90 people, measured in one of 9"):
        run(needed, for_people=90)
    assert run(needed // 10 + 2, for_people=1, fpir=0.02).num_strangers == needed // 10 + 2


def test_in_a_gallery_of_one_every_score_of_a_large_gallery_may_be_named():
    one = calibrate(np.linspace(0, 1, 10), np.arange(10), 0.5, gallery_people=5000, for_people=1)
    assert one.threshold == 0.0
    assert one.fpir_low < 0.5 < one.fpir_high


def test_more_equal_best_scores_than_may_be_named_put_the_threshold_above_them():
    scores = np.zeros(1000, np.float32)
    one = calibrate(scores, np.arange(1000), gallery_people=5)
    assert 0 < one.threshold < 1e-40
    assert one.fpir_low == 0.0
    assert one.threshold_low == 0.0


def test_a_stranger_who_finds_nobody_is_never_named():
    scores = np.append(np.linspace(0, 1, 1000), [-np.inf] * 9000)
    one = calibrate(scores, np.arange(10_000), 0.2, gallery_people=5)
    assert one.threshold == 0.0
    assert one.threshold_low == np.finfo(np.float64).min
    with pytest.raises(DataError, match="found a person"):
        calibrate(scores[1000:], np.arange(9000), gallery_people=5)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": np.array([np.inf] * 500)},
        {"scores": np.zeros(500, int)},
        {"people": np.arange(499)},
        {"fpir": 0.0},
        {"fpir": 1.0},
        {"fpir": np.nan},
        {"confidence": 1.0},
        {"gallery_people": 0},
        {"for_people": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes):
    given_well = {"scores": np.zeros(500), "people": np.arange(500), "fpir": 0.01, "gallery_people": 5}
    with pytest.raises(ConfigError):
        calibrate(**(given_well | changes))


# Strangers from within


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_leaving_a_person_out_is_searching_a_gallery_without_the_person(seed, k):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (30, 2), dtype=np.uint8)
    ids = rng.permutation(100)[:30]
    people = rng.integers(-1, 6, 30)
    tables = rng.integers(0, 5, (30, 2, 4)).astype(np.float32)
    index = CodeIndex(2, 4)
    index.add(codes, ids)
    named = np.flatnonzero(people >= 0)
    listed = rng.permutation(30)[:25]  # the others have no name in the gallery
    best = leave_one_person_out(index.search, tables[named], people[named], ids[listed], people[listed], k)
    who_is = {int(ids[i]): int(people[i]) for i in listed}
    for query, score in zip(named, best, strict=True):
        own = {i for i, person in who_is.items() if person == people[query]}
        alone = CodeIndex(2, 4)
        keep = [i for i in range(30) if int(ids[i]) not in own]
        alone.add(codes[keep], ids[keep])
        scores, hits = alone.search(tables[query : query + 1], k)
        shown = np.array([[who_is.get(int(hit), -1) for hit in hits[0]]])
        assert score == person_scores(scores, shown).best[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"people": np.array([0])},
        {"people": np.array([0.0, 1.0])},
        {"people": np.array([0, -1])},
        {"gallery_ids": np.array([3, 3])},
        {"gallery_people": np.array([1])},
        {"k": 0},
    ],
)
def test_a_gallery_that_cannot_be_is_refused(changes):
    index = CodeIndex(1, 2)
    index.add(np.zeros((2, 1), np.uint8), [3, 4])
    given_well = {
        "people": np.array([0, 1]),
        "gallery_ids": np.array([3, 4]),
        "gallery_people": np.array([0, 1]),
        "k": 2,
    }
    with pytest.raises(ConfigError):
        leave_one_person_out(index.search, np.zeros((2, 1, 2), np.float32), **(given_well | changes))


def test_a_gallery_without_named_faces_finds_nobody():
    index = CodeIndex(1, 2)
    index.add(np.zeros((2, 1), np.uint8))
    tables, none = np.zeros((2, 1, 2), np.float32), np.empty(0, int)
    assert (leave_one_person_out(index.search, tables, np.array([0, 1]), none, none) == -np.inf).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_from_within_names_one_in_a_hundred_strangers_of_lfw(lfw, seed):
    vectors, _, people = lfw
    known = np.random.default_rng(seed).permutation(people.max() + 1) < people.max() // 2
    gallery, strangers = np.flatnonzero(known[people]), np.flatnonzero(~known[people])

    def search(queries, k):
        scores = queries[:, 0] @ vectors[gallery].T
        first = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(scores, first, axis=1)
        order = np.argsort(-found, axis=1)
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(first, order, axis=1)

    whose = people[gallery]
    within = leave_one_person_out(search, vectors[gallery, None], whose, np.arange(len(gallery)), whose)
    one = calibrate(within, whose, 0.01, gallery_people=int(known.sum()) - 1, for_people=int(known.sum()), mutual=True)
    scores, hits = search(vectors[strangers, None], 100)
    named = person_scores(scores, whose[hits]).best >= one.threshold
    faces = np.bincount(people)[people[strangers]]
    assert 0.005 <= np.average(named, weights=1 / faces) <= 0.02
