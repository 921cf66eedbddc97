"""Verbs of models: the demo, data sets, training, evaluating, encoding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opqn.cli.options import Device, Json, Model, Root, load_model
from opqn.console import bar, errors, output, print_facts, print_json, print_split_report, print_table, training_line
from opqn.errors import ConfigError

if TYPE_CHECKING:
    from opqn.protocols import SplitReport

data_app = typer.Typer(help="Prepare data sets and split files.", no_args_is_help=True)


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
    name: Annotated[str, typer.Argument(help="Which data set; a wrong name lists them.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to fill.", show_default=False)],
    source: Annotated[
        list[Path] | None, typer.Option(help="Folder or archive as downloaded; repeat it.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Go on where people or images are missing.")
    ] = False,
    known_people: Annotated[
        Path | None, typer.Option(help="File of people whom a model was trained on; they are no strangers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a data set into our folder and split files; nothing is downloaded, orl and digits need no source.

    Example: opqn data prepare lfw --source lfw.tgz --out lfw
    """
    from opqn.data.recipes import prepare as run_recipe
    from opqn.data.recipes import read_names

    sources: Path | list[Path] | None = source[0] if source is not None and len(source) == 1 else source
    with bar(f"preparing {name}", "images") as on_progress:
        prepared = run_recipe(
            name,
            sources,
            out,
            seed=seed,
            allow_incomplete=allow_incomplete,
            known_people=read_names(known_people) if known_people is not None else (),
            on_progress=on_progress,
        )
    for warning in prepared.warnings:
        errors.print(f"opqn: {warning}", soft_wrap=True)
    print_facts(prepared.to_dict(), as_json)


@data_app.command()
def synthesize(
    out: Annotated[Path, typer.Option(help="Folder to fill.", show_default=False)],
    people: Annotated[int, typer.Option(help="People to draw, none of whom exists.")] = 100,
    images: Annotated[int, typer.Option(help="Images of each.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 112,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A strength from 0 to 1, as pose=0.4; repeat it.")
    ] = None,
    processes: Annotated[int, typer.Option(min=0, help="To draw in; 0 for as many as there are cores.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw faces of people who do not exist, with splits and the truth about every picture; CC0.

    Example: opqn data synthesize --people 300 --images 20 --out synthetic
    """
    from opqn._settings import parse_override
    from opqn.data.synthetic import SyntheticSettings
    from opqn.data.synthetic import synthesize as draw

    values: dict[str, Any] = {}
    for text in settings or ():
        values |= parse_override(text)
    with bar("drawing", "people") as on_progress:
        made = draw(
            out,
            people,
            images,
            seed,
            settings=SyntheticSettings(**values),
            size=size,
            processes=processes,
            on_progress=on_progress,
        )
    facts = {"data": made.root, "seen": made.seen, "unseen": made.unseen, "truth": made.truth}
    print_facts({name: str(path) for name, path in facts.items()}, as_json)


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


def evaluate(
    model: Model,
    root: Root,
    split_files: Annotated[list[Path], typer.Option("--split", help="Split file; repeat it.", show_default=False)],
    query_temperature: Annotated[float | None, typer.Option(help="Instead of the model's own.")] = None,
    open_set: Annotated[
        bool, typer.Option("--open-set", help="Also with half of the people unknown: who is named, who is missed.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of who is unknown.")] = 0,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for the curves of --open-set, as SVG files.", show_default=False)
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure how well a model finds people: mAP, precision, recall and more, codes beside uncompressed features.

    Example: opqn evaluate run/model --data orl/images --split orl/splits/unseen.json
    """
    from opqn.baselines.model import BaselineModel
    from opqn.data.splits import Split
    from opqn.protocols import evaluate_split

    if plots is not None and not open_set:
        raise ConfigError("--plots draws the curves of --open-set; give both")
    splits = [Split.load(path, root) for path in split_files]
    loaded = load_model(model, device)
    if query_temperature is not None and isinstance(loaded, BaselineModel):
        raise ConfigError(f"the method {loaded.method.name} has no query temperature; leave out --query-temperature")
    reports: dict[str, SplitReport] = {}
    for path, made in zip(split_files, splits, strict=True):
        with bar(f"{made.protocol} people", "images") as on_images:
            reports[str(path)] = evaluate_split(
                loaded,
                root,
                made,
                query_temperature=query_temperature,
                open_set_seed=seed if open_set else None,
                on_images=on_images,
            )
    if plots is not None:
        _draw(plots, reports)
    if as_json:
        print_json(
            {"model": loaded.fingerprint, "splits": {name: report.to_dict() for name, report in reports.items()}}
        )
        return
    for name, report in reports.items():
        print_split_report(name, loaded, report)


def _draw(folder: Path, reports: Mapping[str, SplitReport]) -> None:
    from opqn._files import atomic_write_bytes
    from opqn.report import detection_error_svg, verification_svg

    errors_of, rocs = {}, {}
    for report in reports.values():
        if report.open_set is not None:
            for name, found in (("codes", report.open_set.codes), ("features", report.open_set.features)):
                label = f"{name}, {report.protocol} people"
                errors_of[label] = (found.identification.fpir, found.identification.fnir)
                rocs[label] = (found.verification.fmr, found.verification.tmr)
    atomic_write_bytes(folder / "detection-error.svg", detection_error_svg(errors_of))
    atomic_write_bytes(folder / "verification.svg", verification_svg(rocs))


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
    loaded = load_model(model, device)
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


def embed(
    root: Annotated[Path, typer.Argument(help="A folder per person.", show_default=False)],
    out: Annotated[Path, typer.Option(help="NumPy file for the vectors.", show_default=False)],
    aligned: Annotated[
        bool, typer.Option("--aligned", help="The pictures are faces cut out and aligned; look for none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe the most prominent face in each picture by a vector of SFace, for `opqn bench vectors` and galleries.

    Example: opqn embed photos --out faces.npz
    """
    from opqn._files import check_writable
    from opqn.data.folders import scan_folder
    from opqn.encoders import embed_folder
    from opqn.faces import FacePipeline

    check_writable(out)
    folder = scan_folder(root)
    with bar("embedding", "images") as on_images:
        made, skipped = embed_folder(FacePipeline(), folder, aligned=aligned, on_images=on_images)
    made.save(out)
    print_facts(
        {"vectors": str(out), "faces": len(made.vectors), "skipped": [image._asdict() for image in skipped]}, as_json
    )
