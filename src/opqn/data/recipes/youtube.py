"""Recipe of YouTube Faces: frames of videos."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Final

from opqn.data.recipes._draw import spread_queries
from opqn.data.recipes._layout import grandparent, lay_out, natural_key, parent, spread
from opqn.data.recipes._source import open_source
from opqn.data.recipes.faces import face_plan, from_plan
from opqn.data.recipes.recipe import Counts, Plan, Recipe, Request
from opqn.data.splits import person_of


def plan_youtube(request: Request, *, train: int = 40, queries: int = 5) -> Plan:
    """Plan YouTube Faces: ``train + queries`` frames a person, evenly spaced over all of the person's videos.

    Frames come as PERSON/VIDEO/FRAME, from ``aligned_images_DB`` if it is there, else from ``frame_images_DB``. The
    queries are evenly spaced among the frames taken. A source that is divided into training and test frames in folders
    of people is taken as it is.
    """
    source = open_source(request.source)
    layout = lay_out(source, parent)
    if not layout.is_divided:
        layout = lay_out(source, grandparent, prefer=("aligned_images_DB", "frame_images_DB"))
        frames: dict[str, list[str]] = defaultdict(list)
        for target in layout.targets:
            frames[person_of(target)].append(target)
        taken: set[str] = set()
        for paths in frames.values():
            in_time = sorted(paths, key=natural_key)
            taken.update(in_time[i] for i in spread(train + queries, len(in_time)))
        layout = layout.only(lambda image: image.target in taken)
    note = (
        f"Which frames the paper took is not known: {train + queries} a person, evenly spaced over the videos in their "
        f"order, and of these every {(train + queries) // queries}th asks. Neighbours of a query are trained on."
    )
    return face_plan("youtube-faces", layout, request, partial(spread_queries, count=queries), note)


YOUTUBE_FACES: Final = Recipe(
    name="youtube-faces",
    title="YouTube Faces",
    url="https://www.cs.tau.ac.il/~wolf/ytfaces/ (a form gives the password)",
    terms=(
        "for research, as reported there; the videos belong to those who published them. L. Wolf, T. Hassner, I. Maoz: "
        "Face recognition in unconstrained videos with matched background similarity. CVPR 2011."
    ),
    counts=(Counts(1_595, 71_775, "45 frames a person"),),
    protocol=(
        "40 frames of each of 1,595 people train and are the gallery, 5 ask: 63,800 and 7,975 (Zhang, Zhe, Yan 2023)."
    ),
    run=from_plan(plan_youtube),
    takes_known_people=True,
)
