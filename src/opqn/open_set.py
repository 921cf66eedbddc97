"""Who is it, or nobody we know? Verification, open-set identification, and thresholds that are calibrated.

Ranking asks where the right face stands; here a score is compared with a threshold, and a face of somebody unknown
has to be turned away. Arrays in, reports out; no torch. A score at the threshold counts as above it. The terms are
those of ISO/IEC 19795-1 and of NIST's Face Recognition Vendor Test, part 2 (Grother, Ngan, Hanaoka, NISTIR 8271):

- verification, two faces: FMR, the share of impostor pairs accepted, and TMR, the share of genuine pairs accepted;
- identification, a face against a gallery: FPIR, the share of strangers for whom anybody is named, and FNIR, the share
  of enrolled people's faces whose person is not named first or not with the score. DIR is 1 - FNIR.

A rate that the data cannot show is reported as None. By the rule of three (ISO/IEC 19795-1, annex B) n independent
trials without an error bound its rate by 3/n, so a rate f needs at least 3/f of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from opqn.errors import ConfigError, DataError
from opqn.evaluation import Labels

NOBODY: Final = -1
NOT_FOUND: Final = np.iinfo(np.intp).max  # a rank beyond all
FMR_LEVELS: Final = (1e-1, 1e-2, 1e-3, 1e-4)
FPIR_LEVELS: Final = (1e-1, 1e-2, 1e-3)
RANKS: Final = (1, 5, 10)
CURVE_LEVELS: Final = tuple(float(level) for level in np.logspace(-5, 0, 101))
TRIALS_PER_ERROR: Final = 3.0  # the rule of three
BEST_WEIGHT: Final = 0.75  # of a person's best face; the second best has the rest
SEARCH_ROWS: Final = 1024
_ROUNDING: Final = 1e-9  # relative; shares are sums of fractions

Scores = NDArray[np.floating[Any]]


class Search(Protocol):
    """What :meth:`opqn.CodeIndex.search` does: (Q, M, K) tables and k to (Q, k) scores and ids, padded with -1."""

    def __call__(self, tables: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search."""


@dataclass(frozen=True, eq=False)
class RankedPeople:
    """For each query the people found, best first; equal scores by person, lowest first."""

    scores: NDArray[np.float32]
    """(Q, k) of the people; -inf where there are no more."""
    people: NDArray[np.int64]
    """(Q, k) who; -1 where there are no more."""

    @property
    def best(self) -> NDArray[np.float32]:
        """(Q,) score of the first person; -inf where nobody was found."""
        return self.scores[:, 0]


