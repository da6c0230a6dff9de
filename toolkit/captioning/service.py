"""A captioning from beginning to end: find, load, describe, write. The tool and `job: caption` call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from toolkit.accelerator import parse_dtype, pick_device
from toolkit.captioning.captioner import Captioner, Said, load_captioner
from toolkit.captioning.planning import Picture, Plan, make_plan
from toolkit.captioning.record import Record, write_caption
from toolkit.captioning.request import CaptionRequest
from toolkit.captioning.wording import compose
from toolkit.data.image_files import open_rgb
from toolkit.errors import DatasetError, JobStopped, Problem, RunError
from toolkit.runs import atomic
from toolkit.runs.lock import RunLock
from toolkit.runs.watcher import Watcher
from toolkit.text import count
from toolkit.training.out_of_memory import ERRORS, free_memory, is_out_of_memory, no_memory


@dataclass(frozen=True, slots=True)
class CaptionSummary:
    """How many pictures got a caption now, and how many had one that stayed."""

    num_captioned: int
    num_kept: int


def run_captioning(
    request: CaptionRequest,
    watcher: Watcher | None = None,
    *,
    load: Callable[[], Captioner] | None = None,
) -> CaptionSummary:
    """Caption the pictures of a request.

    Raises ConfigError, DatasetError or ModelError before anything is written; JobStopped when stopped, and
    the same request goes on from there; RunError at the end with the pictures that could not be captioned.
    """
    watcher = watcher or Watcher()
    plan = make_plan(request, lambda done, total: watcher.progress("verified", done, total))
    for line in plan.notes:
        watcher.say(f"note: {line}")
    if request.dry_run:
        return _Run(request, watcher, plan, None).caption(load)
    with atomic.reporting(request.out_dir):
        request.out_dir.mkdir(parents=True, exist_ok=True)
    with RunLock(request.record_path.with_suffix(".lock")):
        return _Run(request, watcher, plan, Record(request.record_path, request.fingerprint)).caption(load)


class _Run:
    """One pass over the pictures of a plan. record: None writes nothing."""

    def __init__(self, request: CaptionRequest, watcher: Watcher, plan: Plan, record: Record | None) -> None:
        self.request = request
        self.watcher = watcher
        self.plan = plan
        self.record = record
        self.failed: list[Problem] = []
        self.batch_size = request.batch_size

    def caption(self, load: Callable[[], Captioner] | None) -> CaptionSummary:
        """Caption all that is left to do."""
        todo = self._left()
        kept = self.plan.num_kept + len(self.plan.todo) - len(todo)
        beyond = f", {self.plan.num_beyond} beyond max_samples" if self.plan.num_beyond else ""
        self.watcher.say(f"{count(len(todo), 'picture')} to caption, {kept} with a caption{beyond}")
        if todo:
            captioner = load() if load is not None else self._load()
            self._caption_all(captioner, todo)
        if self.failed:
            raise RunError(self.failed)
        if self.record is not None:
            self.record.finish()
        return CaptionSummary(len(todo), kept)

    def _left(self) -> list[Picture]:
        """What to do, without the pictures that a run which was stopped has done."""
        done = {} if self.record is None else self.record.done()
        if not self.request.recaption:
            return self.plan.todo
        return [
            each for each in self.plan.todo
            if str(each.image) not in done or not _says(each, done[str(each.image)].text)
        ]  # fmt: skip

    def _load(self) -> Captioner:
        request = self.request
        device = pick_device(request.device)
        dtype = parse_dtype(request.dtype or ("fp32" if device.type == "cpu" else "bf16"))
        return load_captioner(
            request.model, device=device, dtype=dtype, prompt=request.prompt,
            max_new_tokens=request.max_new_tokens, num_beams=request.num_beams,
        )  # fmt: skip

    def _caption_all(self, captioner: Captioner, todo: Sequence[Picture]) -> None:
        done = 0
        self.watcher.progress("captioned", 0, len(todo))
        while done < len(todo):
            if self.watcher.should_stop():
                raise JobStopped(
                    f"stopped after {done} of {len(todo)} pictures; the same command goes on from there"
                )
            batch = todo[done : done + self.batch_size]
            pictures = list(self._opened(batch))
            said = self._ask(captioner, pictures)
            if said is None:
                continue  # the same pictures, fewer at once
            for (picture, _), words in zip(pictures, said, strict=True):
                self._keep(picture, words)
            done += len(batch)
            self.watcher.progress("captioned", done, len(todo))

    def _opened(self, batch: Sequence[Picture]) -> Iterator[tuple[Picture, Image.Image]]:
        """The pictures that can be opened still, at most as large as the resolution asked for."""
        for picture in batch:
            try:
                yield picture, shrunk(open_rgb(picture.image), self.request.resolution)
            except DatasetError as error:
                self._fail(error.problems)

    def _ask(
        self, captioner: Captioner, pictures: Sequence[tuple[Picture, Image.Image]]
    ) -> list[Said] | None:
        """What is said about each; None if there is no memory for so many, and fewer are to be tried."""
        if not pictures:
            return []
        try:
            return captioner.caption([image for _, image in pictures])
        except ERRORS as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        if len(pictures) == 1:
            remedies = [f"resolution below {self.request.resolution}", "num_beams: 1", "a smaller model"]
            raise no_memory(f"not enough memory to caption {pictures[0][0].image}", remedies)
        self.batch_size = len(pictures) // 2
        self.watcher.say(
            f"note: not enough memory for {len(pictures)} pictures at once; {self.batch_size} from here on"
        )
        return None

    def _keep(self, picture: Picture, said: Said) -> None:
        request = self.request
        # An opening that was asked for says what it was asked for.
        asked = bool(request.prompt) and said.text.strip().lower().startswith(str(request.prompt).lower())
        intro = request.strip_intro and not asked
        caption = compose(said.text, cut=said.cut, intro=intro, prefix=request.prefix, suffix=request.suffix)
        if not caption:
            remedy = "ask otherwise with prompt, or caption it by hand"
            message = "the model says nothing about it"
            self._fail([Problem("caption.empty", message, file=str(picture.image), remedy=remedy)])
            return
        if self.record is None:
            self.watcher.say(f"{picture.image}: {caption}")
            return
        try:
            write_caption(picture, caption, self.record)
        except DatasetError as error:
            self._fail(error.problems)

    def _fail(self, problems: Sequence[Problem]) -> None:
        self.failed += problems
        for problem in problems:
            self.watcher.say(f"note: {problem}; the others go on")


def shrunk(image: Image.Image, resolution: int) -> Image.Image:
    """A picture with at most resolution x resolution pixels, in its own proportions."""
    width, height = image.size
    scale = resolution / (width * height) ** 0.5
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _says(picture: Picture, text: str) -> bool:
    try:
        return picture.file.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False
