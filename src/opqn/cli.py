"""The command line: parse, call, print. What the verbs do stands in the modules they call."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from opqn._version import __version__
from opqn.console import bar, errors, output, print_facts, print_json, print_split_report, print_table, training_line
from opqn.errors import ConfigError, DataError, ModelMismatchError, OpqnError

if TYPE_CHECKING:
    from opqn.data.codes import CodeSet
    from opqn.model import OPQN
    from opqn.protocols import SplitReport

app = typer.Typer(
    name="opqn",
    help="Orthonormal Product Quantization Network: train it on faces, encode them, search them, evaluate it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Prepare data sets and split files.", no_args_is_help=True)
bench_app = typer.Typer(help="Run the benchmarks that print the README's figures.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Model = Annotated[
    str, typer.Argument(help="Model folder, or the id of one on the Hugging Face Hub.", show_default=False)
]
Root = Annotated[
    Path, typer.Option("--data", help="Folder that the split file's paths start from.", show_default=False)
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto for the fastest there is.")]


class DataSet(StrEnum):
    """Data sets with a recipe."""

    orl = "orl"


class Tables(StrEnum):
    """Made-up tables."""

    peaked = "peaked"
    flat = "flat"


class IndexProfile(StrEnum):
    """Profiles of an index."""

    compact = "compact"
    balanced = "balanced"
    fast = "fast"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with 0, 1 (failed), 2 (wrong usage) or 130 (stopped by Ctrl-C)."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    try:
        try:
            app(args=None if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()
    except ConfigError as error:
        _fail(error, 2)
    except OpqnError as error:
        _fail(error, 130 if type(error).__name__ == "TrainingInterruptedError" else 1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has enough; Python would complain at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def _fail(error: object, status: int) -> NoReturn:
    errors.print(f"opqn: {error}", soft_wrap=True)
    sys.exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        output.print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for images, model, codes and the report.")] = Path("opqn-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the training and the baselines.")] = 0,
    as_json: Json = False,
) -> None:
    """Learn from 30 people of the ORL faces, then find 10 that were never trained on; minutes on two CPU cores.

    Example: opqn demo --out opqn-demo
    """
    from opqn.demo import COLUMNS, run_demo

    with training_line() as on_progress:
        result = run_demo(out, seed, lambda stage: errors.print(f"{stage} ..."), on_progress)
    if as_json:
        print_json(result.to_dict())
        return
    print_table(f"ORL faces, after {result.seconds:.0f} s", COLUMNS, result.rows())
    output.print(f"The page to look at: {result.page}", soft_wrap=True)


@data_app.command()
def prepare(
    name: Annotated[DataSet, typer.Argument(help="Which data set.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to fill.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    as_json: Json = False,
) -> None:
    """Turn a data set into our folder and split files.

    Example: opqn data prepare orl --out orl
    """
    from opqn.data.orl import prepare_orl

    prepared = prepare_orl(out, seed=seed)
    facts = {"data": str(prepared.root), "seen": str(prepared.seen), "unseen": str(prepared.unseen), "set": name.value}
    print_facts(facts, as_json)


@data_app.command()
def split(
    root: Annotated[Path, typer.Argument(help="A folder per person.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for seen.json and unseen.json.", show_default=False)],
    unseen_people: Annotated[float, typer.Option(help="Share of the people that are never trained on.")] = 0.2,
    queries: Annotated[float, typer.Option(help="Queries a person: a share below 1, or a count.")] = 0.2,
    min_images: Annotated[int, typer.Option(help="People with fewer images are left out.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Divide a folder of faces into training, gallery and query images, for people seen and unseen.

    Example: opqn data split faces --out splits
    """
    from opqn.data.folders import scan_folder
    from opqn.data.splits import make_splits

    folder = scan_folder(root)
    splits = make_splits(
        folder,
        name=root.resolve().name,
        seed=seed,
        unseen_people=unseen_people,
        queries_per_person=queries,
        min_images=min_images,
    )
    facts: dict[str, Any] = {"people": len(set(folder.people)), "images": len(folder.paths)}
    for made in splits:
        path = out / f"{made.protocol}.json"
        made.save(path)
        sizes = {"train": len(made.train), "gallery": len(made.gallery), "query": len(made.query)}
        facts[made.protocol] = {"file": str(path), "hash": made.hash, **sizes}
    facts["skipped"] = [image._asdict() for image in folder.skipped]
    print_facts(facts, as_json)


