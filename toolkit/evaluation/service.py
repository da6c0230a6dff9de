"""An evaluation from beginning to end: scan, load, measure, report. The tool and `job: eval` call it."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from toolkit.data.captions import normalize_extension
from toolkit.data.items import MediaItem
from toolkit.data.scan import scan_dataset
from toolkit.errors import ConfigError, DatasetError, Problem
from toolkit.evaluation.contrasts import design_hash, sampled
from toolkit.evaluation.debug_logs import DebugLogs
from toolkit.evaluation.draws import noise_std
from toolkit.evaluation.edits import Edit, Vocabulary, leave_one_out, swap_one
from toolkit.evaluation.encodings import Encodings
from toolkit.evaluation.evaluate import Evaluator, Outcome, Settings, key_of
from toolkit.evaluation.measure import content_of
from toolkit.evaluation.near_duplicates import twins
from toolkit.evaluation.records import RecordFile
from toolkit.evaluation.report import ImageReport, Report, RunReport, report_name
from toolkit.evaluation.summary import Context, dataset_report, summarise
from toolkit.model_utils import AppliedLora, apply_lora
from toolkit.models.catalogue import find_architecture
from toolkit.models.geometry import read_json, size_multiple
from toolkit.paths import cache_root, resolve_model, resolve_path
from toolkit.runs import atomic
from toolkit.stable_diffusion_model import StableDiffusion

if TYPE_CHECKING:
    from toolkit.models.base import Architecture

USUAL_RESOLUTION = 256
MAX_SWAPS_PER_PART = 4
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EvalRequest:
    """All that an evaluation is asked for; `python -m tools.eval_dataset --help` says what each means."""

    dataset_paths: Sequence[str]
    model: str
    out_dir: Path
    job_name: str = "dataset_eval"
    step: int = 0
    arch: str = "sd15"
    vae_path: str | None = None
    lora: str | None = None
    lora_multiplier: float = 1.0
    against_base: bool = False
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    settings: Settings = field(default_factory=Settings)
    resolution: int | None = None
    sample_fraction: float = 1.0
    max_samples: int | None = None
    caption_ext: str = ".txt"
    default_caption: str | None = None
    trigger_word: str | None = None
    rate: float = 0.1
    edits: bool = False
    debug_captions: bool = False
    log_conditioning: bool = False

    @property
    def report_path(self) -> Path:
        """Where the report goes."""
        return self.out_dir / report_name(self.job_name, self.step)


@dataclass
class Watcher:
    """Who is told: say gets lines, progress (done, total) of a stage; should_stop is asked between images."""

    say: Callable[[str], None] = lambda text: None
    progress: Callable[[str], Progress] = lambda stage: lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class _Dataset:
    path: str
    folder: Path
    items: list[MediaItem]
    chosen: list[MediaItem]


def run_evaluation(request: EvalRequest, watcher: Watcher | None = None) -> Report:
    """Measure and write the report. Raises UserError for what its user can mend, JobStopped if stopped."""
    watcher = watcher or Watcher()
    started, clock = datetime.now(UTC), time.monotonic()
    _writable(request.out_dir)
    datasets = _scan(request, watcher)
    watcher.say(f"Loading model {request.model}")
    sd = StableDiffusion.load(
        request.model,
        arch=request.arch,
        dtype=request.dtype,
        device=request.device,
        **({"vae_path": request.vae_path} if request.vae_path else {}),
    )
    network = _with_lora(sd, request, watcher)
    model = sd.architecture.freeze()
    readable = _set_windows(model, [item for dataset in datasets for item in dataset.items])
    run = _Run(request, watcher, model, network, readable)
    images: list[ImageReport] = []
    reports = []
    for index, dataset in enumerate(datasets):
        found = run.dataset(index, dataset)
        images += found
        reports.append(
            dataset_report(dataset.path, len(dataset.items), found, seed=request.settings.design.seed)
        )
    report = Report(
        run=run.describe(started, time.monotonic() - clock, sum(image.num_draws for image in images)),
        datasets=reports,
        images=images,
        notes=run.notes,
    )
    atomic.write_text(request.report_path, report.model_dump_json(indent=1) + "\n")
    for records in run.finished:
        records.remove()
    return report


class _Run:
    """What the data sets of one evaluation share."""

    def __init__(
        self,
        request: EvalRequest,
        watcher: Watcher,
        model: Architecture,
        network: AppliedLora | None,
        readable: Callable[[str], bool],
    ) -> None:
        self.request = request
        self.watcher = watcher
        self.model = model
        self.network = network
        self.readable = readable
        self.encodings = Encodings(model, cache_root())
        self.lora_sha256 = _file_hash(resolve_path(request.lora)) if request.lora else None
        self.notes: list[str] = []
        self.finished: list[RecordFile] = []
        self.num_forwards = 0
        self.num_images = 0
        settings = request.settings
        self.model_hash = design_hash([model.vae_hash, model.text_encoder_hash])
        self.design = design_hash(
            [request.model, self.model_hash, self.lora_sha256, request.lora_multiplier, request.against_base]
            + [settings, request.resolution, str(request.dtype), request.edits]
        )

    def dataset(self, index: int, dataset: _Dataset) -> list[ImageReport]:
        """The reports of a data set's chosen images."""
        request = self.request
        pool = [item.caption for item in dataset.items]
        measured = [item for item in dataset.chosen if self.readable(item.caption)]
        # A design, a pool of captions and a place: whatever they depend on but the images themselves.
        design = design_hash([self.design, sorted(set(pool))])
        name = f".{request.job_name}_{request.step:09d}_{index}.partial.jsonl"
        records = RecordFile(request.out_dir / name, design)
        evaluator = Evaluator(
            self.model,
            self.encodings,
            request.settings,
            pool,
            records,
            network=self.network if request.against_base else None,
            progress=self.watcher.progress("images"),
            should_stop=self.watcher.should_stop,
        )
        edits = _edits(measured, pool, request) if request.edits else None
        with DebugLogs(request.out_dir, captions=request.debug_captions,
                       conditioning=request.log_conditioning) as logs:  # fmt: skip
            outcomes = evaluator.run(measured, edits)
            logs.write(outcomes, self.encodings)
        self.notes += records.notes
        self.finished.append(records)
        self.num_forwards += evaluator.num_forwards
        self.num_images += len(outcomes)
        return self._reports(dataset, outcomes)

    def _reports(self, dataset: _Dataset, outcomes: Sequence[Outcome]) -> list[ImageReport]:
        context = Context(
            name=lambda outcome: outcome.item.path.relative_to(dataset.folder).as_posix(),
            noise_std=self._noise_std,
            dataset=dataset.path,
            rate=self.request.rate,
            trigger=self.request.trigger_word,
            tokens=self._tokens,
            stopping=self.request.settings.stops_early,
            captions=[item.caption for item in dataset.items],
            twins=twins(dataset.items),
        )
        measured = dict(zip((o.item.path for o in outcomes), summarise(outcomes, context), strict=True))
        return [measured.get(item.path) or self._unmeasured(item, dataset) for item in dataset.chosen]

    def _unmeasured(self, item: MediaItem, dataset: _Dataset) -> ImageReport:
        """An image whose caption cannot be read whole by the model."""
        from toolkit.evaluation.flags import text_reasons
        from toolkit.evaluation.report import ReasonReport

        num_tokens, max_tokens = self._tokens(item.caption)
        reasons = text_reasons(item.caption, num_tokens=num_tokens, max_tokens=max_tokens)
        return ImageReport(
            path=item.path.relative_to(dataset.folder).as_posix(), dataset=dataset.path, caption=item.caption,
            sha256=item.sha256, width=item.bucket.width, height=item.bucket.height, num_draws=0, loss=None,
            loss_with_caption=None, num_tokens=num_tokens, tokens_lost=max(0, num_tokens - max_tokens),
            flagged=True, reasons=[ReasonReport(code=r.code, message=r.message) for r in reasons],
        )  # fmt: skip

    def _noise_std(self, t: float) -> float:
        return float(noise_std(self.model.objective, torch.tensor([t])))

    def _tokens(self, caption: str) -> tuple[int, int]:
        """Tokens of a caption with its marks, and the most that fit."""
        count = self.model.count_tokens(caption)
        if self.model.windows_needed(caption) <= self.model.max_windows:
            return count, max(count, 1)
        return count, _capacity(self.model)

    def describe(self, started: datetime, seconds: float, num_draws: int) -> RunReport:
        """What the report says of the run."""
        request, settings = self.request, self.request.settings
        return RunReport(
            job_name=request.job_name, step=request.step, model=request.model, arch=request.arch,
            model_hash=self.model_hash, lora=request.lora, lora_sha256=self.lora_sha256,
            seed=settings.design.seed, samples_per_image=settings.num_draws,
            timestep_type=settings.design.timestep_type, t_range=settings.design.t_range,
            fixed_noise_std=settings.design.fixed_noise_std, caption_ablation=settings.ablation,
            num_others=settings.num_others,
            target_se=settings.target_se, target_q=settings.target_q,
            false_discovery_rate=request.rate,
            eval_resolution=request.resolution or default_resolution(request.model),
            batch_size=settings.batch_size, dtype=str(request.dtype).removeprefix("torch."),
            device=str(request.device), design=self.design, num_draws=num_draws,
            num_draws_full=self.num_images * settings.num_draws, num_forwards=self.num_forwards,
            started=started.isoformat(timespec="seconds"), seconds=round(seconds, 3),
            versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        )  # fmt: skip


