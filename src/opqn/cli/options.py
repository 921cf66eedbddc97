"""Arguments that several verbs share, and the model they name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from opqn.faces import QualityFilter
    from opqn.model import OPQN


class Profile(StrEnum):
    """How much memory the index puts into speed."""

    compact = "compact"
    balanced = "balanced"
    fast = "fast"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Model = Annotated[
    str, typer.Argument(help="Model folder, or the id of one on the Hugging Face Hub.", show_default=False)
]
Root = Annotated[
    Path, typer.Option("--data", help="Folder that the split file's paths start from.", show_default=False)
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto for the fastest there is.")]


Folder = Annotated[Path, typer.Argument(metavar="GALLERY", help="Folder of the gallery.", show_default=False)]
Queries = Annotated[list[Path], typer.Argument(help="Pictures to look for.", show_default=False)]
Sheet = Annotated[Path | None, typer.Option(help="PNG file for a contact sheet.")]
MinSize = Annotated[float | None, typer.Option(help="Least size of a face in pixels.", show_default=False)]
MinScore = Annotated[float | None, typer.Option(help="Least score of the detector, 0 to 1.", show_default=False)]
MinSharpness = Annotated[float | None, typer.Option(help="Least sharpness.", show_default=False)]
MaxYaw = Annotated[float | None, typer.Option(help="Most degrees a face is turned aside.", show_default=False)]


def quality_filter(
    min_size: float | None, min_score: float | None, min_sharpness: float | None, max_yaw: float | None
) -> QualityFilter | None:
    """Return the filter that the options make, None if they set no limit."""
    from opqn.faces import QualityFilter

    made = QualityFilter(min_size=min_size, min_score=min_score, min_sharpness=min_sharpness, max_yaw=max_yaw)
    return None if made == QualityFilter() else made


def load_model(name: str, device: str = "auto") -> OPQN:
    """Load a model, of OPQN or a comparison method, on a device."""
    from opqn.baselines import model
    from opqn.model import find_device

    return model.load_model(name, find_device(device))
