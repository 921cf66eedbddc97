"""Verbs of galleries: from photographs to people, searched and named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opqn.cli.options import (
    Folder,
    Json,
    MaxYaw,
    MinScore,
    MinSharpness,
    MinSize,
    Profile,
    Sheet,
    load_model,
    quality_filter,
)
from opqn.cli.sheets import group_rows, write_sheet
from opqn.console import bar, errors, output, print_facts, print_json, print_table
from opqn.errors import ConfigError, DataError, ModelMismatchError

if TYPE_CHECKING:
    from opqn.encoders import Encoder
    from opqn.faces import FaceEmbedder, QualityFilter
    from opqn.gallery import AddReport, Gallery

gallery_app = typer.Typer(help="Keep people, pictures and codes in a folder.", no_args_is_help=True)


class PeopleFrom(StrEnum):
    """Where names of people come from."""

    folders = "folders"
    none = "none"


Source = Annotated[Path | None, typer.Option(help="Folder of photographs, in folders or not.", show_default=False)]
Names = Annotated[
    PeopleFrom, typer.Option("--people", help="Name people after the folders in the source, or leave faces unnamed.")
]
Vectors = Annotated[
    Path | None,
    typer.Option(help="NumPy file of face vectors: an array `vectors`, and `people` if known.", show_default=False),
]
Codes = Annotated[Path | None, typer.Option(help="File that `opqn encode` wrote.", show_default=False)]


@gallery_app.command()
def create(
    gallery: Folder,
    source: Source = None,
    people: Names = PeopleFrom.folders,
    model: Annotated[
        str | None, typer.Option(help="Model of `opqn train`; pictures are then faces cut out.", show_default=False)
    ] = None,
    quantizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder that OPQNQuantizer.save wrote.", show_default="the one for SFace that comes with opqn"
        ),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(help="ONNX file of another face network, for --quantizer.", show_default="SFace"),
    ] = None,
    network_settings: Annotated[
        Path | None, typer.Option(help="TOML file that tells what the network takes.", show_default=False)
    ] = None,
    vectors: Vectors = None,
    codes: Codes = None,
    min_size: MinSize = None,
    min_score: MinScore = None,
    min_sharpness: MinSharpness = None,
    max_yaw: MaxYaw = None,
    crops: Annotated[bool, typer.Option(help="Keep a small picture of every face.")] = True,
    keep_vectors: Annotated[bool, typer.Option(help="Keep the vectors codes are made of, to group by.")] = True,
    profile: Annotated[Profile, typer.Option(help="How much memory the index puts into speed.")] = Profile.balanced,
    as_json: Json = False,
) -> None:
    """Make a gallery, and fill it with the faces in a folder of photographs.

    Example: opqn gallery create faces.gallery --source photos
    """
    from opqn.gallery import Gallery

    quality = quality_filter(min_size, min_score, min_sharpness, max_yaw)
    if source is not None and not source.is_dir():  # before anything is made
        raise DataError(f"{source} is {'not a folder' if source.exists() else 'missing'}; give a folder of pictures")
    only_vectors = source is None and vectors is not None
    encoder = _encoder(model, quantizer, network, network_settings, only_vectors)
    with Gallery.create(gallery, encoder, keep_crops=crops, keep_vectors=keep_vectors, profile=profile.value) as made:
        reports = _add(made, source, people, vectors, codes, quality)
        _print_reports(made, reports, as_json)


@gallery_app.command()
def add(
    gallery: Folder,
    source: Source = None,
    people: Names = PeopleFrom.folders,
    vectors: Vectors = None,
    codes: Codes = None,
    min_size: MinSize = None,
    min_score: MinScore = None,
    min_sharpness: MinSharpness = None,
    max_yaw: MaxYaw = None,
    remove_missing: Annotated[
        bool, typer.Option("--remove-missing", help="Remove the faces of pictures that are gone, for good.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add faces, or without a source look again at the folders that were added before; only what changed is read.

    Example: opqn gallery add faces.gallery --source more-photos
    """
    from opqn.gallery import Gallery

    quality = quality_filter(min_size, min_score, min_sharpness, max_yaw)
    with Gallery.open(gallery) as opened:
        if source is None and vectors is None and codes is None:
            sources = opened.sources()
            if not sources:
                raise ConfigError(f"no folder was added to {gallery} yet; give one with --source")
            reports = [
                _add_folder(opened, folder, PeopleFrom(how), quality, remove_missing=remove_missing)
                for folder, how in sources
            ]
        else:
            reports = _add(opened, source, people, vectors, codes, quality, remove_missing=remove_missing)
        _print_reports(opened, reports, as_json)


