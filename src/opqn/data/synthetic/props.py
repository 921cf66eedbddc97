"""Things that are worn: glasses, the bill of a cap, long hair, fingers in front of the face; each a small mesh.

Places are decimetres of the neutral head; :func:`fit_to` carries them over to a person's.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opqn.data.synthetic.people import Person
from opqn.data.synthetic.scenes import Scene

_GLASSES: Final = (0.315, 7.265, 1.55)
_AROUND_HEAD: Final = (0.0, 0.12)
"""x and z of the upright axis that hair hangs around."""


class Mesh(NamedTuple):
    """A part of a figure.

    Attributes:
        vertices: (V, 3) float32.
        faces: (T, 3) int64.
        material: its name.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    material: str


def fit_to(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the affine map, (4, 3), that brings points (P, 3) nearest to others, in the least-squares sense."""
    points = np.column_stack([source, np.ones(len(source))]).astype(np.float64)
    square = np.einsum("pi,pj->ij", points, points)  # not by BLAS, whose sums depend on its number of threads
    mapping: NDArray[np.float64] = np.linalg.solve(square, np.einsum("pi,pj->ij", points, target.astype(np.float64)))
    return mapping


def carry(mesh: Mesh, mapping: NDArray[np.float64]) -> Mesh:
    """Move a mesh by an affine map."""
    return mesh._replace(vertices=(mesh.vertices @ mapping[:3] + mapping[3]).astype(np.float32))


def glasses(person: Person, *, dark: bool) -> list[Mesh]:
    """Make glasses: two rims, the bridge and the temples; dark ones have lenses that nothing is seen through."""
    _, width, height, thickness, power = person.glasses
    width, height = (width * 1.05, height * 1.05) if dark else (width, height)
    center, level, front = _GLASSES
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    cosine, sine = np.cos(angle), np.sin(angle)
    x = width * np.sign(cosine) * np.abs(cosine) ** (2 / power)
    y = height * np.sign(sine) * np.abs(sine) ** (2 / power) - 0.02
    meshes = []
    for side in (-1, 1):
        rim = np.column_stack([side * center + x, level + y, front - 0.25 * (side * center + x) ** 2])
        meshes.append(_tube(rim, thickness, "frame", closed=True))
        hinge = [side * (center + width), level + 0.05, front - 0.25 * (center + width) ** 2]
        temple = np.array([hinge, [side * 0.76, level + 0.06, 0.9], [side * 0.78, level + 0.07, 0.4]])
        meshes.append(_tube(temple, thickness, "frame"))
        if dark:
            middle = rim.mean(0) + np.array((0, 0, 0.02))
            fan = np.arange(28)
            faces = np.column_stack([np.full(28, 28), fan, (fan + 1) % 28])
            meshes.append(Mesh(np.vstack([rim, middle]).astype(np.float32), faces, "lens"))
    gap = center - width
    bridge = np.array([[-gap, level, front], [0, level + 0.03, front + 0.06], [gap, level, front]])
    meshes.append(_tube(bridge, thickness, "frame"))
    return meshes


def bill(height: float) -> Mesh:
    """Make the bill of a cap whose edge is at a height."""
    turn, out = np.meshgrid(np.linspace(-1.15, 1.15, 15), np.linspace(-0.4, 1, 7))
    reach = 0.62 * out * np.cos(turn * 0.9)
    x = (0.80 + 0.15 * reach) * np.sin(turn)
    z = 0.30 + 1.12 * np.cos(turn) + reach
    y = height - 0.20 * reach.clip(0) - 0.12 * np.sin(turn) ** 2 * out.clip(0)
    return _sheet(x, y, z, "cloth")


def curtain(person: Person, scene: Scene) -> list[Mesh]:
    """Make hair that hangs down at the sides and behind."""
    low = 7.28 - person.length * (0.6 if person.style == "medium" else 1.0)
    start = 0.95 + 0.10 * person.parting
    end = 2 * np.pi - 0.95 + 0.10 * person.parting
    turn, down = np.meshgrid(np.linspace(start, end, 41), np.linspace(0, 1, 16))
    bulge = np.clip(down / 0.3, 0, 1)
    bulge = bulge * bulge * (3 - 2 * bulge)
    wave = 0.03 * (0.3 + person.curl) * np.sin(9 * turn + 14 * down + 6 * person.parting)
    swell = 0.28 + 0.6 * person.volume * scene.volume
    x = _AROUND_HEAD[0] + (0.60 + swell * bulge + wave) * np.sin(turn)
    z = _AROUND_HEAD[1] + (0.75 + swell * bulge + wave) * np.cos(turn)
    ragged = 0.06 * np.sin(23 * turn) * down
    return [_sheet(x, 7.98 + (low - 7.98) * down + ragged, z, "curtain")]


def fingers(scene: Scene) -> list[Mesh]:
    """Make fingers that lie on a cheek, the mouth or the chin."""
    aside, above = scene.place
    side = 1.0 if aside >= 0 else -1.0
    tip = np.array([side * (0.05 + 0.35 * abs(aside)), 6.55 + 0.25 * above, 1.62 - 0.5 * abs(aside) ** 2])
    along = np.array([side * 0.75, -0.65, -0.42])
    across = np.array([side * 0.17, 0.2, -0.06])
    meshes = []
    for number, length in enumerate((0.0, 0.08, 0.05, -0.06)):
        start = tip + (1.5 - number) * across - length * along
        meshes.append(_tube(start + np.linspace(0, 1.3, 7)[:, None] * along, 0.115, "hand", sides=8))
    return meshes


def mask(vertices: NDArray[np.float32], nose: NDArray[np.float32], scene: Scene) -> Mesh:
    """Make a cloth from the nose over the chin to the cheeks.

    Args:
        vertices: (V, 3) of the person's head, which the cloth has to cover.
        nose: (3,), its tip.
        scene: for how the cloth sits.
    """
    open_jaw = scene.expression.get("jawOpen", 0.0)
    aside, down = np.meshgrid(np.linspace(-1, 1, 25), np.linspace(0, 1, 17))
    top = nose[1] + 0.14 + 0.04 * scene.place[1]
    bottom = nose[1] - 0.80 - 0.22 * open_jaw
    x = 0.80 * aside * (1 - 0.25 * down**2)
    y = top + (bottom - top) * down - 0.16 * aside**2 * (1 - 1.6 * down) + 0.02 * scene.place[0] * aside
    z = _dome(x, y - nose[1])
    region = (
        (np.abs(vertices[:, 0]) < 0.5) & (vertices[:, 1] < top) & (vertices[:, 1] > bottom) & (vertices[:, 2] > 0.8)
    )
    held = vertices[region]
    lift = (held[:, 2] - _dome(held[:, 0] - nose[0], held[:, 1] - nose[1])).max() + 0.02
    folds = 0.010 * np.sin(26 * y) * (1 - aside**2)
    return _sheet(x + nose[0], y, z + lift + folds, "cloth")


def _dome(x: NDArray[np.float64], rise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far a mask bulges forward at a place beside and above the tip of the nose."""
    bulge: NDArray[np.float64] = (
        -1.35 * np.abs(x) ** 2.1 - 0.30 * (rise + 0.1) ** 2 - 1.2 * (rise - 0.02).clip(0) ** 1.5
    )
    return bulge


def _sheet(x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64], material: str) -> Mesh:
    """Join a grid of points, (R, C), to a sheet that is seen from both sides."""
    rows, columns = x.shape
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    quads = np.column_stack([corner, corner + 1, corner + columns + 1, corner + columns])
    front = np.concatenate([quads[:, [0, 2, 1]], quads[:, [0, 3, 2]]])
    points = np.column_stack([x.ravel(), y.ravel(), z.ravel()]).astype(np.float32)
    both = np.concatenate([front, front[:, ::-1] + len(points)])
    return Mesh(np.concatenate([points, points]), both, material)