def person_scores(scores: NDArray[np.float32], people: NDArray[np.int64]) -> RankedPeople:
    """Make people of faces: rank the people of a search's hits by the scores of their two best faces.

    A person's score is ``0.75 * best + 0.25 * second``. Where only one of the person's faces was found, the query's
    lowest hit stands for the second: another face of that person scores at most that. The second face corroborates
    the first, which one look-alike photo, or one with a wrong name, cannot; its small weight keeps people with a
    single photo findable. Measured against the best face alone, means and sums of several and log-sum-exp; see the
    documentation on open sets.

    As the lowest hit counts, scores that are compared with one threshold have to come from searches with the same k.
    From 20 to 300 it hardly matters which.

    Args:
        scores: (Q, k) float32 of each query's hits in any order; -inf is no hit.
        people: (Q, k) integers, who each hit shows; -1 for a face without a name, which is no person but is a hit.

    Returns:
        The people, (Q, k) as there are at most as many as hits.

    Raises:
        ConfigError: arrays of other shapes or dtypes, without a column, NaN, or a person below -1.
    """
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float32 or scores.ndim != 2 or not scores.shape[1]:
        raise ConfigError("scores must be a (Q, k) float32 array with at least one column, as a search returns them")
    if not isinstance(people, np.ndarray) or people.dtype.kind not in "iu" or people.shape != scores.shape:
        raise ConfigError(f"people must be {scores.shape} integers, one for each hit, -1 for a face without a name")
    if np.isnan(scores).any():
        raise ConfigError("scores hold NaN; leave such queries out")
    if people.size and not NOBODY <= int(people.min()) <= int(people.max()) <= np.iinfo(np.int64).max:
        raise ConfigError("people must be numbers from 0, or -1 for a face without a name")
    num_queries, num_hits = scores.shape
    lowest = np.where(scores > -np.inf, scores, np.inf).min(axis=1)  # (Q,)
    who = np.where(scores > -np.inf, people.astype(np.int64), NOBODY)  # (Q, k)
    # Person by person, each one's best face first: the person's score stands at that place, -inf at all others.
    order = np.lexsort((-scores, who), axis=1)
    who = np.take_along_axis(who, order, axis=1)
    ranked = np.take_along_axis(scores, order, axis=1)
    again = np.zeros((num_queries, num_hits + 1), dtype=bool)  # whether a hit shows the same person as the one before
    again[:, 1:-1] = who[:, 1:] == who[:, :-1]
    second = np.repeat(lowest[:, None], num_hits, axis=1)
    second[:, :-1] = np.where(again[:, 1:-1], ranked[:, 1:], second[:, :-1])
    first = ~again[:, :-1] & (who != NOBODY)
    weight = np.float32(BEST_WEIGHT)
    combined = np.full_like(ranked, -np.inf)
    combined[first] = weight * ranked[first] + (1 - weight) * second[first]
    who[~first] = NOBODY
    order = np.lexsort((who, -combined, ~first), axis=1)
    return RankedPeople(np.take_along_axis(combined, order, axis=1), np.take_along_axis(who, order, axis=1))


@dataclass(frozen=True, eq=False)
class VerificationReport:
    """What :func:`verification` found."""

    tmr_at: dict[float, float | None]
    """FMR 0.1, 0.01, 0.001 and 0.0001 -> highest TMR at a threshold whose FMR is no larger; None: too few impostors."""
    threshold_at: dict[float, float | None]
    """The lowest such threshold."""
    equal_error_rate: float
    """Where FMR and 1 - TMR cross, between thresholds by a straight line."""
    accuracy: float | None
    """Mean over folds of the share of pairs decided rightly, by the threshold best on the others; None: no folds."""
    accuracy_standard_error: float | None
    """Standard deviation over folds, divided by the root of their number, as LFW's results are reported."""
    num_genuine: int
    num_impostor: int
    fmr: NDArray[np.float64] = field(repr=False)
    """(L,) levels, 20 for each decade up to 1, from the lowest that the impostor pairs can show."""
    tmr: NDArray[np.float64] = field(repr=False)
    """(L,) highest TMR at a threshold whose FMR is at most the level: the ROC."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready types; keys of the @ metrics are strings."""
        return _document(self)


def verification(scores: Scores, same: NDArray[np.bool_], folds: Labels | None = None) -> VerificationReport:
    """Measure how well scores tell pairs of one person from pairs of two.

    Args:
        scores: (P,) floating, of the pairs.
        same: (P,) bool, whether a pair shows one person.
        folds: (P,) the fold of each pair, for the accuracy of the LFW protocol (Huang et al. 2007): 10 folds of 300
            genuine and 300 impostor pairs.

    Raises:
        ConfigError: arrays of other shapes or dtypes, NaN, or a single fold.
        DataError: no genuine or no impostor pair.
    """
    values = _check_scores(scores, "scores")
    if not isinstance(same, np.ndarray) or same.dtype != np.bool_ or same.shape != values.shape:
        raise ConfigError(f"same must be ({len(values)},) bool, one for each score")
    genuine, impostor = values[same], values[~same]
    if not genuine.size or not impostor.size:
        raise DataError(f"{genuine.size} genuine and {impostor.size} impostor pairs; verification needs both")
    accuracies = None if folds is None else _fold_accuracies(values, same, folds)
    false_matches = _Exceedance.of(impostor)
    true_matches = _Exceedance.of(genuine)
    levels = np.array([level for level in CURVE_LEVELS if false_matches.resolves(level)])
    at = {level: _threshold_if_resolved(false_matches, level) for level in FMR_LEVELS}
    return VerificationReport(
        tmr_at={level: None if bound is None else float(true_matches.share(bound)) for level, bound in at.items()},
        threshold_at=at,
        equal_error_rate=_equal_error_rate(false_matches, true_matches),
        accuracy=None if accuracies is None else float(accuracies.mean()),
        accuracy_standard_error=None if accuracies is None else float(accuracies.std() / math.sqrt(len(accuracies))),
        num_genuine=len(genuine),
        num_impostor=len(impostor),
        fmr=levels,
        tmr=np.array([true_matches.share(false_matches.lowest_threshold(level)) for level in levels]),
    )


