"""What pictures have beside captions: masks, control pictures, points of interest. Torch-free."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.data.crops import Box
from toolkit.data.findings import Findings, first_names
from toolkit.data.image_files import BLACK, IMAGE_SUFFIXES, ImageFacts, inspect_image, inspect_mask
from toolkit.data.image_memo import ImageMemo
from toolkit.data.inspection import inspect_all, walk_files
from toolkit.data.items import MaskSource
from toolkit.errors import DatasetError, Problem, did_you_mean

Facts = Mapping[str, ImageFacts]  # by a picture's path relative to its folder


@dataclass(frozen=True, slots=True)
class CompanionSettings:
    """What a dataset's pictures have beside their captions.

    mask_folder: masks of the same stems; alpha_mask: the pictures' own transparency instead. control_folders:
    each holds a control picture for every picture, laid on control_color; aligned_controls: they are cut as
    the pictures are, so they must have their proportions. poi: name of a point of interest in the JSON files
    beside the pictures.
    """

    mask_folder: Path | None = None
    alpha_mask: bool = False
    invert_mask: bool = False
    mask_min_value: float = 0.0
    control_folders: tuple[Path, ...] = ()
    control_color: tuple[int, int, int] = BLACK
    aligned_controls: bool = True
    poi: str | None = None

    @property
    def folders(self) -> list[Path]:
        """Folders whose pictures are none to train on, wherever they lie."""
        return [*([self.mask_folder] if self.mask_folder else []), *self.control_folders]


NO_COMPANIONS = CompanionSettings()


@dataclass(frozen=True, slots=True)
class Companions:
    """What one picture has."""

    mask: MaskSource | None = None
    controls: tuple[Path, ...] = ()
    poi: Box | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    """Whose companions are looked for, and where what is found on the way goes."""

    folder: Path
    facts: Facts
    settings: CompanionSettings
    findings: Findings
    memo: Path | None
    rescan: bool


def find_companions(
    folder: Path,
    facts: Facts,
    settings: CompanionSettings,
    memo: Path | None,
    findings: Findings,
    *,
    rescan: bool = False,
) -> dict[str, Companions]:
    """By the pictures' names. What is wrong or missing is added to the findings."""
    search = _Search(folder, facts, settings, findings, memo, rescan)
    masks: Mapping[str, MaskSource] = {}
    if settings.mask_folder is not None:
        masks = _masks_of_folder(search, settings.mask_folder)
    elif settings.alpha_mask:
        masks = _masks_of_pictures(search)
    controls = [_controls(search, each) for each in settings.control_folders]
    pois = {} if settings.poi is None else _pois(search, settings.poi)
    return {
        name: Companions(
            masks.get(name), tuple(each[name] for each in controls if name in each), pois.get(name)
        )
        for name in facts
    }


# -- pictures of the same stem -----------------------------------------------------------------------------


def _stem(name: str) -> str:
    """A relative path without its extension."""
    return PurePosixPath(name).with_suffix("").as_posix()


def match_stems(names: Sequence[str], files: Sequence[str]) -> dict[str, list[str]]:
    """Which of the files have a picture's relative path, whatever their extension; else, its stem alone.

    The stem alone counts only where no two pictures share it.
    """
    by_stem: dict[str, list[str]] = {}
    for file in files:
        by_stem.setdefault(_stem(file), []).append(file)
    num_named = Counter(PurePosixPath(name).stem for name in names)
    found = {}
    for name in names:
        alone = PurePosixPath(name).stem
        found[name] = by_stem.get(_stem(name)) or (by_stem.get(alone, []) if num_named[alone] == 1 else [])
    return found