@app.command()
def train(
    root: Root,
    split_file: Annotated[
        Path, typer.Option("--split", help="Split file; only its training images are used.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the model goes to OUT/model.", show_default=False)],
    preset: Annotated[str | None, typer.Option(help="Settings that come with opqn, such as orl or facescrub.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; goes over the preset.")] = None,
    bits: Annotated[int | None, typer.Option(help="Length of a code, of those that the preset lists.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as loss.margin=0.4; repeat it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model. Ctrl-C saves; the same command with --resume goes on.

    Example: opqn train --data orl/images --split orl/splits/seen.json --preset orl --out run
    """
    from opqn.config import load_settings
    from opqn.data.splits import Split
    from opqn.training import train as run_training

    chosen = load_settings(preset, config, bits, settings or ())
    with training_line() as on_progress:
        result = run_training(chosen, root, Split.load(split_file, root), out, resume=resume, on_progress=on_progress)
    print_facts(
        {
            "model": str(result.folder),
            "fingerprint": result.model.fingerprint,
            "best_epoch": result.best_epoch,
            "validation_map": result.validation_map,
            "query_temperature": result.model.config.query_temperature,
            "skipped": [image._asdict() for image in result.skipped],
        },
        as_json,
    )


@app.command()
def evaluate(
    model: Model,
    root: Root,
    split_files: Annotated[list[Path], typer.Option("--split", help="Split file; repeat it.", show_default=False)],
    query_temperature: Annotated[float | None, typer.Option(help="Instead of the model's own.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure how well a model finds people: mAP, precision, recall and more, codes beside uncompressed features.

    Example: opqn evaluate run/model --data orl/images --split orl/splits/unseen.json
    """
    from opqn.data.splits import Split
    from opqn.protocols import evaluate_split

    splits = [Split.load(path, root) for path in split_files]
    loaded = _load_model(model, device)
    reports: dict[str, SplitReport] = {}
    for path, made in zip(split_files, splits, strict=True):
        with bar(f"{made.protocol} people", "images") as on_images:
            reports[str(path)] = evaluate_split(
                loaded, root, made, query_temperature=query_temperature, on_images=on_images
            )
    if as_json:
        print_json(
            {"model": loaded.fingerprint, "splits": {name: report.to_dict() for name, report in reports.items()}}
        )
        return
    for name, report in reports.items():
        print_split_report(name, loaded, report)


@app.command()
def encode(
    model: Model,
    root: Annotated[Path, typer.Argument(help="A folder per person.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File for the codes.", show_default=False)],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Encode a folder of aligned face crops: a few bytes an image, in one file that `opqn search` reads.

    Example: opqn encode run/model faces --out faces.safetensors
    """
    from opqn._files import check_writable
    from opqn.data.codes import CodeSet
    from opqn.data.folders import scan_folder
    from opqn.protocols import image_features

    check_writable(out)
    folder = scan_folder(root)
    loaded = _load_model(model, device)
    with bar("encoding", "images") as on_images:
        result = image_features(loaded, root, folder.paths, on_images)
    skipped = folder.skipped + result.skipped
    codes = CodeSet(
        loaded.encode_features(result.features),
        loaded.num_words,
        result.paths,
        tuple(result.people().tolist()),
        loaded.fingerprint,
        str(root.resolve()),
    )
    codes.save(out)
    print_facts(
        {
            "codes": str(out),
            "images": len(codes),
            "bits_a_face": loaded.config.num_bits,
            "skipped": [image._asdict() for image in skipped],
        },
        as_json,
    )


@app.command()
def search(
    model: Model,
    codes: Annotated[Path, typer.Argument(help="File that `opqn encode` wrote.", show_default=False)],
    queries: Annotated[list[Path], typer.Argument(help="Face crops to look for.", show_default=False)],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits a query.")] = 10,
    sheet: Annotated[Path | None, typer.Option(help="PNG file for a contact sheet of queries and hits.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the faces most like each query.

    A hit is marked right or wrong where the query's folder bears the name of a person in the codes.

    Example: opqn search run/model faces.safetensors query.jpg --sheet hits.png
    """
    from opqn.data.codes import CodeSet
    from opqn.index import CodeIndex

    stored = CodeSet.load(codes)
    loaded = _load_model(model, device)
    if stored.fingerprint != loaded.fingerprint:
        raise ModelMismatchError(
            f"{codes} was encoded by another model ({stored.fingerprint[:12]}, this one is {loaded.fingerprint[:12]}); "
            "search with that model, or encode the images again"
        )
    tables = loaded.lookup_tables(queries)
    index = CodeIndex(stored.num_books, stored.num_words, "compact")
    index.add(stored.codes)
    scores, ids = index.search(tables, k=k)
    hits = [
        [
            {"rank": rank, "score": score, "path": stored.paths[i], "person": stored.people[i]}
            for rank, (score, i) in enumerate(zip(row_scores, row_ids, strict=True), 1)
            if i >= 0
        ]
        for row_scores, row_ids in zip(scores.tolist(), ids.tolist(), strict=True)
    ]
    if sheet is not None:
        _write_sheet(sheet, queries, hits, stored)
    if as_json:
        print_json([{"query": str(query), "hits": found} for query, found in zip(queries, hits, strict=True)])
        return
    for query, found in zip(queries, hits, strict=True):
        rows = [(str(hit["rank"]), f"{hit['score']:.4f}", str(hit["person"]), str(hit["path"])) for hit in found]
        print_table(str(query), ("rank", "score", "person", "image"), rows)


@bench_app.command()
def head(as_json: Json = False) -> None:
    """Time head and loss, forward and backward, beside a straightforward loop over the books; and their memory.

    Example: opqn bench head
    """
    from opqn.bench import head as bench

    _print_benchmark(bench.run(), bench.table, as_json)


@bench_app.command()
def ranking(as_json: Json = False) -> None:
    """Time the mAP of 10,000 queries against 100,000 codes beside a loop that sorts the gallery once per query.

    Example: opqn bench ranking
    """
    from opqn.bench import ranking as bench

    _print_benchmark(bench.run(), bench.table, as_json)


@bench_app.command(name="search")
def bench_search(
    items: Annotated[int, typer.Option(min=1, help="Codes to search.")] = 1_000_000,
    queries: Annotated[int, typer.Option(min=1, help="Tables to search with.")] = 200,
    books: Annotated[int, typer.Option(min=1, max=64, help="Numbers in a code; a model has its own.")] = 8,
    words: Annotated[int, typer.Option(min=2, max=256, help="Values of each; a model has its own.")] = 256,
    tables: Annotated[Tables, typer.Option(help="Peaked as a good model's, or flat, the worst case.")] = Tables.peaked,
    images: Annotated[int, typer.Option(min=1, help="Of a made-up person; with 1, hardly two codes are equal.")] = 50,
    model: Annotated[str | None, typer.Option(help="Take codes and tables from this model instead.")] = None,
    data: Annotated[Path | None, typer.Option(help="Faces for the model, a folder a person.")] = None,
    query_temperature: Annotated[float | None, typer.Option(help="Instead of the model's.")] = None,
    profile: Annotated[IndexProfile, typer.Option(help="How much memory goes into speed.")] = IndexProfile.fast,
    threads: Annotated[int, typer.Option(min=1, help="Of both sides.")] = 1,
    life: Annotated[bool, typer.Option("--life", help="Also saving, opening, adding and two threads.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Time exact search, and each of its plans, beside FAISS's full scan of the same codes; every answer is checked.

    Example: opqn bench search --items 10000000
    """
    from opqn.bench import search as bench

    if (model is None) != (data is None):
        raise ConfigError("--model and --data go together: the model encodes the faces")
    if model is not None and data is not None:
        inputs = bench.of_model(model, data, items, queries, query_temperature, seed)
    else:
        inputs = bench.made_up(items, queries, books, words, tables.value, images_a_person=images, seed=seed)
    result = bench.run(
        inputs,
        profile=profile.value,
        threads=threads,
        has_life=life,
        on_stage=lambda stage: errors.print(f"{stage} ..."),
    )
    _print_benchmark(result, bench.table, as_json)


def _print_benchmark(result: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        output.print(table(result), soft_wrap=True)


def _load_model(name: str, device: str) -> OPQN:
    import torch

    from opqn.model import OPQN

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        known = device.partition(":")[0] in ("cpu", "cuda", "mps")  # torch has more, some of them without any data
        target = torch.empty(0, device=device).device if known else None
    except (RuntimeError, AssertionError):
        target = None
    if target is None:
        raise ConfigError(f"--device {device} is not to be had here; use auto, cpu, cuda or mps")
    return OPQN.from_pretrained(name, target)


def _write_sheet(path: Path, queries: Sequence[Path], hits: Sequence[Sequence[dict[str, Any]]], codes: CodeSet) -> None:
    from opqn._files import atomic_write_bytes
    from opqn.report import Hit, SheetRow, contact_sheet

    if codes.root is None:
        raise DataError("the codes do not say where their images are, so there is no contact sheet; leave out --sheet")
    known = set(codes.people)
    rows = []
    for query, found in zip(queries, hits, strict=True):
        person = query.resolve().parent.name
        label = person if person in known else None
        rows.append(
            SheetRow(
                query,
                label,
                tuple(
                    Hit(
                        Path(codes.root) / hit["path"],
                        hit["person"],
                        hit["score"],
                        None if label is None else hit["person"] == label,
                    )
                    for hit in found
                ),
            )
        )
    buffer = BytesIO()
    contact_sheet(rows).save(buffer, "PNG")
    atomic_write_bytes(path, buffer.getvalue())
