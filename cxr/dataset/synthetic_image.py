"""Draw one synthetic chest X-ray with the patterns of its class.

Image coordinates: u to the right (the patient's left), v downwards, both about -1 to 1 over the image. All layers are
formulas over the whole (H, W) grid; their sum is attenuation, which is bright in the image.

Classes differ in shape and texture. Mean and standard deviation of the grey levels are drawn independently of the
class, so that exposure does not reveal it.
"""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.classes import Label

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Anatomy:
    """The anatomy of one patient; lengths in image coordinates."""

    body: float
    shoulder_v: float
    neck: float
    arm_angle: float
    lung_u: float
    lung_width: float
    lung_top: float
    dome: tuple[float, float]
    heart: tuple[float, float, float, float]
    spine: float
    rib_spacing: float
    rib_phase: float
    rib_bend: float
    rib_contrast: float
    clavicle: float
    soft_tissue: float
    stomach: tuple[float, float, float]


@dataclass(frozen=True)
class Finding:
    """The finding of a patient: blobs (side, height, depth, size, strength) and strength of the reticular pattern."""

    blobs: tuple[tuple[float, float, float, float, float], ...] = ()
    reticular: float = 0.0


@dataclass(frozen=True)
class Look:
    """The appearance of one hospital's images."""

    grey_mean: tuple[float, float]
    grey_std: tuple[float, float]
    noise: float
    sharpness_px: float
    markers: tuple[str, ...]
    border: float
    sides_px: tuple[int, int] = (300, 420)
    zoom: tuple[float, float] = field(default=(0.85, 1.15))


KERMANY_LOOK = Look((100, 145), (46, 64), 0.018, 0.9, ("R", "L", ""), 0.0)
COVID19_LOOK = Look((112, 150), (52, 70), 0.010, 0.5, ("AP", "PORTABLE", "AP SUPINE"), 0.05, zoom=(0.8, 1.0))


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the anatomy of one patient."""
    draw = rng.uniform
    return Anatomy(
        body=draw(0.74, 0.92),
        shoulder_v=draw(-0.9, -0.7),
        neck=draw(0.2, 0.34),
        arm_angle=draw(-1.2, 0.9),
        lung_u=draw(0.37, 0.43),
        lung_width=draw(0.27, 0.34),
        lung_top=draw(-0.74, -0.58),
        dome=(draw(0.28, 0.5), draw(0.34, 0.58)),
        heart=(draw(0.08, 0.16), draw(0.12, 0.26), draw(0.26, 0.38), draw(0.28, 0.38)),
        spine=draw(0.07, 0.1),
        rib_spacing=draw(0.125, 0.175),
        rib_phase=draw(0, 1),
        rib_bend=draw(0.5, 1.5),
        rib_contrast=draw(0.06, 0.13),
        clavicle=draw(-0.05, 0.3),
        soft_tissue=draw(0.28, 0.42),
        stomach=(draw(0.25, 0.5), draw(0.7, 0.85), draw(0, 0.14)),
    )


def draw_finding(label: Label, rng: np.random.Generator) -> Finding:
    """Draw the finding of a patient of this class."""
    draw = rng.uniform
    if label == "bacterial":  # lobar: one dense, focal consolidation
        side = float(rng.choice([-1, 1]))
        return Finding(blobs=((side, draw(0.15, 0.9), draw(0.3, 0.7), draw(0.17, 0.3), draw(0.75, 1.0)),))
    if label == "viral":  # interstitial: fine lines through both lungs
        return Finding(reticular=draw(0.5, 0.85))
    if label == "covid":  # ground glass: several faint patches in the periphery of both lungs
        patches = [
            (float(side), draw(0.3, 1.0), draw(0.75, 1.0), draw(0.12, 0.2), draw(0.5, 0.75))
            for side in (-1, 1)
            for _ in range(rng.integers(2, 5))
        ]
        return Finding(blobs=tuple(patches), reticular=0.15)
    return Finding()


def draw_image(anatomy: Anatomy, finding: Finding, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw an image of a patient with random pose, size, exposure and noise; (H, W) uint8."""
    height, width = (int(side) for side in rng.integers(*look.sides_px, size=2, endpoint=True))
    u, v = _pose(height, width, look, rng)
    attenuation, lungs = _thorax(anatomy, u, v)
    attenuation += lungs * (_vessels(anatomy, u, v, rng) + _pathology(anatomy, finding, u, v, rng))
    attenuation += look.noise * rng.standard_normal(attenuation.shape, dtype=np.float32)
    blurred = np.asarray(cv2.GaussianBlur(attenuation, (0, 0), look.sharpness_px), dtype=np.float32)
    grey = _expose(blurred, look, rng)
    return _frame(grey, look, rng)


def _step(distance: Plane, softness: float) -> Plane:
    """Return a smooth step from 0 to 1 at distance 0, `softness` wide on both sides."""
    # In place: half of the time of an image goes into this function, and most of it into fresh memory.
    t: Plane = distance * (0.5 / softness)
    t += 0.5
    np.clip(t, 0, 1, out=t)
    slope: Plane = 2 * t
    np.subtract(3, slope, out=slope)
    t *= t
    t *= slope
    return t