@dataclass(frozen=True, eq=False)
class IdentificationReport:
    """What :func:`identification` found."""

    dir_at: dict[float, float | None]
    """FPIR 0.1, 0.01 and 0.001 -> detection and identification rate, the highest at a threshold whose FPIR is no
    larger; None: too few strangers."""
    threshold_at: dict[float, float | None]
    """The lowest such threshold."""
    rank_at: dict[int, float]
    """1, 5 and 10 -> share of enrolled people's faces whose person is among the first so many, whatever the score."""
    num_probes: int
    """Q, faces of enrolled people."""
    num_stranger_faces: int
    num_strangers: int
    """People that the stranger faces show; as many as faces if nobody said."""
    fpir: NDArray[np.float64] = field(repr=False)
    """(L,) levels, 20 for each decade up to 1, from the lowest that the strangers can show."""
    fnir: NDArray[np.float64] = field(repr=False)
    """(L,) lowest FNIR at a threshold whose FPIR is at most the level: the detection error curve."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready types; keys of the @ metrics are strings."""
        return _document(self)


def identification(
    probes: RankedPeople,
    probe_people: NDArray[np.integer[Any]],
    stranger_scores: Scores,
    stranger_people: Labels | None = None,
) -> IdentificationReport:
    """Measure open-set identification: enrolled people have to be named first and above a threshold, strangers below.

    Args:
        probes: people found for (Q,) faces of enrolled people; none of these faces is in the gallery itself.
        probe_people: (Q,) integers from 0, who they are.
        stranger_scores: (S,) floating, ``RankedPeople.best`` of faces of people who are not in the gallery, -inf where
            nobody was found.
        stranger_people: (S,) who they are. Each of them then counts alike, however many faces there are of one: the
            FPIR is that of a face drawn from a stranger drawn. Without it each face counts alike.

    Raises:
        ConfigError: arrays of other shapes or dtypes, or NaN.
        DataError: no probe or no stranger.
    """
    strangers = _check_scores(stranger_scores, "stranger_scores")
    wanted = np.asarray(probe_people)
    if wanted.shape != (len(probes.scores),) or wanted.dtype.kind not in "iu" or (wanted.size and wanted.min() < 0):
        raise ConfigError(f"probe_people must be ({len(probes.scores)},) integers from 0, one for each probe")
    if not wanted.size or not strangers.size:
        raise DataError(f"{wanted.size} probes and {strangers.size} stranger faces; identification needs both")
    right = probes.people == wanted[:, None]  # (Q, k), at most one in a row
    rank = np.where(right.any(axis=1), right.argmax(axis=1), NOT_FOUND)  # (Q,) from 0
    named = _Exceedance.of(np.where(rank == 0, probes.best, -np.inf))
    false_positives = _Exceedance.of(strangers, stranger_people)
    levels = np.array([level for level in CURVE_LEVELS if false_positives.resolves(level)])
    at = {level: _threshold_if_resolved(false_positives, level) for level in FPIR_LEVELS}
    detected = [float(named.share(false_positives.lowest_threshold(level))) for level in levels]
    return IdentificationReport(
        dir_at={level: None if bound is None else float(named.share(bound)) for level, bound in at.items()},
        threshold_at=at,
        rank_at={k: float((rank < k).mean()) for k in RANKS},
        num_probes=len(wanted),
        num_stranger_faces=len(strangers),
        num_strangers=false_positives.num_trials,
        fpir=levels,
        fnir=1.0 - np.array(detected),
    )


