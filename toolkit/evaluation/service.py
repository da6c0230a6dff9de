"""An evaluation from beginning to end: scan, load, measure, report. The tool and `job: eval` call it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from toolkit.data.items import MediaItem
from toolkit.data.tensor_store import module_hash
from toolkit.errors import Problem, RunError
from toolkit.evaluation.contrasts import CaptionPool, design_hash
from toolkit.evaluation.debug_logs import DebugLogs, noise_lines
from toolkit.evaluation.draws import noise_std
from toolkit.evaluation.edits import Editor, Vocabulary
from toolkit.evaluation.encodings import Encodings
from toolkit.evaluation.evaluate import Evaluator
from toolkit.evaluation.flags import Reason, text_reasons, unmeant_copies
from toolkit.evaluation.html_report import write_html
from toolkit.evaluation.image_store import ImageStore
from toolkit.evaluation.near_duplicates import twins
from toolkit.evaluation.outcomes import Outcome
from toolkit.evaluation.preparing import (
    Dataset,
    capacity,
    default_resolution,
    file_hash,
    make_writable,
    scan,
    set_windows,
)
from toolkit.evaluation.records import RecordFile
from toolkit.evaluation.report import (
    DatasetReport,
    ImageReport,
    ReasonReport,
    Report,
    RunReport,
    write_report,
)
from toolkit.evaluation.request import EvalRequest
from toolkit.evaluation.summary import Context, dataset_report, summaries, usefulness_note
from toolkit.model_utils import AppliedLora, apply_lora
from toolkit.paths import cache_root, resolve_path
from toolkit.runs.lock import RunLock
from toolkit.runs.watcher import Watcher
from toolkit.stable_diffusion_model import StableDiffusion

if TYPE_CHECKING:
    from toolkit.models.base import Architecture

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scipy")


def run_evaluation(
    request: EvalRequest,
    watcher: Watcher | None = None,
    *,
    load: Callable[[], StableDiffusion] | None = None,
) -> Report:
    """Measure, and write the report and the page if one is asked for.

    load: the model, where it is more than the request's fields say. Raises UserError for what its user can
    mend, JobStopped if stopped; the next start goes on from what was measured.
    """
    watcher = watcher or Watcher()
    started, clock = datetime.now(UTC), time.monotonic()
    make_writable(request.out_dir)
    with RunLock(request.out_dir / f".{request.job_name}.lock") as lock, _out_of_memory(request):
        for note in lock.notes:
            watcher.say(f"note: {note}")
        datasets = scan(request, watcher)
        watcher.say(f"Loading model {request.model}")
        run = _Run(request, watcher, (load or (lambda: _load(request)))(), datasets)
        reports = [run.dataset(index, dataset) for index, dataset in enumerate(datasets)]
        # Its parts are valid; validating them together would bring all images into memory.
        report = Report.model_construct(
            run=run.describe(started, time.monotonic() - clock),
            datasets=reports,
            images=run.images,
            notes=run.notes,
        )
        write_report(report, request.report_path)
        if request.html:
            write_html(report, request.page_path)
        for records in run.finished:
            records.remove()
    return report


def _load(request: EvalRequest) -> StableDiffusion:
    more = {"vae_path": request.vae_path} if request.vae_path else {}
    return StableDiffusion.load(
        request.model, arch=request.arch, dtype=request.dtype, device=request.device, **more
    )


@contextmanager
def _out_of_memory(request: EvalRequest) -> Iterator[None]:
    """Say in one line that the device's memory did not suffice, and what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        rows = request.settings.batch_size * (2 + request.settings.num_others)
        reason = f"{request.device} has too little memory for passes of about {rows} pictures"
        remedy = "lower batch_size, others or eval_resolution"
        raise RunError(Problem("eval.out_of_memory", reason, remedy=remedy)) from error


