"""What the command line shows: tables and JSON on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from opqn.model import OPQN
    from opqn.protocols import OpenSetReport, SplitReport
    from opqn.training import Progress as TrainingProgress

# Names of files and people are printed as they are: "[/b]" is no markup and ":smile:" no emoji.
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
output = Console(markup=False, emoji=False, highlight=False)


def print_json(document: object) -> None:
    """Print one JSON document on stdout, in ASCII: every terminal takes it, and file names that are not UTF-8 too."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts a line each, or as one JSON document; skipped images go to stderr."""
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "skipped":
            parts = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
            output.print(f"{name}: {parts}", soft_wrap=True)
    _warn_of_skipped(facts.get("skipped", []))


def _warn_of_skipped(skipped: Sequence[dict[str, str]]) -> None:
    if skipped:
        errors.print(f"{len(skipped)} image{'s were' if len(skipped) > 1 else ' was'} skipped:")
    for image in skipped[:10]:
        errors.print(f"  {image['path']}: {image['reason']}", soft_wrap=True)
    if len(skipped) > 10:
        errors.print(f"  and {len(skipped) - 10} more (--json lists all)")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    output.print(table)


def print_split_report(name: str, model: OPQN, report: SplitReport) -> None:
    """Print how codes and uncompressed features do on one split."""
    rows = []
    for method, found in ((f"codes, {model.config.num_bits} bits", report.codes), ("uncompressed", report.features)):
        at = [f"{value:.4f}" for value in (found.precision_at[10], found.recall_at[10], found.cmc[1])]
        rows.append((method, f"{found.mean_average_precision:.4f}", *at, f"{found.tie_share:.4f}"))
    print_table(
        f"{name}: {report.protocol} people, {report.codes.num_queries} queries in {report.codes.num_gallery} images",
        ("", "mAP", "precision@10", "recall@10", "rank-1", "ties"),
        rows,
    )
    use, entropy = report.codes.codeword_use, report.codes.codeword_entropy
    if use is not None and entropy is not None:
        books = ", ".join(f"{share:.0%} {bits:.1f}" for share, bits in zip(use, entropy, strict=True))
        output.print(f"codewords in use and their entropy in bits, per book: {books}")
    output.print(
        f"quantization error {report.quantization_error:.4f}; queries without a match: {report.codes.num_unmatched}; "
        f"split {report.split_hash[:12]}"
    )
    if report.open_set is not None:
        _print_open_set(model, report.open_set)
    _warn_of_skipped([image._asdict() for image in report.skipped])


def _print_open_set(model: OPQN, report: OpenSetReport) -> None:
    rows = []
    for method, found in ((f"codes, {model.config.num_bits} bits", report.codes), ("uncompressed", report.features)):
        identified, verified = found.identification, found.verification
        values = [identified.dir_at[0.1], identified.dir_at[0.01], verified.tmr_at[0.01], verified.tmr_at[0.001]]
        rows.append((method, *("-" if value is None else f"{value:.4f}" for value in values)))
    identified = report.codes.identification
    print_table(
        f"{report.num_enrolled} people known, {identified.num_strangers} unknown (seed {report.seed}): named rightly",
        ("", "of strangers named 10 %", "1 %", "pairs: TMR at FMR 1 %", "0.1 %"),
        rows,
    )
    output.print("-: too few people to tell")


@contextmanager
def bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with a rate and the time left on stderr, where a person watches."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, rate="")

        def update(done: int, count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=count, rate=f"{speed:.0f} {unit}/s" if speed else "")

        yield update


@contextmanager
def training_line() -> Iterator[Callable[[TrainingProgress], None]]:
    """Show how a training goes: live where a person watches, and a line after the first and every validated epoch."""
    with Progress(
        TextColumn("{task.description}"), console=errors, transient=True, disable=not errors.is_terminal
    ) as live:
        task = live.add_task("")

        def update(progress: TrainingProgress) -> None:
            line = _describe(progress)
            live.update(task, description=line)
            if progress.validation_map is not None or progress.step in (
                progress.steps // progress.epochs,
                progress.steps,
            ):
                live.console.print(line, soft_wrap=True)

        yield update


def _describe(progress: TrainingProgress) -> str:
    words, seconds = progress.used_words, round(progress.seconds_left)
    parts = [
        f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}",
        f"(original {progress.original:.3f}, quantized {progress.quantized:.3f}, entropy {progress.entropy:.3f}),",
        f"words in use {min(words)}-{max(words)}, rate {progress.learning_rate:.4f},",
        f"{progress.images_per_second:.0f} images/s, {timedelta(seconds=seconds)} left",
    ]
    if progress.validation_map is not None:
        parts.append(f"validation mAP {progress.validation_map:.4f} of {progress.validation_map_features:.4f}")
    return " ".join(parts)