@dataclass(frozen=True)
class Calibration:
    """A threshold, and how sure it is."""

    threshold: float
    """Name a person whose score is at least this."""
    threshold_low: float
    threshold_high: float
    """Confidence interval of the threshold whose FPIR is exactly the one wanted; choose the high end to be on the safe
    side of it."""
    fpir: float
    """The FPIR wanted."""
    fpir_low: float
    fpir_high: float
    """Confidence interval of the FPIR that ``threshold`` has."""
    gallery_people: int
    """People in the gallery that the threshold is for."""
    num_strangers: int
    """People it was measured with."""
    num_faces: int
    """Their faces."""
    confidence: float
    """Of both intervals."""

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON-ready types."""
        return _document(self)


def calibrate(
    scores: Scores,
    people: Labels,
    fpir: float = 0.01,
    *,
    gallery_people: int,
    for_people: int | None = None,
    mutual: bool = False,
    confidence: float = 0.95,
) -> Calibration:
    """Find the threshold at which strangers are named at the rate wanted.

    Faces of one stranger resemble the same people, so only strangers are independent, and each counts alike: the rate
    is that of a face drawn from a stranger drawn. Both intervals are exact binomial ones (Clopper and Pearson 1934, and
    the order statistics that invert them) with the number of strangers as trials. With one face each that is exact;
    with several a stranger's share of faces is a number between 0 and 1, which varies less than a yes or no of the same
    mean, so that the intervals are wide enough. A bootstrap over strangers is not: at 1 % of 400 strangers it resamples
    four events, and its upper end cannot exceed the highest score seen.

    The rate grows with the gallery: a stranger is named when any person reaches the threshold. For a gallery of N
    people where n were measured, the rate is taken as ``1 - (1 - rate_n) ** (N / n)``, exact where people's scores are
    independent, and within the error of measurement on LFW from 125 people to 4,000.

    Args:
        scores: (S,) floating, best person's score of each stranger face; -inf where nobody was found.
        people: (S,) which stranger each face shows: integers or strings.
        fpir: the rate wanted, between 0 and 1.
        gallery_people: n, people in the gallery that was searched.
        for_people: N, people in the gallery the threshold is for; n without it.
        mutual: the strangers are the gallery's own people, each searched in the gallery without them
            (:func:`leave_one_person_out`). Two look-alikes then find each other and are one event, not two, so the
            intervals are those of half as many strangers.
        confidence: of the intervals, between 0 and 1.

    Raises:
        ConfigError: arrays of other shapes or dtypes, NaN, or a number out of range.
        DataError: too few strangers. The interval of the threshold must have an upper end: it is certain enough that
            among so many strangers one of those who would be named is seen. For 1 % at 95 % that takes 368.
    """
    values = _check_scores(scores, "scores")
    for name, share in (("fpir", fpir), ("confidence", confidence)):
        if not 0.0 < share < 1.0:
            raise ConfigError(f"{name} is {share}; it must lie between 0 and 1")
    wanted_people = gallery_people if for_people is None else for_people
    if gallery_people < 1 or wanted_people < 1:
        raise ConfigError(f"gallery_people is {gallery_people}, for_people {for_people}; both must be at least 1")
    strangers = _Exceedance.of(values, people)
    growth = wanted_people / gallery_people
    measured = -math.expm1(math.log1p(-fpir) / growth)  # the rate wanted, at the size measured
    tail = (1.0 - confidence) / 2
    trials = strangers.num_trials // (2 if mutual else 1)
    needed = math.ceil(math.log(tail) * growth / math.log1p(-fpir))
    if trials < needed:
        raise DataError(
            f"{strangers.num_trials} strangers cannot show a rate of {measured:.3g} (an FPIR of {fpir:g} in a gallery "
            f"of {wanted_people} people, measured in one of {gallery_people}); it takes "
            f"{needed * (2 if mutual else 1)}, or a higher FPIR"
        )
    if not strangers.bounds.size:
        raise DataError(
            "no search found a person, so there is no score to set a threshold by; put people in the gallery"
        )
    # The threshold is the lowest score that strangers may have, not the next above the first they may not have: of n
    # scores the j-th highest is exceeded at a rate of j / (n + 1) on average.
    threshold = strangers.bound(int(np.count_nonzero(_at_most(strangers.shares, measured))) - 1)
    above = np.concatenate([[0.0], strangers.shares[:-1]])  # (T,) share strictly above each bound
    too_few, _ = _binomial_tails(above, trials, measured)
    _, too_many = _binomial_tails(strangers.shares, trials, measured)
    rate_low, rate_high = _binomial_interval(float(strangers.share(threshold)), trials, tail)
    return Calibration(
        threshold=threshold,
        threshold_low=strangers.bound(int(np.count_nonzero(too_many > tail))),
        threshold_high=strangers.bound(int(np.count_nonzero(_at_most(too_few, tail))) - 1),
        fpir=fpir,
        fpir_low=_at_size(rate_low, growth),
        fpir_high=_at_size(rate_high, growth),
        gallery_people=wanted_people,
        num_strangers=strangers.num_trials,
        num_faces=len(values),
        confidence=confidence,
    )


def leave_one_person_out(
    search: Search,
    tables: NDArray[np.float32],
    people: NDArray[np.integer[Any]],
    gallery_ids: NDArray[np.integer[Any]],
    gallery_people: NDArray[np.integer[Any]],
    k: int = 100,
) -> NDArray[np.float32]:
    """Make strangers of a gallery's own people: search faces in the gallery as if it had nothing of their person.

    The search asks for as many hits more as the person has faces, so that what is left are the k hits that a stranger
    would get. The scores go to :func:`calibrate`, with ``people``, ``mutual=True`` and one person fewer than the
    gallery has.

    Args:
        search: ``CodeIndex.search`` of the index that holds the gallery, or one like it.
        tables: (Q, M, K) float32 of faces of people in the gallery: all of it, or a sample.
        people: (Q,) integers from 0, who they are.
        gallery_ids: (N,) ids of the gallery's faces in the index.
        gallery_people: (N,) integers, who they are, -1 for nobody. Hits of other ids have no name either.
        k: number of hits, the same as in use.

    Returns:
        (Q,) float32 score of the best other person, -inf where none was found.

    Raises:
        ConfigError: arrays of other shapes or dtypes, an id that occurs twice, or a k below 1.
    """
    whose, ids, named = np.asarray(people), np.asarray(gallery_ids), np.asarray(gallery_people)
    for name, array, length in (
        ("people", whose, len(tables)),
        ("gallery_ids", ids, len(ids)),
        ("gallery_people", named, len(ids)),
    ):
        if array.shape != (length,) or (array.dtype.kind not in "iu" and length):
            raise ConfigError(f"{name} must be ({length},) integers, not {array.shape} {array.dtype}")
    if k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    if whose.size and whose.min() < 0:
        raise ConfigError("people holds a number below 0; leave out faces that have no name")
    order = np.argsort(ids, kind="stable")
    ids, named = ids[order].astype(np.int64), named[order].astype(np.int64)
    if (ids[1:] == ids[:-1]).any():
        raise ConfigError("gallery_ids holds an id twice; give each face of the gallery once")
    _, number, counts = np.unique(np.concatenate([whose, named]), return_inverse=True, return_counts=True)
    faces = (counts - np.bincount(number[: len(whose)], minlength=len(counts)))[number[: len(whose)]]  # (Q,) own
    best = np.full(len(tables), -np.inf, dtype=np.float32)
    by_faces = np.argsort(faces, kind="stable")  # so that few queries search as deep as the person of most faces needs
    for start in range(0, len(tables), SEARCH_ROWS):
        rows = by_faces[start : start + SEARCH_ROWS]
        scores, hits = search(tables[rows], k=k + int(faces[rows[-1]]))  # (rows, k + own)
        place = np.minimum(np.searchsorted(ids, hits), max(len(ids) - 1, 0))
        found = np.where(ids[place] == hits, named[place], NOBODY) if len(ids) else np.full_like(hits, NOBODY)
        own = found == whose[rows, None]
        others = np.argsort(own, axis=1, kind="stable")[:, :k]  # in the order of the search
        scores = np.take_along_axis(np.where(own, np.float32(-np.inf), scores), others, axis=1)
        best[rows] = person_scores(scores, np.take_along_axis(found, others, axis=1)).best
    return best


@dataclass(frozen=True, eq=False)
class _Exceedance:
    """What share of trials scores at least so much, as a staircase."""

    bounds: Scores
    """(T,) the different scores, highest first. Never -inf: who found nobody exceeds nothing."""
    shares: NDArray[np.float64]
    """(T,) share of scores that are at least the bound, ascending."""
    num_trials: int

    @classmethod
    def of(cls, scores: Scores, people: Labels | None = None) -> _Exceedance:
        """Count (S,) scores, each alike, or each of the people alike."""
        if people is None:
            num_trials = len(scores)
            weights = np.ones(num_trials)
        else:
            if np.shape(people) != scores.shape:
                raise ConfigError(f"people has shape {np.shape(people)}; give one for each of {len(scores)} scores")
            _, number, counts = np.unique(people, return_inverse=True, return_counts=True)
            num_trials = len(counts)
            weights = 1.0 / counts[number]
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of equal scores
        last = last[ranked[last] > -np.inf]
        return cls(ranked[last], np.cumsum(weights[order])[last] / max(num_trials, 1), num_trials)

    def share(self, bound: float | NDArray[Any]) -> NDArray[np.float64]:
        """Return what share scores at least the bound, of the shape of the bound."""
        return np.concatenate([[0.0], self.shares])[np.searchsorted(-self.bounds, -np.asarray(bound), side="right")]

    def bound(self, number: int) -> float:
        """Return a bound; before the first one that nobody reaches, after the last one that everybody does."""
        if number < 0:
            return float(np.nextafter(self.bounds[0], self.bounds.dtype.type(np.inf)))
        return float(self.bounds[number] if number < len(self.bounds) else np.finfo(self.bounds.dtype).min)

    def lowest_threshold(self, level: float) -> float:
        """Return the lowest number that at most this share reaches."""
        allowed = int(np.count_nonzero(_at_most(self.shares, level)))
        if allowed == len(self.bounds):
            return self.bound(allowed)
        return float(np.nextafter(self.bounds[allowed], self.bounds.dtype.type(np.inf)))

    def resolves(self, level: float) -> bool:
        """Tell whether there are enough trials for a share that small."""
        return self.num_trials * level >= TRIALS_PER_ERROR * (1 - _ROUNDING)


def _threshold_if_resolved(trials: _Exceedance, level: float) -> float | None:
    return trials.lowest_threshold(level) if trials.resolves(level) else None


def _at_most(shares: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    return shares <= level * (1 + _ROUNDING)


def _equal_error_rate(false_matches: _Exceedance, true_matches: _Exceedance) -> float:
    thresholds = np.unique(np.concatenate([false_matches.bounds, true_matches.bounds]))[::-1]
    fmr = np.concatenate([[0.0], false_matches.share(thresholds)])
    fnmr = np.concatenate([[1.0], 1.0 - true_matches.share(thresholds)])
    excess = fmr - fnmr  # from -1 up to 1
    after = int(np.argmax(excess >= 0))
    part = excess[after - 1] / (excess[after - 1] - excess[after])
    return float(fmr[after - 1] + part * (fmr[after] - fmr[after - 1]))


def _fold_accuracies(scores: Scores, same: NDArray[np.bool_], folds: Labels) -> NDArray[np.float64]:
    """Return the (folds,) accuracies, each at the threshold that is best on the other folds."""
    if np.shape(folds) != scores.shape:
        raise ConfigError(f"folds has shape {np.shape(folds)}; give one for each of {len(scores)} pairs")
    names = np.unique(folds)
    if len(names) < 2:
        raise ConfigError("all pairs are of one fold; the threshold is chosen on others, so there must be two or more")
    held_out = [np.asarray(folds) == name for name in names]
    return np.array(
        [_accuracy(scores[fold], same[fold], _best_threshold(scores[~fold], same[~fold])) for fold in held_out]
    )


def _accuracy(scores: Scores, same: NDArray[np.bool_], threshold: float) -> float:
    return float(((scores >= threshold) == same).mean())


def _best_threshold(scores: Scores, same: NDArray[np.bool_]) -> float:
    """Return the threshold of most right decisions, the highest of several, half-way between two scores."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    last = np.append(ranked[1:] != ranked[:-1], True)  # of equal scores
    # Accepting so far gains a right decision for each genuine pair and loses one for each impostor.
    gain = np.concatenate([[0], np.cumsum(np.where(same[order], 1, -1))[last]])
    between = np.concatenate([[np.inf], ranked[last], [-np.inf]])
    cut = int(np.argmax(gain))
    return float((between[cut] + between[cut + 1]) / 2)


