"""Recipe of VGGFace2: the subset that is trained on, and people held out for models trained on it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from opqn.data.recipes._draw import by_person, divide, draw_queries
from opqn.data.recipes._layout import Layout, lay_out, parent
from opqn.data.recipes._source import open_source
from opqn.data.recipes.cross_set import names_by_class
from opqn.data.recipes.faces import from_plan
from opqn.data.recipes.recipe import Counts, Plan, Recipe, Request
from opqn.data.splits import Split, person_of
from opqn.errors import CorruptFileError, DataError

_NAMES: Final = "identity_meta.csv"


def plan_vggface2(request: Request, *, people: int = 2_787, queries: int = 50, held_out: int = 500) -> Plan:
    """Plan VGGFace2.

    ``people`` are drawn by the seed from those of the training part with at least twice as many images as queries.
    Held out are the people of the test part or, without it, the next ``held_out`` of the same draw (fewer, a fifth, of
    an incomplete set). ``queries`` of each ask. A source whose ``train`` and ``test`` folders hold the same people is
    the published subset, and is taken as it is.
    """
    layout = lay_out(open_source(request.source), parent)
    found = (len(layout.people), len(layout.placed))
    if layout.is_divided:
        return _plan_divided(layout, request)
    _, tested = layout.parts()
    images = by_person(layout.targets)
    able = [name for name in images if name not in tested and len(images[name]) >= 2 * queries]
    order = [able[i] for i in np.random.default_rng(request.seed).permutation(len(able))]
    spare = 0 if tested else min(held_out, len(able) // 5)
    num_known = min(people, len(able) - spare)
    if num_known < 2:
        raise DataError(
            f"{len(able)} people of VGGFace2 have {2 * queries} images or more; at least 2 are needed to train on, so "
            "give the folder or archive of the training part"
        )
    known = frozenset(order[:num_known])
    strangers = tested or frozenset(order[num_known : num_known + held_out])
    layout = layout.only(lambda image: person_of(image.target) in known | strangers)

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        left = by_person(kept)
        train = draw_queries({name: left[name] for name in left if name in known}, lambda _p, _n: queries, request.seed)
        test = draw_queries(
            {name: left[name] for name in left if name in strangers}, lambda _p, _n: queries, request.seed
        )
        made = {"seen": Split("vggface2-seen", "seen", request.seed, train.rest, train.rest, train.query)}
        if test.query:
            made["unseen"] = Split("vggface2-unseen", "unseen", request.seed, train.rest, test.rest, test.query)
        return made

    files = _people_file(_names_beside(request.source), {"train": known, "held out": strangers})
    return Plan(
        targets=layout.targets,
        read=layout.read,
        draw=splits,
        num_bytes=layout.num_bytes,
        skipped=layout.skipped,
        notes=(
            "The list of the paper's people is not published, so figures do not compare exactly.",
            f"{num_known:,} people were drawn by the seed from {len(able):,} with {2 * queries} images or more.",
            f"Held out: {len(strangers):,} people of the {'test part' if tested else 'training part'}.",
            f"Queries: {queries} images a person, drawn by the seed.",
            "people.csv has the people's names; leave them out of other sets with --known-people."
            if files
            else f"Without {_NAMES} beside the source, people have no names, and other sets cannot leave them out.",
        ),
        files=files,
        found=found,
    )


def _plan_divided(layout: Layout, request: Request) -> Plan:
    asks = {image.target for image in layout.placed if image.part == "test"}

    def splits(kept: tuple[str, ...]) -> dict[str, Split]:
        rest, query = divide(kept, asks)
        return {"seen": Split("vggface2-seen", "seen", request.seed, rest, rest, query)}

    return Plan(
        targets=layout.targets,
        read=layout.read,
        draw=splits,
        num_bytes=layout.num_bytes,
        skipped=layout.skipped,
        notes=(
            "The source is divided into training and test images of the same people already; the split keeps that.",
        ),
    )


def _names_beside(source: Iterable[Path]) -> dict[str, str]:
    for path in source:
        folder = path if path.is_dir() else path.parent
        for file in (folder / _NAMES, folder / "meta" / _NAMES, folder / "data" / _NAMES):
            try:
                return names_by_class(file.read_text(encoding="utf-8-sig"))
            except OSError:
                continue
            except UnicodeDecodeError as error:
                raise CorruptFileError(f"{file} is not UTF-8 text; download it again or remove it") from error
    return {}


def _people_file(names: Mapping[str, str], roles: Mapping[str, frozenset[str]]) -> dict[str, bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", "name", "role"))
    rows = [(person, names[person], role) for role, people in roles.items() for person in people if person in names]
    writer.writerows(sorted(rows))
    return {"people.csv": text.getvalue().encode()} if rows else {}


VGGFACE2: Final = Recipe(
    name="vggface2",
    title="VGGFace2, a subset",
    url="https://www.robots.ox.ac.uk/~vgg/data/vgg_face2/ (see there whether and how it is given out)",
    terms=(
        "for research, as reported by its authors; the pictures belong to those who published them. Q. Cao, L. Shen, "
        "W. Xie, O. M. Parkhi, A. Zisserman: VGGFace2: a dataset for recognising faces across pose and age. FG 2018."
    ),
    counts=(
        Counts(8_631, None, "the training part"),
        Counts(9_131, None, "training and test part"),
        Counts(2_787, 849_012, "the paper's subset"),
    ),
    protocol=(
        "2,787 people: 709,662 images train and are the gallery, 139,350 ask, 50 a person (Zhang, Zhe, Yan 2023). A "
        "model trained on it is also tested on held-out people and on FaceScrub, CFW-60K and YouTube Faces."
    ),
    run=from_plan(plan_vggface2),
)