def _same_proportions(first: ImageFacts, second: ImageFacts) -> bool:
    """Whether one is the other scaled, to a pixel."""
    small, large = sorted((first, second), key=lambda facts: facts.width * facts.height)
    return (
        abs(small.width * large.height / large.width - small.height) <= 1
        or abs(small.height * large.width / large.height - small.width) <= 1
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is looked for: its name, the code of its problems, and how a file of it is verified."""

    what: str
    code: str
    inspect: Callable[[Path], ImageFacts]


_MASK = _Kind("mask", "data.mask", inspect_mask)
_CONTROL = _Kind("control picture", "data.control", inspect_image)


def _beside(
    search: _Search, files_in: Path, kind: _Kind, *, aligned: bool = True
) -> dict[str, tuple[Path, ImageFacts]]:
    """The one file of each picture in another folder, with its facts; what does not fit becomes a problem."""
    problems = search.findings.problems
    if not files_in.is_dir():
        reason = "is a file, not a folder" if files_in.exists() else "no such folder"
        problems.append(Problem("data.no_folder", reason, file=str(files_in)))
        return {}
    names = [name for name in walk_files(files_in) if name.lower().endswith(IMAGE_SUFFIXES)]
    matches = match_stems(list(search.facts), names)
    if search.facts and not any(matches.values()):
        reason = f"has no {kind.what} for any of the {len(matches)} pictures of {search.folder}"
        remedy = f"a {kind.what} has its picture's name, with .png or another extension"
        problems.append(Problem(kind.code, reason, file=str(files_in), remedy=remedy))
        return {}
    for name, several in matches.items():
        if len(several) > 1:
            reason = f"has several {kind.what}s: {', '.join(several)}"
            problems.append(Problem(kind.code, reason, file=str(search.folder / name), remedy="keep one"))
    found = _verified(search, files_in, kind, {n: each[0] for n, each in matches.items() if len(each) == 1})
    for name, (path, its) in found.items():
        own = search.facts[name]
        if aligned and not _same_proportions(its, own):
            reason = f"is {its.width} x {its.height}, its picture {name} {own.width} x {own.height}"
            remedy = f"a {kind.what} must have its picture's proportions, at any size"
            problems.append(Problem(kind.code, reason, file=str(path), remedy=remedy))
    stray = dict.fromkeys(sorted({*names}.difference(*matches.values())), "belongs to no picture")
    told = f"{len(stray)} files belong to no picture"
    search.findings.odd(files_in, told, stray, code="data.stray_file")
    return found


def _verified(
    search: _Search, files_in: Path, kind: _Kind, files: Mapping[str, str]
) -> dict[str, tuple[Path, ImageFacts]]:
    """Path and facts of each picture's file; those that cannot be read become problems."""
    memo = ImageMemo(files_in, search.memo, kind=f"{kind.what}s".replace(" ", "_"), forget=search.rescan)
    wanted = list(dict.fromkeys(files.values()))
    known = inspect_all(files_in, wanted, memo, search.findings, inspect=kind.inspect)
    return {name: (files_in / file, known[file]) for name, file in files.items() if file in known}


# -- masks -------------------------------------------------------------------------------------------------


def _masks_of_folder(search: _Search, masks_in: Path) -> dict[str, MaskSource]:
    found = _beside(search, masks_in, _MASK)
    if found:
        _note_masks(search, {name: its.mask_range for name, (_, its) in found.items()})
    return {name: _source(path, search.settings) for name, (path, _) in found.items()}


def _masks_of_pictures(search: _Search) -> dict[str, MaskSource]:
    facts = search.facts
    ranges = {name: its.mask_range for name, its in facts.items() if its.mask_range is not None}
    if not ranges and facts:
        reason = f"none of the {len(facts)} pictures has transparency, which alpha_mask takes for the mask"
        problem = Problem("data.mask", reason, file=str(search.folder), remedy="leave it out")
        search.findings.problems.append(problem)
        return {}
    _note_masks(search, ranges)
    return {name: _source(search.folder / name, search.settings, from_alpha=True) for name in ranges}


def _source(path: Path, settings: CompanionSettings, *, from_alpha: bool = False) -> MaskSource:
    return MaskSource(path, from_alpha, settings.invert_mask, settings.mask_min_value)


def _note_masks(search: _Search, ranges: Mapping[str, tuple[int, int] | None]) -> None:
    """Tell of pictures without a mask, and of masks that let nothing count."""
    missing = dict.fromkeys((name for name in search.facts if name not in ranges), "has no mask")
    search.findings.odd(
        search.folder,
        f"{len(missing)} of {len(search.facts)} pictures have no mask; all of them counts",
        missing,
        code="data.no_mask",
    )
    if search.settings.mask_min_value > 0:
        return
    nothing = (255, 255) if search.settings.invert_mask else (0, 0)
    empty = [name for name, values in ranges.items() if values == nothing]
    search.findings.odd(
        search.folder,
        f"{len(empty)} pictures teach nothing, because their masks leave all of them out",
        dict.fromkeys(empty, "teaches nothing, because its mask leaves all of it out"),
        code="data.empty_mask",
    )


# -- control pictures --------------------------------------------------------------------------------------


def _controls(search: _Search, controls_in: Path) -> dict[str, Path]:
    """The control picture of every picture; a missing one is a problem."""
    found = _beside(search, controls_in, _CONTROL, aligned=search.settings.aligned_controls)
    missing = [name for name in search.facts if name not in found]
    if found and missing:
        reason = f"has no usable control picture for {len(missing)} of {len(search.facts)} pictures"
        problem = Problem("data.control", f"{reason}: {first_names(missing)}", file=str(controls_in))
        search.findings.problems.append(problem)
    return {name: path for name, (path, _) in found.items()}


# -- points of interest ------------------------------------------------------------------------------------


def _pois(search: _Search, wanted: str) -> dict[str, Box]:
    """The box of the wanted name in the JSON file beside each picture that has one."""
    facts, problems = search.facts, search.findings.problems
    boxes: dict[str, Box] = {}
    others: dict[str, None] = {}
    num_before = len(problems)
    for name, its in facts.items():
        path = (search.folder / name).with_suffix(".json")
        try:
            told = read_pois(path)
            if wanted in told:
                boxes[name] = _inside(told[wanted], its, path, wanted)
        except DatasetError as error:
            problems.extend(error.problems)
            continue
        others |= dict.fromkeys(told)
    if len(problems) > num_before:
        return boxes
    if not boxes and facts:
        guess = did_you_mean(wanted, others)
        known = f"they name {first_names(others)}" if others else "there is no `poi` in any of them"
        remedy = f"did you mean '{guess}'?" if guess else known
        reason = f"no JSON file beside the {len(facts)} pictures has the point of interest '{wanted}'"
        problems.append(Problem("data.poi", reason, file=str(search.folder), remedy=remedy))
        return boxes
    missing = [name for name in facts if name not in boxes]
    search.findings.odd(
        search.folder,
        f"{len(missing)} of {len(facts)} pictures have no point of interest '{wanted}': cut as without it",
        dict.fromkeys(missing, f"has no point of interest '{wanted}'"),
        code="data.no_poi",
    )
    return boxes


def read_pois(path: Path) -> dict[str, Box]:
    """Name -> (left, top, right, bottom), from the `poi` of a picture's JSON file.

    Such as {"poi": {"face": {"x": 10, "y": 20, "width": 30, "height": 40}}}, in pixels. A
    point has neither width nor height. No file or no `poi` is an empty answer. Raises DatasetError.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise _wrong(path, f"not valid JSON: {error}") from error
    told = content.get("poi", {}) if isinstance(content, dict) else {}
    if not isinstance(told, dict):
        raise _wrong(path, '`poi` must be an object such as {"face": {"x": 10, "y": 20}}')
    return {name: _box(path, name, value) for name, value in told.items()}


def _wrong(path: Path, reason: str) -> DatasetError:
    return DatasetError(Problem("data.poi", reason, file=str(path)))


def _box(path: Path, name: str, value: Any) -> Box:
    sides: list[Any] = (
        [value.get(key, default) for key, default in _SIDES] if isinstance(value, dict) else [None]
    )
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in sides):
        raise _wrong(path, f"'{name}' needs x and y, and for a box width and height, as numbers of pixels")
    x, y, width, height = map(float, sides)
    if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
        raise _wrong(path, f"'{name}' has numbers that are no box: {value}")
    return x, y, x + width, y + height


_SIDES = (("x", None), ("y", None), ("width", 0), ("height", 0))


def _inside(box: Box, facts: ImageFacts, path: Path, name: str) -> Box:
    """The part of a box that lies in its picture. Raises DatasetError if none does."""
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[2], float(facts.width)), min(box[3], float(facts.height))
    if left > right or top > bottom:
        raise _wrong(path, f"'{name}' lies outside of its picture of {facts.width} x {facts.height} pixels")
    return left, top, right, bottom