def _bump(distance: Plane, width: float) -> Plane:
    bump: Plane = np.exp(-np.square(distance * (1 / width)))
    return bump


def _cloud(shape: tuple[int, ...], cells: float, rng: np.random.Generator) -> Plane:
    """Return smooth noise with about unit variance and `cells` blobs across the image."""
    height, width = shape
    coarse = rng.standard_normal((max(round(cells * height / width), 2), max(round(cells), 2)), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _pose(height: int, width: int, look: Look, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Return u and v of each pixel, both (H, W)."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.normal(0, 0.04)
    zoom = float(rng.uniform(*look.zoom))
    zoom_u, zoom_v = zoom * rng.uniform(0.9, 1.1), zoom * rng.uniform(0.9, 1.1)
    shift_u, shift_v = rng.uniform(-0.1, 0.1), rng.uniform(-0.14, 0.1)
    across: Plane = math.cos(angle) * x - math.sin(angle) * y
    down: Plane = math.sin(angle) * x + math.cos(angle) * y
    return across * (1 / zoom_u) + shift_u, down * (1 / zoom_v) + shift_v


def _thorax(anatomy: Anatomy, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Return the attenuation of a healthy thorax and the lung fields' weight 0 to 1, both (H, W)."""
    a: Plane = np.abs(u)
    half_width = _body_half_width(anatomy, v)
    body = np.maximum(_step(half_width - a, 0.04), _arms(anatomy, a, v))
    lungs, below = _lung_fields(anatomy, u, v)
    heart = _heart(anatomy, u, v)
    lungs *= 1 - 0.8 * heart
    thickness = np.sqrt(np.clip(1 - np.square(a / np.maximum(half_width, 0.05)), 0, 1))
    attenuation = body * anatomy.soft_tissue + 0.3 * thickness
    attenuation += 0.22 * below * body
    attenuation -= lungs * (0.34 + 0.1 * np.square(a - anatomy.lung_u))
    attenuation += np.maximum(heart * 0.14 * (1 - below), _midline(anatomy, u, v))
    attenuation += _bones(anatomy, a, v, below) * body
    gas_u, gas_v, gas = anatomy.stomach
    attenuation -= gas * _step(1 - np.hypot((u - gas_u) / 0.16, (v - gas_v) / 0.1), 0.4)
    return attenuation, lungs


def _body_half_width(anatomy: Anatomy, v: Plane) -> Plane:
    shoulders = _step(v - anatomy.shoulder_v, 0.12)
    waist = 0.1 * _step(v + 0.35, 0.35) - 0.08 * _step(v - 0.4, 0.5)
    half_width: Plane = anatomy.neck + shoulders * (anatomy.body + 0.1 - anatomy.neck) - waist
    return half_width


def _arms(anatomy: Anatomy, a: Plane, v: Plane) -> Plane:
    """Return the upper arms: bars from the shoulders at the patient's angle, with the bone inside."""
    along_u, along_v = math.cos(anatomy.arm_angle), math.sin(anatomy.arm_angle)
    du, dv = a - anatomy.body, v - (anatomy.shoulder_v + 0.2)
    along: Plane = du * along_u + dv * along_v
    across: Plane = np.abs(dv * along_u - du * along_v)
    arm: Plane = _step(along + 0.05, 0.1) * (0.7 * _step(0.15 - across, 0.03) + 0.4 * _step(0.05 - across, 0.02))
    return arm


def _lung_fields(anatomy: Anatomy, u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Return the weights of the lung fields and of the region below the diaphragm."""
    lungs = np.zeros_like(u)
    below = np.zeros_like(u)
    for side, dome in zip((-1, 1), anatomy.dome, strict=True):
        own = u * side
        diaphragm = dome + 1.1 * np.square(own - (anatomy.lung_u - 0.06))
        span = dome - anatomy.lung_top
        bottom_heavy = anatomy.lung_width * (0.84 + 0.2 * (v - anatomy.lung_top) / span)
        centre = anatomy.lung_u + 0.05 * (v + 0.1)
        round_off = np.square(np.square((v - dome) / span))
        radius = np.square((own - centre) / np.maximum(bottom_heavy, 0.05)) + round_off
        lungs += _step(1 - radius, 0.16) * _step(diaphragm - v, 0.03) * _step(own, 0.02)
        below += _step(v - diaphragm, 0.04) * _step(own, 0.06)
    return lungs, below


def _heart(anatomy: Anatomy, u: Plane, v: Plane) -> Plane:
    centre_u, centre_v, radius_u, radius_v = anatomy.heart
    du, dv = u - centre_u, v - centre_v
    across, along = 0.88 * du - 0.47 * dv, 0.47 * du + 0.88 * dv  # the axis points to the patient's left hip
    distance: Plane = np.hypot(across / (radius_u * 0.85), along / (radius_v * 1.15))
    return _step(1 - distance, 0.12)


def _midline(anatomy: Anatomy, u: Plane, v: Plane) -> Plane:
    """Return mediastinum and vertebrae, less the air in the windpipe."""
    column = np.square(_bump(u, anatomy.spine * 2.1)) * 0.3
    vertebrae = _bump(u, anatomy.spine) * (0.06 + 0.04 * np.cos(v * (math.tau / 0.14)))
    windpipe = 0.1 * _bump(u + 0.01, 0.035) * _step(-0.3 - v, 0.1)
    midline: Plane = column + vertebrae - windpipe
    return midline


def _bones(anatomy: Anatomy, a: Plane, v: Plane, below: Plane) -> Plane:
    """Return posterior and anterior ribs, the edge of the rib cage and the collar bones."""
    edge = anatomy.lung_u + anatomy.lung_width * 0.93 + 0.1 * (v + 0.1)
    cage = _step(edge - a, 0.03) * _step(v + 0.85, 0.05) * (1 - 0.6 * below) * _step(a - 0.08, 0.04)
    arc: Plane = anatomy.rib_bend * np.square(a - 0.22)
    behind = _rib_profile(anatomy, v - arc + 0.15 * a)
    in_front = _rib_profile(anatomy, v + 0.04 + 0.75 * a) * _step(a - 0.3, 0.1) * _step(0.35 - v, 0.1)
    bones: Plane = anatomy.rib_contrast * cage * (behind * (0.7 + 0.8 * a) + 0.5 * in_front)
    bones += 0.1 * _bump(a - edge, 0.03) * _step(v + 0.7, 0.1) * (1 - below)
    collar = v - (anatomy.lung_top + 0.1) + anatomy.clavicle * (a - 0.3) - 0.5 * np.square(a - 0.45)
    bones += 0.14 * _bump(collar, 0.035) * _step(a - 0.07, 0.03) * _step(0.8 - a, 0.05)
    return bones


def _rib_profile(anatomy: Anatomy, height: Plane) -> Plane:
    """Return evenly spaced bars along `height`, brighter at their edges like the cortex of a rib."""
    turns = height * (1 / anatomy.rib_spacing) + anatomy.rib_phase
    offset: Plane = np.abs(turns - np.round(turns))
    profile: Plane = _step(0.24 - offset, 0.06) * 0.6 + 0.5 * _bump(offset - 0.2, 0.06)
    return profile


def _vessels(anatomy: Anatomy, u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Return the vessels of a healthy lung: coarse, near the hilum."""
    from_hilum: Plane = np.hypot(np.abs(u) - (anatomy.lung_u - 0.15), (v - 0.02) * 0.8)
    near = _bump(from_hilum, 0.3)
    vessels: Plane = (0.02 + 0.08 * near) * _cloud(u.shape, 26, rng) + 0.05 * near
    return vessels


def _pathology(anatomy: Anatomy, finding: Finding, u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Return the attenuation that the finding adds inside the lung fields."""
    added = np.zeros_like(u)
    ragged = 1 + 0.22 * _cloud(u.shape, 12, rng)
    for side, height, depth, size, strength in finding.blobs:
        dome = anatomy.dome[side > 0]
        centre_v = anatomy.lung_top + 0.12 + height * (dome - anatomy.lung_top - 0.2)
        inner = anatomy.lung_u - anatomy.lung_width
        centre_u = side * (inner + depth * 2 * anatomy.lung_width)
        distance: Plane = np.hypot(u - centre_u, (v - centre_v) * 0.9) * ragged
        np.maximum(added, 0.3 * strength * _step(size - distance, 0.09), out=added)
    if finding.reticular:
        lines = _bump(_cloud(u.shape, 24, rng), 0.3) + 0.7 * _bump(_cloud(u.shape, 34, rng), 0.3) - 0.55
        patchy = np.clip(1 + 0.25 * _cloud(u.shape, 4, rng), 0.4, 1.4)
        added += (0.2 * finding.reticular) * lines * patchy
    return added


def _expose(attenuation: Plane, look: Look, rng: np.random.Generator) -> Plane:
    """Return grey levels with random mean, standard deviation and gamma, independent of the class."""
    low, high = (float(level) for level in np.percentile(attenuation[::4, ::4], (0.5, 99.5)))
    unit: Plane = np.clip((attenuation - low) / (high - low), 0, 1) ** rng.uniform(0.8, 1.25)
    standard = (unit - float(unit.mean())) * (1 / float(unit.std()))
    return standard * float(rng.uniform(*look.grey_std)) + float(rng.uniform(*look.grey_mean))


def _frame(grey: Plane, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Round to 8 bits and add the side marker and the collimator's border."""
    image: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    height, width = image.shape
    if look.border:
        rim = round(look.border * rng.uniform(0.4, 1) * width)
        image[:rim], image[-rim:], image[:, :rim], image[:, -rim:] = 0, 0, 0, 0
    marker = str(rng.choice(look.markers))
    at = (int(width * rng.uniform(0.04, 0.12)), int(height * rng.uniform(0.08, 0.2)))
    cv2.putText(image, marker, at, cv2.FONT_HERSHEY_SIMPLEX, width / 700 + 0.1, 240, 2, cv2.LINE_AA)
    return image
