"""Made-up records of a comparison, as the runner stores them, and the suite that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np

METHODS = ("opqn", "opqn-plus", "cosface", "csq", "dcdh", "dcwh", "ddqh", "dpah", "dpq", "gpq", "opqn-l2q")
COSFACE_ROWS = tuple(f"cosface + {kind}" for kind in ("PQ", "OPQ", "ITQ", "LSH"))


class Entry(NamedTuple):
    label: str


@dataclass(frozen=True)
class Suite:
    name: str = "faces"
    entries: tuple[Entry, ...] = tuple(map(Entry, METHODS))
    bits: tuple[int, ...] = (24, 36, 48, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
    footnotes: dict[str, str] = field(default_factory=dict)


def suite_of(*labels, **fields):
    return Suite(entries=tuple(map(Entry, labels)), **fields)


def report(quality):
    """Make a report of this mAP whose curve falls the faster the lower it is."""
    recall = np.arange(101) / 100
    return {
        "mean_average_precision": quality,
        "num_queries": 1600,
        "num_unmatched": 0,
        "num_gallery": 6400,
        "tie_share": 0.0,
        "precision_at": {
            "1": min(1.0, 1.4 * quality),
            "5": quality,
            "10": 0.9 * quality,
            "50": 0.5 * quality,
        },
        "recall_at": {"1": 0.1},
        "cmc": {"1": 0.5},
        "recall_levels": recall.tolist(),
        "precision": (min(1.0, 1.6 * quality) * (1 - recall) ** (1.2 - quality)).tolist(),
    }


def row(name, bits, seen, unseen=None):
    protocols = {"seen": report(seen)} | ({} if unseen is None else {"unseen": report(unseen)})
    return {
        "name": name,
        "bits": bits,
        "bytes": -(-bits // 8),
        "shape": [bits // 8, 256],
        "is_binary": False,
        "encode_ms": 0.9,
        "search_us": 310.0,
        "protocols": protocols,
    }


def record(entry="opqn", bits=24, seed=0, *, data="imfdb", seen=0.4, unseen=0.3, rows=None, **changes):
    """Make a record; ``unseen`` None leaves that protocol out."""
    rows = [row(entry, bits, seen, unseen)] if rows is None else rows
    names = ("seen",) if unseen is None else ("seen", "unseen")
    digits = {"seen": "5ee0", "unseen": "0bad"}
    splits = {
        name: {
            "hash": digits[name] + f"{seed:02d}{sum(data.encode()):04d}" + "f" * 54,
            "num_train": 6400,
            "num_gallery": 6400 if name == "seen" else 1300 + seed,
            "num_queries": 1600,
            "num_people": 80 if name == "seen" else 20,
        }
        for name in names
    }
    made = {
        "version": 1,
        "key": f"{data}-{entry}-{bits}-{seed}",
        "suite": "faces",
        "data": data,
        "entry": entry,
        "bits": None if entry == "cosface" else bits,
        "seed": seed,
        "settings": {},
        "versions": {"opqn": "0.9.0", "torch": "2.8.0", "numpy": "2.3.0"},
        "cpu": "2 cores of a made-up machine",
        "device": "cpu",
        "splits": splits,
        "train_seconds": 93.125,
        "skipped": 0,
        "features": dict.fromkeys(names, 0.5),
        "rows": rows,
    }
    return made | changes


def comparison(suite, data=("imfdb", "fashion"), seed=0, without_unseen=()):
    """Make every record of a suite; OPQN is the best by a little."""
    rng = np.random.default_rng(seed)

    def figures(name, place, bits, worse=0.0):
        level = 0.5 - 0.022 * place - worse - 2.5 / bits
        seen, unseen = level + 0.15 + rng.normal(0, 0.012), level - 0.05 + rng.normal(0, 0.012)
        return float(seen), None if name in without_unseen else float(unseen)

    made = []
    for name, draw, (place, entry) in product(data, suite.seeds, enumerate(suite.entries)):
        if entry.label == "cosface":
            rows = [
                row(kind, bits, *figures(name, place, bits, 0.03 * number))
                for bits in suite.bits
                for number, kind in enumerate(COSFACE_ROWS)
            ]
            unseen = None if name in without_unseen else 0.3
            made.append(record("cosface", seed=draw, data=name, rows=rows, unseen=unseen))
        else:
            for bits in suite.bits:
                seen, unseen = figures(name, place, bits)
                made.append(record(entry.label, bits, draw, data=name, seen=seen, unseen=unseen))
    return made
