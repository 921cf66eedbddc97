"""A person's head in one picture, as a mesh: shape, expression, hair, what is worn, and the camera in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from opqn.data.synthetic import props
from opqn.data.synthetic.anatomy import Anatomy, add, normals_of, turned
from opqn.data.synthetic.hair import hair_depth, hat_depth, hat_edge
from opqn.data.synthetic.people import Person
from opqn.data.synthetic.scenes import Scene
from opqn.data.synthetic.wheel import MATERIALS as HEAD_MATERIALS

MATERIALS: Final = (*HEAD_MATERIALS, "curtain", "frame", "lens", "cloth", "hand")
TEMPLATE: Final = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""(5, 2) pixels x, y in a crop of 112 x 112: eyes, nose, corners of the mouth, left to right as the viewer sees them;
where face networks expect them (J. Deng et al.: ArcFace. CVPR 2019)."""
_PIVOT: Final = np.array((0.0, 7.1, 0.5), np.float32)
_EYE_FRONT: Final = 0.12


@dataclass(frozen=True)
class Figure:
    """What the camera is given.

    Attributes:
        places: (V, 2) float32 pixels of the picture, x and y.
        nearness: (V,) float32, larger is nearer to the camera.
        normals: (V, 3) float32, to the right, up and towards the camera.
        neutral: (V, 3) float32, where each point lies on the neutral head, by which its skin is known.
        faces: (T, 3) int64.
        materials: (T,) int64, positions in :data:`MATERIALS`.
        num_head: how many of the vertices are the head's; those after are what is worn.
        turn: (3, 3) float32, from the frame of the head to that of the camera.
        eyes: (2, 3) float32, the middle of the left and right eyeball on the neutral head.
        landmarks: (5, 2) float64 pixels, in the order of :data:`TEMPLATE`.
    """

    places: NDArray[np.float32]
    nearness: NDArray[np.float32]
    normals: NDArray[np.float32]
    neutral: NDArray[np.float32]
    faces: NDArray[np.int64]
    materials: NDArray[np.int64]
    num_head: int
    turn: NDArray[np.float32]
    eyes: NDArray[np.float32]
    landmarks: NDArray[np.float64]


def shape_of(person: Person, anatomy: Anatomy, age: float = 0.0) -> NDArray[np.float32]:
    """Return the person's head without expression, (V, 3) float32; ``age`` is added to the person's."""
    head = anatomy.head
    vertices = head.vertices.copy()
    old = min(1.0, max(0.0, person.age + age))
    heavy = abs(person.weight)
    build = "maxweight" if person.weight > 0 else "minweight"
    for sex, sex_share in (("male", person.male), ("female", 1 - person.male)):
        for years, age_share in (("young", 1 - old), ("old", old)):
            share = sex_share * age_share
            for kind, kind_share in zip(("african", "asian", "caucasian"), person.ancestry, strict=True):
                add(vertices, head.ancestry[kind, sex, years], share * kind_share)
            add(vertices, head.build[sex, years, "averageweight"], share * (1 - heavy))
            add(vertices, head.build[sex, years, build], share * heavy)
    for name, weight in person.shapes.items():
        low, high = head.shapes[name]
        add(vertices, high if weight > 0 else low, abs(weight))
    return vertices


def build_figure(person: Person, scene: Scene, anatomy: Anatomy, size: int) -> Figure:
    """Shape the head, dress it, turn it, and look at it so that its landmarks come to lie on the template.

    Args:
        person: who it is.
        scene: of the picture.
        anatomy: the neutral head.
        size: height and width of the picture in pixels.
    """
    head = anatomy.head
    calm = shape_of(person, anatomy, scene.age)
    vertices = calm.copy()
    for unit, weight in scene.expression.items():
        add(vertices, head.expressions[unit], weight)
    points = _landmark_points(vertices, anatomy)
    _grow_hair(vertices, person, scene, anatomy)
    worn = _worn(person, scene, anatomy, calm)
    if scene.occlusion == "mask":
        worn.append(props.mask(vertices, points[2], scene))
    all_points = np.concatenate([vertices, *(mesh.vertices for mesh in worn)])
    starts = np.cumsum([len(vertices), *(len(mesh.vertices) for mesh in worn)])
    faces = np.concatenate([head.faces, *(mesh.faces + at for mesh, at in zip(worn, starts, strict=False))])
    materials = np.concatenate(
        [head.materials, *(np.full(len(mesh.faces), MATERIALS.index(mesh.material)) for mesh in worn)]
    )
    turn = _turn(scene)
    seen, nearness = _project(all_points, turn, scene.distance)
    flat, _ = _project(points, turn, scene.distance)
    scale, shift = _alignment(flat, scene, size)
    spots = _as_complex(flat) * scale + shift
    placed = _as_complex(seen) * scale + shift
    return Figure(
        places=np.column_stack([placed.real, placed.imag]).astype(np.float32),
        nearness=nearness,
        normals=turned(normals_of(all_points, faces), turn),
        neutral=np.concatenate([head.vertices, *(mesh.vertices for mesh in worn)]),
        faces=faces,
        materials=materials,
        num_head=len(vertices),
        turn=turn,
        eyes=np.stack([head.vertices[eye].mean(0) for eye in head.eyes]),
        landmarks=np.column_stack([spots.real, spots.imag]),
    )


