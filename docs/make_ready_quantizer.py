"""Make the quantizer for SFace vectors that comes with opqn, and the thresholds beside it.

Run `python docs/make_ready_quantizer.py FACES.npz` with what `opqn embed` wrote of Labeled Faces in the Wild. The
quantizer is fitted on one half of the people (seed 0). The other half, which it never saw, tells at which score
strangers are named how often: everyone is searched in a gallery of all the others.
"""
# ruff: noqa: INP001 (a script, not part of a package)

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import opqn
from opqn.bench.vectors import Vectors, halves
from opqn.data.vectors import load_vectors
from opqn.encoders import FaceEncoder
from opqn.estimator import OPQNQuantizer
from opqn.open_set import leave_one_person_out

FOLDER = Path(opqn.__file__).parent / "weights" / "sface-64"
NUM_RATES = 40


def main() -> None:
    """Write the folder."""
    given = load_vectors(Path(sys.argv[1]))
    if given.people is None:
        sys.exit("the vectors have no people")
    people = np.unique(given.people, return_inverse=True)[1]
    first, second = halves(Vectors(given.vectors, people), 0)
    quantizer = OPQNQuantizer(num_bits=64, random_state=0).fit(first.vectors, first.people)
    quantizer.training_facts_ |= {
        "data": "SFace vectors of one half of the people in Labeled Faces in the Wild (Huang et al. 2007), seed 0",
        "made by": "docs/make_ready_quantizer.py",
    }
    card = FOLDER / "README.md"  # which tells more than `save` knows
    text = card.read_text(encoding="utf-8") if card.exists() else None
    quantizer.save(FOLDER)
    if text is not None:
        card.write_text(text, encoding="utf-8")
    text = json.dumps(thresholds(quantizer, second), indent=1) + "\n"
    FOLDER.with_name("sface-64-thresholds.json").write_text(text, encoding="utf-8")


def thresholds(quantizer: OPQNQuantizer, strangers: Vectors) -> dict[str, object]:
    """Measure at which score what share of strangers is named, each person counting alike."""
    index = opqn.CodeIndex(quantizer.num_books, quantizer.num_words)
    ids = index.add(quantizer.encode(strangers.vectors))
    tables = quantizer.lookup_tables(strangers.vectors)
    best = leave_one_person_out(index.search, tables, strangers.people, ids, strangers.people)
    num_people = len(np.unique(strangers.people))
    weights = 1 / np.bincount(strangers.people)[strangers.people] / num_people
    order = np.argsort(-best)
    named = np.cumsum(weights[order])  # share of strangers at or above each score
    # Two look-alikes name each other, so half as many people count; a rate takes three of them to be seen.
    rates = np.geomspace(3 / (num_people / 2), 0.9, NUM_RATES)
    found = best[order][np.searchsorted(named, rates)]
    return {
        "encoders": [quantizer.fingerprint, FaceEncoder(quantizer).fingerprint],
        "num_people": num_people - 1,
        "rates": [round(float(rate), 6) for rate in rates],
        "thresholds": [round(float(score), 4) for score in found],
    }


if __name__ == "__main__":
    main()
