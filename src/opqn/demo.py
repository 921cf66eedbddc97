"""``opqn demo``: learn from the ORL faces, then find people that were never trained on, and write a page about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opqn._files import atomic_write_bytes
from opqn._version import __version__
from opqn.baselines.product_quantization import ProductQuantizer
from opqn.config import load_settings
from opqn.data.codes import CodeSet
from opqn.data.orl import prepare_orl
from opqn.data.splits import Split, person_of
from opqn.evaluation import EvaluationReport, evaluate, evaluate_features
from opqn.index import CodeIndex
from opqn.model import OPQN
from opqn.protocols import ImageFeatures, image_features
from opqn.report import Hit, Page, SheetRow, codeword_use, contact_sheet, percent, precision_recall_svg, training_curve
from opqn.training import Progress, TrainingInterruptedError, TrainingResult, train

NUM_BITS: Final = 48
# Books x words of 48 bits: the model's own layout, and the paper's, which suits PQ better.
BASELINE_LAYOUTS: Final = ((16, 8), (8, 64))
SHEET_QUERIES: Final = 6
SHEET_HITS: Final = 8
K: Final = (1, 5, 10)

Reports = Mapping[str, EvaluationReport]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    seen: Reports
    """By method, in the order of the table: the protocol of seen identities."""
    unseen: Reports
    feature_bits: int
    """Size of a face's uncompressed features, which are float32."""
    seconds: float
    page: Path
    facts: Mapping[str, str | int | float]

    def rows(self) -> list[tuple[str, ...]]:
        """Table rows: method, bits, then mAP, precision@1 and precision@5 of unseen and of seen people."""
        return [
            (
                name,
                f"{self.feature_bits:,}" if name == UNCOMPRESSED else str(NUM_BITS),
                *(
                    percent(value) or ""
                    for report in (self.unseen[name], self.seen[name])
                    for value in (report.mean_average_precision, report.precision_at[1], report.precision_at[5])
                ),
            )
            for name in self.unseen
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "seen": {name: report.to_dict() for name, report in self.seen.items()},
            "unseen": {name: report.to_dict() for name, report in self.unseen.items()},
            "seconds": self.seconds,
            "report": str(self.page),
            "facts": dict(self.facts),
        }


COLUMNS: Final = ("method", "bits", "unseen mAP", "P@1", "P@5", "seen mAP", "P@1", "P@5")
UNCOMPRESSED: Final = "uncompressed"


def run_demo(
    out: Path,
    seed: int = 0,
    on_stage: Callable[[str], None] = print,
    on_progress: Callable[[Progress], None] | None = None,
) -> DemoResult:
    """Train on ORL, evaluate on seen and unseen people beside FAISS PQ and OPQ, search, and write ``out/report.html``.

    A run that was interrupted goes on where it stopped.

    Args:
        out: folder for images, model, codes and report.
        seed: of the split, the training and the baselines.
        on_stage: told what begins.
        on_progress: told how the training goes.

    Raises:
        OpqnError: a package of the extra ``demo`` is missing, or the disk is full.
        TrainingInterruptedError: asked to stop; the same call goes on.
    """
    began = time.monotonic()
    on_stage("preparing the ORL faces")
    prepared = prepare_orl(out / "orl", seed=seed)
    splits = {
        name: Split.load(path, prepared.root) for name, path in (("seen", prepared.seen), ("unseen", prepared.unseen))
    }
    settings = load_settings("orl", num_bits=NUM_BITS, overrides=[f"train.seed={seed}"])
    on_stage(f"training on {len(splits['seen'].train)} images of people to be seen again")
    run = out / "training"
    try:
        result = train(settings, prepared.root, splits["seen"], run, resume=True, on_progress=on_progress)
    except TrainingInterruptedError as error:
        raise TrainingInterruptedError(f"stopped; what was learned is in {run}, the same command goes on") from error
    model = result.model

    on_stage("encoding, and fitting FAISS PQ and OPQ to the same features")
    baselines = _fit_baselines(image_features(model, prepared.root, splits["seen"].train), seed)
    reports: dict[str, Reports] = {}
    sheets: dict[str, Image.Image] = {}
    for name, split in splits.items():
        gallery = image_features(model, prepared.root, split.gallery)
        query = image_features(model, prepared.root, split.query)
        reports[name] = _compare(model, baselines, gallery, query)
        code_set = CodeSet(
            model.encode_features(gallery.features),
            model.num_words,
            gallery.paths,
            tuple(gallery.people().tolist()),
            model.fingerprint,
            str(prepared.root),
        )
        code_set.save(out / f"codes-{name}.safetensors")
        sheets[name] = _search_sheet(
            model, code_set, prepared.root, query, f"{name.capitalize()} people, {NUM_BITS} bits a face"
        )
        picture = BytesIO()
        sheets[name].save(picture, "PNG")
        atomic_write_bytes(out / f"search-{name}.png", picture.getvalue())

    on_stage("writing the report")
    page = out / "report.html"
    facts: dict[str, str | int | float] = {
        "command": "opqn demo",
        "seed": seed,
        "training images": len(splits["seen"].train),
        "people trained on": _count_people(splits["seen"]),
        "people never trained on": len({person_of(path) for path in splits["unseen"].query}),
        "split (seen)": splits["seen"].hash,
        "split (unseen)": splits["unseen"].hash,
        "query temperature": model.config.query_temperature,
        "best epoch, by validation": result.best_epoch,
        "training seconds": round(result.history[-1]["seconds"]),
        "model fingerprint": model.fingerprint,
        "versions": f"opqn {__version__}, torch {model.training_facts['torch_version']}, numpy {np.__version__}",
    }
    seconds = round(time.monotonic() - began, 1)
    demo = DemoResult(reports["seen"], reports["unseen"], 32 * model.config.feature_dim, seconds, page, facts)
    _write_page(demo, result, model, sheets)
    return demo


