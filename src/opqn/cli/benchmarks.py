"""The benchmarks that print the README's figures."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from opqn.cli.options import Device, Json, Profile
from opqn.console import errors, output, print_json
from opqn.errors import ConfigError

bench_app = typer.Typer(help="Run the benchmarks that print the README's figures.", no_args_is_help=True)


class Tables(StrEnum):
    """Made-up tables."""

    peaked = "peaked"
    flat = "flat"


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
    profile: Annotated[Profile, typer.Option(help="How much memory goes into speed.")] = Profile.fast,
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


@bench_app.command(name="gallery")
def bench_gallery(
    faces: Annotated[int, typer.Option(min=1, help="Codes to add.")] = 1_000_000,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photographs to index as well.", show_default=False)
    ] = None,
    max_photos: Annotated[int, typer.Option(min=0, help="At most so many photographs; 0 for all.")] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each side over the photographs, alternating.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the codes.")] = 0,
    as_json: Json = False,
) -> None:
    """Time a gallery: faces added from codes, a photograph searched, and indexing beside detector and embedder alone.

    Example: opqn bench gallery --photos photos --max-photos 2000
    """
    from opqn.bench import gallery as bench

    result = bench.run(
        faces,
        photos,
        max_photos=max_photos,
        pairs=pairs,
        seed=seed,
        on_stage=lambda stage: errors.print(f"{stage} ..."),
    )
    _print_benchmark(result, bench.table, as_json)


@bench_app.command(name="open-set")
def bench_open_set(
    vectors: Annotated[Path, typer.Option(help="File that `opqn embed` wrote.", show_default=False)],
    bits: Annotated[int, typer.Option(help="Length of a code.")] = 64,
    fpir: Annotated[float, typer.Option(help="Rate at which strangers may be named.")] = 0.01,
    draws: Annotated[int, typer.Option(min=1, help="Times that strangers are drawn anew.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Calibrate a threshold with some strangers, and see at what rate it names others; people the codes never saw.

    Example: opqn bench open-set --vectors faces.npz
    """
    from opqn.bench import open_set as bench
    from opqn.data.vectors import load_vectors

    result = bench.run(
        load_vectors(vectors),
        num_bits=bits,
        fpir=fpir,
        draws=draws,
        seed=seed,
        on_stage=lambda stage: errors.print(f"{stage} ..."),
    )
    _print_benchmark(result, bench.table, as_json)


@bench_app.command(name="grouping")
def bench_grouping(
    vectors: Annotated[Path, typer.Option(help="File that `opqn embed` wrote.", show_default=False)],
    bits: Annotated[
        list[int] | None, typer.Option(help="Length of a code; repeat it.", show_default="24, 48, 64")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Group the faces of half of the people by their codes, and compare the groups with who they are.

    Example: opqn bench grouping --vectors faces.npz
    """
    from opqn.bench import grouping as bench
    from opqn.data.vectors import load_vectors

    result = bench.run(
        load_vectors(vectors),
        bits=bits or (24, 48, 64),
        seed=seed,
        on_stage=lambda stage: errors.print(f"{stage} ..."),
    )
    _print_benchmark(result, bench.table, as_json)


@bench_app.command(name="vectors")
def bench_vectors(
    vectors: Annotated[Path, typer.Option(help="File that `opqn embed` wrote.", show_default=False)],
    bits: Annotated[
        list[int] | None, typer.Option(help="Length of a code; repeat it.", show_default="24, 36, 48, 64")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Of a split; repeat it.", show_default="0, 1, 2")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare codes of face vectors: OPQNQuantizer, OPQ, PQ and ITQ, for people seen and unseen.

    Example: opqn bench vectors --vectors faces.npz
    """
    from opqn.bench import vectors as bench

    result = bench.run(
        vectors, bits or (24, 36, 48, 64), seeds or (0, 1, 2), on_stage=lambda stage: errors.print(f"{stage} ...")
    )
    _print_benchmark(result, bench.table, as_json)


@bench_app.command(name="methods")
def bench_methods(
    suite: Annotated[
        str, typer.Option(help="smoke (minutes), ablations or faces (hours), paper (days, with a GPU).")
    ] = "smoke",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with prepared data sets in folders of their names.", show_default="OUT/data"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for trainings, records, tables and the report.")] = Path("methods"),
    source: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DOWNLOAD: prepare this data set first; repeat it.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this data set; repeat it.", show_default="all that are there")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; repeat it.", show_default="all")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="Only this length; repeat it.", show_default="all")] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, help="Of splits and trainings; repeat it.", show_default="0, 1, 2"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one for each CPU, on a GPU one.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train every method with the same data, network and effort; print tables and write curves and a report.

    A run that was stopped goes on when it is started again, and what was measured is not measured again.

    Example: opqn bench methods --suite paper --source cifar-10=cifar-10-binary.tar.gz --out runs/cifar
    """
    from opqn.bench import methods as bench

    chosen = bench.narrowed(
        bench.get_suite(suite), data=only or (), methods=method or (), bits=bits or (), seeds=seeds or ()
    )
    folder = data or out / "data"

    def stage(text: str) -> None:
        errors.print(text, soft_wrap=True)

    bench.fetch(chosen, folder, [bench.parse_source(text) for text in source or ()], stage)
    records = bench.run_suite(chosen, folder, out, jobs=jobs, device=device, on_stage=stage)
    arguments = ["--suite", suite]
    for option, values in (("--only", only), ("--method", method), ("--bits", bits), ("--seed", seeds)):
        for value in values or ():
            arguments += [option, str(value)]
    command = f"opqn bench methods {shlex.join(arguments)}"
    page = bench.write_page(records, chosen, command, out)
    if as_json:
        print_json(bench.summary(records, chosen) | {"report": str(page)})
    else:
        output.print(bench.tables(records, chosen, command), soft_wrap=True, markup=False, highlight=False)
        stage(f"the report is {page}")


def _print_benchmark(result: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        output.print(table(result), soft_wrap=True)