def _landmark_points(vertices: NDArray[np.float32], anatomy: Anatomy) -> NDArray[np.float32]:
    left, right = (vertices[eye].mean(0) + np.array((0, 0, _EYE_FRONT), np.float32) for eye in anatomy.head.eyes)
    return np.stack([right, left, vertices[anatomy.nose], *vertices[list(anatomy.mouth)]])


def _grow_hair(vertices: NDArray[np.float32], person: Person, scene: Scene, anatomy: Anatomy) -> None:
    """Move the scalp outward, in place, where hair or a hat is."""
    x, y, z = anatomy.head.vertices.T
    outward = anatomy.head.vertices - np.array((0, 7.2, 0.1), np.float32)
    outward /= np.sqrt((outward * outward).sum(1, keepdims=True))
    depth = hair_depth(x, y, anatomy.around, anatomy.head.ears, person, scene)
    thickness = {"bald": 0.0, "short": 0.7, "medium": 1.0, "long": 0.9}[person.style] * person.volume * scene.volume
    lumps = 1 + 0.35 * person.curl * np.sin(17 * x + 4) * np.sin(15 * y) * np.sin(16 * z)
    grown = thickness * lumps * np.clip(depth / 0.25, 0, 1) ** 0.7
    if scene.occlusion == "hat":
        inside = np.clip(hat_depth(y, z, scene) / 0.06, 0, 1)
        grown = np.minimum(grown, 0.10) * (1 - inside) + inside * (0.09 + 0.05 * np.clip(y - 8.1, 0, 1))
    vertices += outward * grown[:, None].astype(np.float32)


def _worn(person: Person, scene: Scene, anatomy: Anatomy, calm: NDArray[np.float32]) -> list[props.Mesh]:
    x, y, z = anatomy.head.vertices.T
    meshes: list[props.Mesh] = []
    if scene.occlusion in {"glasses", "sunglasses"}:
        near = np.flatnonzero((np.abs(x) < 0.5) & (y > 7.05) & (y < 7.5) & (z > 1.0))
        mapping = props.fit_to(anatomy.head.vertices[near], calm[near])
        dark = scene.occlusion == "sunglasses"
        meshes += [props.carry(mesh, mapping) for mesh in props.glasses(person, dark=dark)]
    whole = np.flatnonzero((y > 6.6) & (z > -0.9))
    mapping = props.fit_to(anatomy.head.vertices[whole], calm[whole])
    if person.style in {"medium", "long"}:
        meshes += [props.carry(mesh, mapping) for mesh in props.curtain(person, scene)]
    if scene.occlusion == "hat" and scene.place[0] > 0:
        height = hat_edge(scene) + 0.13
        meshes.append(props.carry(props.bill(height), mapping))
    if scene.occlusion == "hand":
        meshes += [props.carry(mesh, mapping) for mesh in props.fingers(scene)]
    return meshes


def _turn(scene: Scene) -> NDArray[np.float32]:
    yaw, pitch, roll = np.radians((scene.yaw, scene.pitch, scene.roll))
    aside = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    upward = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    lean = np.array([[np.cos(roll), np.sin(roll), 0], [-np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    turn: NDArray[np.float32] = (lean @ upward @ aside).astype(np.float32)
    return turn


def _project(
    points: NDArray[np.float32], turn: NDArray[np.float32], distance: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return x to the right and y downward, (P, 2), and nearness, (P,)."""
    moved = turned(points - _PIVOT, turn)
    away = np.maximum(np.float32(distance) - moved[:, 2:], np.float32(0.5))
    return moved[:, :2] * np.array((1, -1), np.float32) / away, -away[:, 0]


def _as_complex(points: NDArray[Any]) -> NDArray[np.complex128]:
    return points[:, 0].astype(np.float64) + 1j * points[:, 1]


def _alignment(flat: NDArray[np.float32], scene: Scene, size: int) -> tuple[complex, complex]:
    """Return a and b of the similarity transform a z + b to the template, in the least-squares sense, and what it errs.

    A pixel's centre is at 0.5; the template counts from the centre of the first pixel.
    """
    unit = size / 112
    z, w = _as_complex(flat), _as_complex(TEMPLATE + 0.5) * unit
    centred = z - z.mean()
    a = np.vdot(centred, w - w.mean()) / np.vdot(centred, centred).real
    error = scene.zoom * np.exp(1j * np.radians(scene.turn))
    middle = w.mean() + complex(*scene.shift) * unit
    return complex(a * error), complex(middle - a * error * z.mean())