def _tube(path: NDArray[np.float64], radius: float, material: str, *, sides: int = 5, closed: bool = False) -> Mesh:
    """Lay a tube around a path, (P, 3); open ends are rounded off."""
    if not closed:
        first, last = path[0] - path[1], path[-1] - path[-2]
        first, last = first / np.linalg.norm(first), last / np.linalg.norm(last)
        path = np.vstack([path[0] + 0.8 * radius * first, path, path[-1] + 0.8 * radius * last])
    count = len(path)
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0)
    if not closed:
        ahead[0], ahead[-1] = path[1] - path[0], path[-1] - path[-2]
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    one = np.cross(ahead, (0.3, 0.2, 1.0))
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    two = np.cross(ahead, one)
    width = np.full(count, radius)
    if not closed:
        width[[0, -1]] *= 0.35
    angle = np.arange(sides) * (2 * np.pi / sides)
    ring = np.cos(angle)[:, None] * one[:, None] + np.sin(angle)[:, None] * two[:, None]
    points = (path[:, None] + width[:, None, None] * ring).reshape(-1, 3)
    row, column = np.divmod(np.arange((count if closed else count - 1) * sides), sides)
    here, there = row * sides, (row + 1) % count * sides
    aside = (column + 1) % sides
    quads = np.column_stack([here + column, here + aside, there + aside, there + column])
    faces = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]])
    if not closed:
        fan = np.arange(1, sides - 1)
        start = np.column_stack([np.zeros_like(fan), fan + 1, fan])
        finish = np.column_stack([np.zeros_like(fan), fan, fan + 1]) + (count - 1) * sides
        faces = np.concatenate([faces, start, finish])
    return Mesh(points.astype(np.float32), faces, material)