# -- preparing -------------------------------------------------------------------------------------------


def _writable(folder: Path) -> None:
    """Make the folder of the report. Raises ConfigError before anything is loaded for nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe_{time.time_ns()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise ConfigError(
            Problem("eval.cannot_write", problem, file=str(folder), remedy="choose another --out-dir")
        ) from error


def default_resolution(model: str) -> int:
    """256, or less for a model that was made for less."""
    path = resolve_model(model)
    if path is None or not path.is_dir():
        return USUAL_RESOLUTION
    side = read_json(path / "unet" / "config.json").get("sample_size")
    blocks = read_json(path / "vae" / "config.json").get("block_out_channels")
    if not isinstance(side, int) or not isinstance(blocks, list) or not blocks:
        return USUAL_RESOLUTION
    return min(USUAL_RESOLUTION, int(side * 2 ** (len(blocks) - 1)))


def _scan(request: EvalRequest, watcher: Watcher) -> list[_Dataset]:
    """Every data set, verified. Raises DatasetError with the problems of all of them."""
    multiple = size_multiple(resolve_model(request.model), find_architecture(request.arch))
    resolution = request.resolution or default_resolution(request.model)
    datasets, problems = [], []
    for index, path in enumerate(request.dataset_paths):
        folder = resolve_path(path)
        result = scan_dataset(
            folder,
            name=f"{index}:{folder.name}",
            resolutions=[resolution],
            size_multiple=multiple,
            caption_ext=normalize_extension(request.caption_ext),
            default_caption=request.default_caption,
        )
        problems += result.problems
        for note in result.notes:
            watcher.say(f"note: {note}")
        contents = [content_of(item) for item in result.items]
        chosen = sampled(
            contents,
            seed=request.settings.design.seed,
            fraction=request.sample_fraction,
            limit=request.max_samples,
        )
        watcher.say(f"{path}: {len(result.items)} images, {len(chosen)} to measure")
        datasets.append(_Dataset(path, folder, result.items, [result.items[i] for i in chosen]))
    if problems:
        raise DatasetError(problems)
    return datasets


def _with_lora(sd: StableDiffusion, request: EvalRequest, watcher: Watcher) -> AppliedLora | None:
    """The LoRA on the model, or None. Raises ConfigError if the base is asked for without one."""
    if request.lora is None:
        if request.against_base:
            raise ConfigError(Problem("eval.no_lora", "against_base needs a lora"))
        return None
    matched = apply_lora(sd, resolve_path(request.lora), request.lora_multiplier)
    watcher.say(f"LoRA {Path(request.lora).name}: {matched} modules")
    return AppliedLora(sd)


def _set_windows(model: Architecture, items: Sequence[MediaItem]) -> Callable[[str], bool]:
    """Let the model read as many windows as the longest caption that it can read; whether it can read one."""
    needed = {item.caption: model.windows_needed(item.caption) for item in items}
    fitting = [count for count in needed.values() if count <= model.max_windows]
    model.num_windows = max([1, *fitting])
    return lambda caption: needed.get(caption, 1) <= model.max_windows


def _capacity(model: Architecture) -> int:
    """The most tokens, marks included, that a prompt may have: found by asking the model."""

    def tokens(count: int) -> str:
        return " ".join(["a"] * count)

    low, high = 1, 2
    while model.windows_needed(tokens(high)) <= model.max_windows:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        fits = model.windows_needed(tokens(middle)) <= model.max_windows
        low, high = (middle, high) if fits else (low, middle)
    return model.count_tokens(tokens(low))


def _edits(items: Sequence[MediaItem], pool: Sequence[str], request: EvalRequest) -> dict[str, list[Edit]]:
    """The changed captions of every image."""
    vocabulary, seed = Vocabulary.of(pool), request.settings.design.seed
    return {
        key_of(item): leave_one_out(item.caption)
        + swap_one(item.caption, vocabulary, seed=seed, content=item.sha256, per_part=MAX_SWAPS_PER_PART)
        for item in items
    }


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