class _Run:
    """What the data sets of one evaluation share."""

    def __init__(
        self, request: EvalRequest, watcher: Watcher, sd: StableDiffusion, datasets: Sequence[Dataset]
    ) -> None:
        self.request = request
        self.watcher = watcher
        model: Architecture = sd.architecture.freeze()
        self.model = model
        captions = {item.caption for each in datasets for item in each.items}
        self.unreadable = set_windows(model, captions)
        # Before a LoRA changes what the denoiser and the text encoders consist of.
        denoisers = [module_hash(module) for module in model.denoisers.values()]
        self.model_hash = design_hash([*denoisers, model.vae_hash, model.text_encoder_hash])
        self.base_encodings = Encodings(model, cache_root()) if request.against_base else None
        self.network = self._with_lora(sd)
        strength = None if self.network is None else request.lora_multiplier
        self.encodings = Encodings(model, cache_root(), strength=strength)
        self.lora_sha256 = file_hash(resolve_path(request.lora)) if request.lora else None
        self.images = ImageStore(request.out_dir)
        self.num_draws = self.num_measured = 0
        self.notes: list[str] = []
        self.finished: list[RecordFile] = []
        self.num_forwards = 0
        self._capacity: int | None = None
        self.design = design_hash(
            [self.model_hash, self.lora_sha256, request.lora_multiplier, str(request.dtype)]
            + [request.settings.identity(), request.resolution or default_resolution(request.model)]
        )

    def _with_lora(self, sd: StableDiffusion) -> AppliedLora | None:
        """The LoRA on the model, or None."""
        if self.request.lora is None:
            return None
        path = resolve_path(self.request.lora)
        matched = apply_lora(sd, path, self.request.lora_multiplier)
        self.watcher.say(f"LoRA {path.name}: {matched} modules")
        return AppliedLora(sd)

    def dataset(self, index: int, dataset: Dataset) -> DatasetReport:
        """The report of a data set; those of its chosen images are added to the others."""
        request, seed = self.request, self.request.settings.design.seed
        measured = [item for item in dataset.chosen if self.readable(item.caption)]
        pool = CaptionPool(filter(self.readable, (item.caption for item in dataset.items)), seed=seed)
        # A design, a pool of captions and a place: whatever they depend on but the images themselves.
        design = design_hash([self.design, pool.texts])
        name = f".{request.job_name}_{request.step:09d}_{index}.partial.jsonl"
        records = RecordFile(request.out_dir / name, design, lambda note: self.watcher.say(f"note: {note}"))
        evaluator = Evaluator(
            self.model,
            self.encodings,
            request.settings,
            pool,
            records,
            network=self.network if request.against_base else None,
            base_encodings=self.base_encodings,
            autocast=self._autocast,
            progress=self.watcher.progress,
            should_stop=self.watcher.should_stop,
        )
        editor = None
        if request.edits or request.suggest:
            vocabulary = Vocabulary.of([item.caption for item in dataset.items])
            editor = Editor(vocabulary, seed, self.fits)
        outcomes = evaluator.run(measured, editor, suggest=request.suggest)
        logs = DebugLogs(
            request.out_dir, captions=request.debug_captions, conditioning=request.log_conditioning
        )
        logs.write(outcomes, self.encodings)
        if request.debug_noise:
            for line in noise_lines(outcomes, self._noise_std):
                self.watcher.say(line)
        self.finished.append(records)
        self.num_forwards += evaluator.num_forwards
        images = self._kept(self._reports(dataset, outcomes))
        found = dataset_report(dataset.path, len(dataset.items), images, seed=seed)
        note = usefulness_note(found)
        self.notes += [note] if note else []
        return found

    def _kept(self, images: Iterator[ImageReport]) -> Iterator[ImageReport]:
        """The same, each kept for the report of all."""
        for image in images:
            self.images.append(image)
            self.num_draws += image.num_draws
            self.num_measured += image.num_draws > 0
            yield image

    def readable(self, caption: str) -> bool:
        """Whether the model can read a caption whole."""
        return caption not in self.unreadable

    def fits(self, caption: str) -> bool:
        """Whether a new caption fits into the windows that the captions here have."""
        return self.model.windows_needed(caption) <= self.model.num_windows

    def _autocast(self) -> AbstractContextManager[object]:
        """The precision that training has: half precision through autocast."""
        if self.request.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.request.device.type, self.request.dtype)

    def _reports(self, dataset: Dataset, outcomes: Sequence[Outcome]) -> Iterator[ImageReport]:
        """The reports of a data set's chosen images, in their order."""
        request = self.request
        copies, shared = unmeant_copies(item.caption for item in dataset.items)
        if shared:
            self.notes.append(
                f"{dataset.path}: {shared} of {len(dataset.items)} images share their caption with others; "
                "that is taken for meant, and duplicate captions are not flagged"
            )
        context = Context(
            name=lambda outcome: dataset.name(outcome.item),
            noise_std=self._noise_std,
            dataset=dataset.path,
            rate=request.rate,
            trigger=request.trigger_word,
            tokens=self._tokens,
            stopping=request.settings.stops_early,
            copies=copies,
            twins=twins(dataset.chosen),
            relative=request.relative_loss,
        )
        measured = summaries(outcomes, context, ImageStore(request.out_dir))
        for item in dataset.chosen:
            if self.readable(item.caption):
                yield next(measured)
                continue
            twin = context.twins.get(item.path)
            yield self._unmeasured(item, dataset, copies[item.caption.casefold()], [twin] if twin else [])

    def _unmeasured(
        self, item: MediaItem, dataset: Dataset, copies: int, more: Sequence[Reason]
    ) -> ImageReport:  # fmt: skip
        """An image whose caption cannot be read whole by the model. copies: images that share it."""
        num_tokens, max_tokens = self._tokens(item.caption)
        reasons = text_reasons(
            item.caption, num_tokens=num_tokens, max_tokens=max_tokens, trigger=self.request.trigger_word,
            copies=copies,
        )  # fmt: skip
        reasons += more
        return ImageReport(
            path=dataset.name(item), dataset=dataset.path, caption=item.caption,
            sha256=item.sha256, width=item.bucket.width, height=item.bucket.height, num_draws=0, loss=None,
            loss_with_caption=None, num_tokens=num_tokens, tokens_lost=max(0, num_tokens - max_tokens),
            flagged=True, reasons=[ReasonReport(code=r.code, message=r.message) for r in reasons],
        )  # fmt: skip

    def _noise_std(self, t: float) -> float:
        return float(noise_std(self.model.objective, torch.tensor([t])))

    def _tokens(self, caption: str) -> tuple[int, int]:
        """Tokens of a caption with its marks, and the most that fit."""
        count = self.model.count_tokens(caption)
        if self.readable(caption):
            return count, max(count, 1)
        self._capacity = self._capacity or capacity(self.model)
        return count, self._capacity

    def describe(self, started: datetime, seconds: float) -> RunReport:
        """What the report says of the run."""
        request, settings = self.request, self.request.settings
        return RunReport(
            job_name=request.job_name, step=request.step, model=request.model, arch=request.arch,
            model_hash=self.model_hash, lora=request.lora, lora_sha256=self.lora_sha256,
            lora_multiplier=None if request.lora is None else request.lora_multiplier,
            seed=settings.design.seed, samples_per_image=settings.num_draws,
            timestep_type=settings.design.timestep_type, t_range=settings.design.t_range,
            fixed_noise_std=settings.design.fixed_noise_std, caption_ablation=settings.ablation,
            num_others=settings.num_others,
            target_se=settings.target_se, target_q=settings.target_q,
            false_discovery_rate=request.rate,
            eval_resolution=request.resolution or default_resolution(request.model),
            batch_size=settings.batch_size, dtype=str(request.dtype).removeprefix("torch."),
            device=str(request.device), design=self.design, num_draws=self.num_draws,
            num_draws_full=self.num_measured * settings.num_draws,
            num_forwards=self.num_forwards,
            started=started.isoformat(timespec="seconds"), seconds=round(seconds, 3),
            versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        )  # fmt: skip