def _count_people(split: Split) -> int:
    return len({person_of(path) for path in split.train})


def _fit_baselines(train: ImageFeatures, seed: int) -> dict[str, ProductQuantizer]:
    features = train.features.numpy()
    return {
        f"FAISS {name} {books}x{words}": ProductQuantizer(books, words, rotation=rotation, seed=seed).fit(features)
        for name, rotation in (("OPQ", True), ("PQ", False))
        for books, words in BASELINE_LAYOUTS
    }


def _compare(
    model: OPQN, baselines: Mapping[str, ProductQuantizer], gallery: ImageFeatures, query: ImageFeatures
) -> Reports:
    people, query_people = gallery.people(), query.people()

    def of_codes(codes: NDArray[np.uint8], tables: NDArray[np.float32]) -> EvaluationReport:
        return evaluate(codes, people, tables, query_people, K)

    reports = {
        "OPQN": of_codes(model.encode_features(gallery.features), model.tables_of_features(query.features)),
        UNCOMPRESSED: evaluate_features(gallery.features.numpy(), people, query.features.numpy(), query_people, K),
    }
    for name, quantizer in baselines.items():
        reports[name] = of_codes(
            quantizer.encode(gallery.features.numpy()), quantizer.lookup_tables(query.features.numpy())
        )
    return reports


def _search_sheet(model: OPQN, code_set: CodeSet, root: Path, query: ImageFeatures, title: str) -> Image.Image:
    index = CodeIndex(code_set.num_books, code_set.num_words, "compact")
    index.add(code_set.codes)
    chosen = np.linspace(0, len(query.paths) - 1, SHEET_QUERIES).round().astype(int)  # spread over people, not picked
    scores, ids = index.search(model.tables_of_features(query.features[chosen]), k=SHEET_HITS)
    rows = []
    for position, row_scores, row_ids in zip(chosen.tolist(), scores.tolist(), ids.tolist(), strict=True):
        path = query.paths[position]
        hits = tuple(
            Hit(
                root / code_set.paths[i],
                person_of(code_set.paths[i]),
                score,
                person_of(code_set.paths[i]) == person_of(path),
            )
            for score, i in zip(row_scores, row_ids, strict=True)
        )
        rows.append(SheetRow(root / path, person_of(path), hits))
    return contact_sheet(rows, title=title)


def _write_page(demo: DemoResult, result: TrainingResult, model: OPQN, sheets: Mapping[str, Image.Image]) -> None:
    page = Page(
        "OPQN on the ORL faces", f"{NUM_BITS} bits a face, {demo.facts['people never trained on']} people never seen"
    )
    page.section(
        "How well faces are found",
        "One network was trained on some of the people. Every method below stores its features of a face, at the "
        "same number of bits, and ranks the whole gallery for each query; the uncompressed features of the same "
        "network are the yardstick. Unseen people were never trained on, neither by the network nor by PQ or OPQ.",
    )
    page.table(
        "mAP and precision at 1 and 5",
        COLUMNS,
        demo.rows(),
        note="mAP is over the full ranking; queries are not in the gallery.",
    )
    for name, reports in (("unseen", demo.unseen), ("seen", demo.seen)):
        curves = {method: (report.recall_levels, report.precision) for method, report in reports.items()}
        page.figure(
            precision_recall_svg(curves, f"{name.capitalize()} people"),
            f"Precision over recall, {name} people.",
            f"Precision-recall curves of {', '.join(reports)} for {name} people",
        )
    page.section(
        "Searches", "Spread evenly over the queries, not picked. The score is the sum of the query's table entries."
    )
    for name in ("unseen", "seen"):
        page.figure(sheets[name], f"Queries of {name} people and their best hits.", f"Contact sheet of {name} people")
    page.section(
        "The training", "Validation images are taken from the training people; no query above had a part in it."
    )
    page.figure(training_curve(result.history), "Loss, validation mAP and learning rate.", "Training curves")
    page.figure(
        codeword_use(result.history[-1]["used_words"], model.num_words),
        "Codewords that a training image was assigned to in the last epoch, per book.",
        "Bar chart of codewords in use per book",
    )
    page.section("Facts", "The faces: AT&T Laboratories Cambridge (Samaria and Harter 1994).")
    page.facts(demo.facts)
    page.save(demo.page)