def _binomial_tails(
    shares: NDArray[np.float64], trials: int, rate: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how likely (T,) shares of the trials are, or fewer, and the same or more, if the rate is this."""
    from scipy.special import betainc  # noqa: PLC0415 (slow to load)

    # The binomial distribution as a beta distribution takes shares that are no whole number of trials. Where its first
    # parameter would be 0, the chance is 1.
    seen = np.clip(shares, 0.0, 1.0) * trials
    fewer = np.where(seen < trials, betainc(np.maximum(trials - seen, _ROUNDING), seen + 1, 1 - rate), 1.0)
    more = np.where(seen > 0, betainc(np.maximum(seen, _ROUNDING), trials - seen + 1, rate), 1.0)
    return fewer, more


def _binomial_interval(share: float, trials: int, tail: float) -> tuple[float, float]:
    """Return the Clopper-Pearson interval: the rates at which a tail beyond this share has the probability given."""
    from scipy.special import betaincinv  # noqa: PLC0415 (slow to load)

    seen = min(share, 1.0) * trials
    low = float(betaincinv(seen, trials - seen + 1, tail)) if seen > 0 else 0.0
    high = float(betaincinv(seen + 1, trials - seen, 1 - tail)) if seen < trials else 1.0
    return low, high


def _at_size(rate: float, growth: float) -> float:
    """Return the rate in a gallery so many times as large."""
    return 1.0 if rate == 1.0 else -math.expm1(math.log1p(-rate) * growth)


def _check_scores(scores: Scores, name: str) -> Scores:
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or scores.ndim != 1:
        raise ConfigError(f"{name} must be a one-dimensional array of floats")
    if np.isnan(scores).any() or (scores == np.inf).any():
        raise ConfigError(f"{name} holds NaN or +inf; only -inf, for nobody found, may stand for a score")
    return scores


def _document(report: Any) -> dict[str, Any]:
    def ready(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): entry for key, entry in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    return {one.name: ready(getattr(report, one.name)) for one in fields(report)}