@gallery_app.command()
def remove(
    gallery: Folder,
    ids: Annotated[list[int] | None, typer.Option("--id", help="Id of a face; repeat it.", show_default=False)] = None,
    person: Annotated[str | None, typer.Option(help="Name of a person, or an id as #12.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Remove faces, or a person with all their faces, for good: no byte of them is left in the gallery's files.

    The photographs stay where they are, and are not added again.

    Example: opqn gallery remove faces.gallery --person "Ann Example"
    """
    from opqn.gallery import Gallery

    with Gallery.open(gallery) as opened:
        count = opened.remove(ids or None, _person(person) if person is not None else None)
        print_facts({"removed": count, "left": len(opened)}, as_json)


@gallery_app.command()
def info(gallery: Folder, as_json: Json = False) -> None:
    """Tell what a gallery holds.

    Example: opqn gallery info faces.gallery
    """
    from opqn.gallery import Gallery

    with Gallery.open(gallery) as opened:
        facts = opened.info().to_dict()
    if not as_json:
        facts = {name.removeprefix("num_"): value for name, value in facts.items() if value is not None}
        facts["sources"] = ", ".join(facts["sources"])
    print_facts(facts, as_json)


@gallery_app.command()
def people(gallery: Folder, as_json: Json = False) -> None:
    """List everyone in a gallery, and how many faces each has.

    Example: opqn gallery people faces.gallery
    """
    from opqn.gallery import Gallery

    with Gallery.open(gallery) as opened:
        found = opened.people()
    if as_json:
        print_json([{"id": person.id, "name": person.name, "faces": count} for person, count in found])
        return
    print_table(str(gallery), ("person", "id", "faces"), [(p.label, f"#{p.id}", str(count)) for p, count in found])


@gallery_app.command()
def name(
    gallery: Folder,
    new_name: Annotated[str, typer.Argument(metavar="NAME", help="The name.", show_default=False)],
    person: Annotated[str | None, typer.Option(help="Old name, or an id as #12.", show_default=False)] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="Id of a face; repeat it.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Give a person or faces a name. If somebody has it already, the faces become theirs.

    Example: opqn gallery name faces.gallery "Ann Example" --person "#12"
    """
    from opqn.gallery import Gallery

    if (person is None) == (not ids):
        raise ConfigError("give either --person or --id")
    with Gallery.open(gallery) as opened:
        if person is not None:
            opened.rename(_person(person), new_name)
        else:
            opened.assign(ids or (), new_name)
        counts = {found.name: count for found, count in opened.people()}
        print_facts({"name": new_name, "faces": counts.get(new_name.strip(), 0)}, as_json)


@gallery_app.command()
def group(
    gallery: Folder,
    threshold: Annotated[
        float | None,
        typer.Option(help="Lowest score of two faces of a person.", show_default="what naming takes, looser"),
    ] = None,
    sheet: Sheet = None,
    as_json: Json = False,
) -> None:
    """Put the faces that have no name into groups of one person each, to be named with `opqn gallery name`.

    Example: opqn gallery group faces.gallery --sheet groups.png
    """
    from opqn.gallery import Gallery

    with Gallery.open(gallery) as opened:
        groups = opened.group(threshold)
        if sheet is not None:
            write_sheet(sheet, group_rows(opened, groups), "Groups of faces, the largest first")
        facts: dict[str, Any] = {
            "groups": len(groups),
            "faces_in_groups": sum(len(faces) for _, faces in groups),
            "faces_alone": opened.info().num_unknown,
        }
        if as_json:
            facts["people"] = [{"id": person.id, "faces": list(faces)} for person, faces in groups]
        print_facts(facts, as_json)


@gallery_app.command()
def verify(
    gallery: Folder,
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild what is derived from the catalog.")] = False,
    as_json: Json = False,
) -> None:
    """Check every row and file of a gallery; exit status 1 if something is wrong.

    Example: opqn gallery verify faces.gallery --repair
    """
    from opqn.gallery import Gallery

    with Gallery.open(gallery) as opened, bar("checking", "faces") as on_progress:
        report = opened.verify(repair=repair, on_progress=on_progress)
    if as_json:
        print_json(report.to_dict())
    else:
        for line in report.repaired:
            output.print(f"repaired: {line}", soft_wrap=True)
        for line in report.pending:
            output.print(f"unfinished: {line}", soft_wrap=True)
        for line in report.problems:
            output.print(f"wrong: {line}", soft_wrap=True)
        output.print(f"{report.num_faces} faces checked: {len(report.problems) or 'no'} problem(s)")
    if report.problems:
        raise typer.Exit(1)


def _encoder(
    model: str | None, quantizer: Path | None, network: Path | None, settings: Path | None, only_vectors: bool
) -> Encoder:
    """Return the encoder that the options of `gallery create` describe."""
    if model is not None:
        if quantizer is not None or network is not None:
            raise ConfigError("--model takes faces cut out and is all it takes; leave out --quantizer and --network")
        return load_model(model)
    if network is not None and quantizer is None:
        raise ConfigError("--network takes a --quantizer fitted on its vectors; OPQNQuantizer.save writes one")
    if settings is not None and network is None:
        raise ConfigError("--network-settings go with --network")
    from opqn.encoders import FaceEncoder, ready_quantizer
    from opqn.estimator import OPQNQuantizer

    fitted = OPQNQuantizer.load(quantizer) if quantizer is not None else ready_quantizer()
    if only_vectors and network is None:
        return fitted
    from opqn.faces import FacePipeline

    return FaceEncoder(fitted, FacePipeline(embedder=_embedder(network, settings)))


def _embedder(network: Path | None, settings: Path | None) -> FaceEmbedder | None:
    import tomllib

    from opqn.faces import EmbedderConfig, FaceEmbedder

    if network is None:
        return None
    values: dict[str, Any] = {}
    if settings is not None:
        try:
            values = tomllib.loads(settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {settings}: {error}") from error
    return FaceEmbedder(network, EmbedderConfig(**values))


def _add(
    gallery: Gallery,
    source: Path | None,
    people: PeopleFrom,
    vectors: Path | None,
    codes: Path | None,
    quality: QualityFilter | None,
    *,
    remove_missing: bool = False,
) -> list[AddReport]:
    reports = []
    if source is not None:
        reports.append(_add_folder(gallery, source, people, quality, remove_missing=remove_missing))
    if vectors is not None:
        from opqn.data.vectors import load_vectors

        given = load_vectors(vectors)
        reports.append(gallery.add_vectors(given.vectors, None if given.people is None else given.people.tolist()))
    if codes is not None:
        from opqn.data.codes import CodeSet

        stored = CodeSet.load(codes)
        if stored.fingerprint != gallery.encoder.fingerprint:
            raise ModelMismatchError(
                f"{codes} was encoded by another model ({stored.fingerprint[:12]}, the gallery's is "
                f"{gallery.encoder.fingerprint[:12]}); encode the images again"
            )
        reports.append(gallery.add_codes(stored.codes, stored.people))
    return reports


def _add_folder(
    gallery: Gallery, source: Path, people: PeopleFrom, quality: QualityFilter | None, *, remove_missing: bool
) -> AddReport:
    with _explained_interrupt(gallery), bar(f"looking at {source}", "pictures") as on_progress:
        return gallery.add_folder(
            source, people.value, quality=quality, remove_missing=remove_missing, on_progress=on_progress
        )


@contextmanager
def _explained_interrupt(gallery: Gallery) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        errors.print(
            f"opqn: stopped; {len(gallery)} faces are in {gallery.folder}. "
            f"Run `opqn gallery add {gallery.folder}` to go on",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


def _print_reports(gallery: Gallery, reports: Sequence[AddReport], as_json: bool) -> None:
    facts: dict[str, Any] = {}
    for report in reports:
        for key, value in report.to_dict().items():
            facts[key] = facts[key] + value if key in facts else value
    info = gallery.info()
    facts |= {"faces_in_gallery": info.num_faces, "people_in_gallery": info.num_people}
    if as_json:
        print_json(facts)
        return
    missing = facts.pop("missing", ())
    print_facts({key: value for key, value in facts.items() if value or "gallery" in key}, False)
    if missing:
        errors.print(
            f"{len(missing)} pictures are gone, such as {missing[0]}; `opqn gallery add --remove-missing` removes "
            "their faces",
            soft_wrap=True,
        )


def _person(text: str) -> str | int:
    """Return a name, or an id written as #12."""
    return int(text[1:]) if text.startswith("#") and text[1:].isdecimal() else text
