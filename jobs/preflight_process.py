"""What can be wrong with one process before its model is loaded: files, captions, disks. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobs import build, preflight_disk
from jobs.nature import known_nature
from jobs.preflight_captions import check_captioning
from jobs.preflight_models import check_models
from toolkit.config_modules.job import AnyProcess, ModelProcess
from toolkit.config_modules.loading import LoadedJob, run_folder
from toolkit.config_modules.model import ModelConfig
from toolkit.config_modules.process import (
    CaptionProcess,
    ConceptSliderProcess,
    DiffusionProcess,
    EvalProcess,
    GenerateProcess,
    SliderProcess,
    TrainProcess,
    VaeProcess,
)
from toolkit.data.caption_draws import are_countable, fullest_captions, possible_captions
from toolkit.data.items import MediaItem
from toolkit.errors import Problem, UserError
from toolkit.models.catalogue import find_architecture
from toolkit.models.file_keys import CLIP_REPO
from toolkit.models.geometry import read_json
from toolkit.models.hub_cache import cached_snapshot, is_hub_id
from toolkit.models.prompt_limits import long_prompt
from toolkit.paths import resolve_model
from toolkit.preflight.buckets import bucket_rows, epochs_line
from toolkit.preflight.disk import check_space, existing_folder
from toolkit.preflight.report import CaptionReport, DatasetReport, ProcessReport
from toolkit.preflight.tokens import TokenCounter, make_counter
from toolkit.runs.lineage import foreign_checkpoint
from toolkit.text import count

_WELL_BELOW = 0.7  # of the area that the resolution allows

Progress = Callable[[str], Callable[[int, int], None]]


def check_process(
    job: LoadedJob, index: int, *, full: bool, running: bool, progress: Progress | None = None
) -> ProcessReport:
    """Everything that can be found out about process number `index` without loading a model.

    full: decode every picture; else headers are read where nothing is known of a picture. running: the job
    is about to start, so a model that cannot be reached now is a problem. progress(what) gives a callback.
    """
    process = job.config.process[index]
    report = ProcessReport(process.type)
    found: list[Problem] = []
    if not isinstance(process, CaptionProcess):
        check_models(process, report, found, running)
    items: list[MediaItem] = []
    if isinstance(process, EvalProcess | CaptionProcess):
        report.folder = str(run_folder(process, job.config.name))
        found += _unwritable(build.training_root(process), "training_folder", "run.folder")
        if isinstance(process, CaptionProcess):
            check_captioning(
                process, report, found, running, None if progress is None else progress("pictures")
            )
    elif not isinstance(process, GenerateProcess):
        report.steps = process.train.steps
        folder = run_folder(process, job.config.name)
        report.folder = str(folder)
        found += _unwritable(build.training_root(process), "training_folder", "run.folder")
        items = _check_data(process, report, found, full=full, rescan=job.rescan, progress=progress)
        if isinstance(process, TrainProcess) and process.held_out is not None:
            from jobs.preflight_validation import check_validation  # here because it imports numpy

            shown = None if progress is None or not full else progress("pictures compared")
            found += check_validation(process, items, report, full=full, progress=shown)
        if folder is not None:
            if not running:  # a run finds out itself, before it writes, and tells its log and webhook
                found += foreign_checkpoint(folder / "checkpoints", known_nature(process))
            report.disk = preflight_disk.needs(process, folder, items, report.models)
            found += check_space(report.disk)
    else:
        found += _unwritable(
            Path(process.output_folder).expanduser(), "output_folder", "config.output_folder"
        )
    report.items = items
    if not isinstance(process, CaptionProcess):
        found += _check_prompts(process, items, report)
    if running and not found and isinstance(process, DiffusionProcess | VaeProcess):
        found += _try_optimizer(process)
    report.problems = [job.located(problem, index) for problem in found]
    return report


def _try_optimizer(process: DiffusionProcess | VaeProcess) -> list[Problem]:
    """What only the optimizer itself can tell of its keywords, on the device of the run."""
    from toolkit.accelerator import pick_device  # here because they import torch
    from toolkit.training.optimizers import check_optimizer

    train = process.train
    try:
        check_optimizer(train.optimizer, train.optimizer_params, device=pick_device(process.device))
    except UserError as error:
        return error.problems
    return []


# -- pictures --------------------------------------------------------------------------------------------


def _check_data(
    process: DiffusionProcess | VaeProcess,
    report: ProcessReport,
    found: list[Problem],
    *,
    full: bool,
    rescan: bool,
    progress: Progress | None,
) -> list[MediaItem]:
    """The items of all datasets; what is wrong with their files is added to `found`."""
    if not process.datasets:
        return []
    try:
        multiple = (
            build.vae_size_multiple(process.model)
            if isinstance(process, VaeProcess)
            else build.size_multiple(process.model)
        )
    except UserError:
        return []  # the model is not there, which has been said
    items: list[MediaItem] = []
    shown = None if progress is None else progress("pictures")
    scans = build.scan_each(
        process.datasets,
        size_multiple=multiple,
        captioned=isinstance(process, TrainProcess),
        rescan=rescan,
        decode=full,
        progress=shown,
    )
    for dataset, scan in scans:
        found += scan.problems
        report.notes += scan.notes
        items += scan.items
        bare = {item.path for item in scan.items if item.caption in ("", dataset.trigger_word)}
        rows = bucket_rows(scan.items, process.train.batch_size)
        report.datasets.append(
            DatasetReport(
                dataset.folder_path, scan.num_pictures, len(scan.items), scan.num_undecoded, len(bare), rows
            )
        )
    report.notes += _small_pictures(process, items)
    undecoded = sum(dataset.undecoded for dataset in report.datasets)
    if undecoded:
        text = f"only the headers of {count(undecoded, 'picture')} were read; --full decodes them, once"
        report.notes.append(text)
    if items:
        report.buckets = bucket_rows(items, process.train.batch_size)
        report.batches_per_epoch = sum(row.batches for row in report.buckets)
        accumulation = process.train.gradient_accumulation
        report.epochs = epochs_line(report.buckets, process.train.steps, accumulation)
    return items


def _small_pictures(process: DiffusionProcess | VaeProcess, items: Sequence[MediaItem]) -> Iterator[str]:
    """A note for each dataset whose pictures are trained well below its resolution, being small."""
    for index, dataset in enumerate(process.datasets):
        name, wanted = build.dataset_name(index, dataset), min(dataset.resolution)
        own = [item for item in items if item.dataset == name]
        small = {i.path for i in own if i.bucket.width * i.bucket.height < _WELL_BELOW * wanted**2}
        if small and dataset.buckets:
            number = f"{len(small)} of {len({item.path for item in own})} pictures"
            yield f"{dataset.folder_path}: {number} are smaller than {wanted} x {wanted} px, and trained so"


# -- prompts ---------------------------------------------------------------------------------------------


def _check_prompts(process: ModelProcess, items: Sequence[MediaItem], report: ProcessReport) -> list[Problem]:
    """Captions and prompts that the text encoders cannot read whole."""
    if isinstance(process, VaeProcess | EvalProcess):
        return []  # an evaluation flags what its model cannot read whole
    counters = make_counters(process.model, _words(process))
    reads_captions = isinstance(process, TrainProcess)
    if not counters and reads_captions and find_architecture(process.model.arch).prompt_readers:
        report.notes.append("captions were not measured: the model's tokenizer is not on this machine yet")
    problems: dict[tuple[str, str], Problem] = {}
    for counter in counters:
        if isinstance(process, TrainProcess) and items:
            told, captions = _check_captions(items, counter, build.seed(process))
            problems |= {(problem.file or "", problem.message): problem for problem in told}
            if report.captions is None or captions.limit < report.captions.limit:
                report.captions = captions
        prompts = list(_prompts(process))
        lengths = counter.count([text for text, _ in prompts])
        for (text, key), length in zip(prompts, lengths, strict=True):
            if length > counter.limit:
                problem = long_prompt(text, length, counter.limit, key=key)
                problems.setdefault((key, problem.message), problem)
    if report.captions is not None and report.captions.beyond_one_window:
        many = count(report.captions.beyond_one_window, "caption")
        report.notes.append(
            f"{many} longer than a window of {report.captions.window} tokens; read in several"
        )
    return list(problems.values())


def _check_captions(
    items: Sequence[MediaItem], counter: TokenCounter, seed: int
) -> tuple[list[Problem], CaptionReport]:
    """The captions that are too long, each with its picture, and the lengths of all."""
    if are_countable(items):
        owners = possible_captions(items, seed)
    else:
        owners = fullest_captions(items, lambda text: counter.count([text])[0])
    texts = list(owners)
    lengths = counter.count(texts)
    longest = max(range(len(texts)), key=lambda index: lengths[index])
    problems = [
        long_prompt(text, length, counter.limit, file=str(owners[text].path))
        for text, length in zip(texts, lengths, strict=True)
        if length > counter.limit
    ]
    return problems, CaptionReport(
        tokenizer=counter.name,
        captions=len(texts),
        longest=lengths[longest],
        longest_file=str(owners[texts[longest]].path),
        window=counter.room,
        limit=counter.limit,
        beyond_one_window=sum(counter.room < length <= counter.limit for length in lengths),
    )


def _prompts(process: DiffusionProcess | GenerateProcess) -> Iterator[tuple[str, str]]:
    """(text, key) of every prompt that is written in the config."""
    if isinstance(process, GenerateProcess):
        yield from (
            (text, "generate.prompts") for r in process.generate.requests() for text in (r.prompt, r.neg)
        )
        return
    for key, sample in (("sample", process.sample), ("first_sample", process.first_sample)):
        if sample is not None and not process.train.disable_sampling:
            for request in sample.requests(process.trigger_word):
                yield from ((text, f"{key}.prompts") for text in (request.prompt, request.neg))
    if isinstance(process, ConceptSliderProcess):
        for name in ("target_class", "positive_prompt", "negative_prompt", "anchor_class"):
            text = getattr(process.slider, name)
            if text:
                yield text, f"slider.{name}"
    elif isinstance(process, SliderProcess):
        for index, target in enumerate(process.slider.targets):
            yield from ((text, f"slider.targets[{index}]") for ends in target.ends() for text in ends)


def _words(process: AnyProcess) -> dict[str, int]:
    """The word that a run learns, with its number of vectors."""
    embedding = process.embedding if isinstance(process, TrainProcess) else None
    return {} if embedding is None else {embedding.trigger: embedding.tokens}


def make_counters(model: ModelConfig, words: Mapping[str, int] | None = None) -> list[TokenCounter]:
    """A counter for each text encoder that bounds prompts and whose tokenizer is on this machine."""
    root = _place(model.te_name_or_path or model.name_or_path)
    counters = []
    for reader in find_architecture(model.arch).prompt_readers:
        if root is not None and reader.unguided_length is not None:
            transformer = read_json(root / "transformer" / "config.json")
            if transformer.get("guidance_embeds") is False:
                reader = replace(reader, length=reader.unguided_length)
        folders = [] if root is None else [root / reader.tokenizer]
        if root is not None and model.te_name_or_path is not None:
            folders.append(root)
        if root is None or not (root / "model_index.json").is_file():
            clip = cached_snapshot(CLIP_REPO)
            folders += [clip] if clip is not None else []
        config = None if root is None else root / reader.encoder / "config.json"
        counter = make_counter(folders, reader, config, words)
        counters += [counter] if counter is not None else []
    return counters


def _place(name: str) -> Path | None:
    """The folder in which a model's small files are: its own, that of its file, or the cached one."""
    local = resolve_model(name)
    if local is None:
        return cached_snapshot(name) if is_hub_id(name) else None
    return local.parent if local.is_file() else local


# -- folders ---------------------------------------------------------------------------------------------


def _unwritable(folder: Path, key: str, code: str) -> Iterator[Problem]:
    """A folder that could not be made or written to."""
    nearest = existing_folder(folder)
    blocking = [each for each in (folder, *folder.parents) if each.exists() and not each.is_dir()]
    reason = (
        "Not a directory"
        if blocking
        else ""
        if os.access(nearest, os.W_OK | os.X_OK)
        else "Permission denied"
    )
    if reason:
        message = f"cannot write to {folder}: {reason}"
        yield Problem(code, message, key=key, remedy="choose a place you can write to")
