"""From a folder of pictures to a job file that can be run as it is: `run.py --new`. Torch-free."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.buckets import choose_bucket
from toolkit.errors import ConfigError, Problem, RunError
from toolkit.models.catalogue import find_architecture
from toolkit.paths import resolve_path
from toolkit.presets.catalogue import Card, Preset, find_preset
from toolkit.presets.pictures import Look, look_at
from toolkit.runs import atomic
from toolkit.runs.layout import bad_name
from toolkit.text import count

DEFAULT_VRAM = 12.0  # GB, where no card can be asked
_NUM_PREVIEWS = 8
_LONGEST_PROMPT = 30  # words of a caption that becomes a preview
# What a job file reads as an environment variable, or as the name given on the command line.
_READ_OTHERWISE = re.compile(r"\$\{([A-Za-z_]\w*)\}|\[name\]")
_LARGE = 1 << 14  # pixels: larger than any resolution, so that only the aspect counts


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was decided."""

    name: str
    preset: Preset
    card: Card
    look: Look
    trigger: str | None
    steps: int
    every: int
    resolution: tuple[int, ...]
    width: int
    height: int
    prompts: list[str]


def write_job(
    photos: str,
    model: str,
    *,
    vram: float | None = None,
    trigger: str | None = None,
    name: str | None = None,
    out: str | None = None,
) -> list[str]:
    """Write a job file for a LoRA on the pictures of a folder; returns what to tell the user.

    vram in GB, None for that of this machine's card. Raises UserError; an existing file is never overwritten.
    """
    preset = find_preset(model)
    given = vram if vram is not None else detect_vram()
    card = preset.card(DEFAULT_VRAM if given is None else given)
    look = look_at(resolve_path(photos))
    name = name or _name_of(look.folder)
    reason = bad_name(name)
    if reason:
        raise ConfigError(
            Problem("config.name", f"name {name!r} {reason}", remedy="give another with --name")
        )
    if trigger is not None and (not trigger.strip() or any(letter in trigger for letter in "\n\r[]{}")):
        raise ConfigError(Problem("new.trigger", f"{trigger!r} cannot be a trigger word", key="--trigger"))
    odd = _READ_OTHERWISE.search(photos)
    if odd is not None:
        message = f"a job file reads {odd[0]} as something else"
        raise ConfigError(Problem("new.folder", message, file=photos, remedy="rename the folder"))
    path = Path(out).expanduser() if out else Path(f"{name}.yml")
    if path.suffix.lower() not in (".yml", ".yaml"):
        path = path.with_name(f"{path.name}.yml")
    if path.exists():
        remedy = "choose another file with --out, or move this one away"
        raise ConfigError(Problem("new.exists", "exists already", file=str(path), remedy=remedy))
    plan = make_plan(preset, card, look, name=name, trigger=trigger)
    try:
        with atomic.reporting(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, render(plan, photos, path))
    except RunError as error:
        raise ConfigError(error.problems) from None  # a mistake on the command line: nothing has run
    return _told(plan, path, vram=vram, given=given)


def detect_vram() -> float | None:
    """Memory of the first NVIDIA card in GB, None if there is none that can be asked."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return round(float(answer.split()[0]) / 1024)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def make_plan(preset: Preset, card: Card, look: Look, *, name: str, trigger: str | None) -> Plan:
    """The numbers of a run: as many steps as show each picture often enough, saved eight times."""
    at_once = card.batch_size * card.gradient_accumulation
    wanted = len(look.sizes) * preset.showings / at_once
    steps = int(min(max(round(wanted / 50) * 50, preset.min_steps), preset.max_steps))
    resolution = card.resolution or preset.resolution
    multiple = find_architecture(preset.arch).size_multiple
    side = max(resolution)
    step = multiple if side >= multiple else 8
    aspect = min(max(look.aspect, 0.25), 4.0)
    bucket = choose_bucket(round(_LARGE * aspect), _LARGE, side, min(step, side))
    return Plan(
        name=name,
        preset=preset,
        card=card,
        look=look,
        trigger=trigger,
        steps=steps,
        every=max(25, round(steps / _NUM_PREVIEWS / 25) * 25),
        resolution=resolution,
        width=bucket.width,
        height=bucket.height,
        prompts=_prompts(look.captions, trigger),
    )


def _name_of(folder: Path) -> str:
    """A run's name from a folder's."""
    return re.sub(r"[^\w.-]+", "_", folder.resolve().name).strip("._") or "my_lora"


def _prompts(captions: list[str], trigger: str | None) -> list[str]:
    """Previews: three captions spread over the folder, and one prompt that shows what else has changed."""
    distinct = list(dict.fromkeys(captions))
    picked = [distinct[index * len(distinct) // 3] for index in range(3)] if len(distinct) >= 3 else distinct
    prompts = list(dict.fromkeys(_as_prompt(caption, trigger) for caption in picked))
    if not prompts:
        subject = "[trigger]" if trigger else "a photo"
        prompts = [subject, f"{subject} in a park", f"{subject}, close-up"]
    return [*prompts, "a landscape with mountains"]


def _as_prompt(caption: str, trigger: str | None) -> str:
    """A caption as a preview's prompt: the trigger word as [trigger], no flags, not too long."""
    words = re.sub(r"\$\{(\w+)\}", r"\1", caption.replace("--", "-")).split()[:_LONGEST_PROMPT]
    text = " ".join(words)
    if trigger:
        text = re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", "[trigger]", text)
        text = text.replace("[name]", "[trigger]")
        return text if "[trigger]" in text else f"[trigger], {text}"
    return text.replace("[trigger]", "").replace("[name]", "").strip() or "a photo"


# -- the file --------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """A text as YAML reads it back, whatever it holds; JSON's strings are YAML's."""
    return json.dumps(text, ensure_ascii=False)


def render(plan: Plan, photos: str, path: Path) -> str:
    """The job file, commented."""
    sections = [_head(plan, path), _datasets(plan, photos), _train(plan), _sample(plan)]
    return "\n".join(line for section in sections for line in section) + "\n"


def _line(text: str, comment: str) -> str:
    """A line of YAML with its comment, comments below each other."""
    return f"{text:<44} # {comment}"


def _head(plan: Plan, path: Path) -> list[str]:
    preset, card = plan.preset, plan.card
    lines = [
        f"# python run.py {path}",
        f"# trains a LoRA on {preset.title}"
        + (f" on a card of {card.vram:g} GB or more" if card.vram else "")
        + ". Check it first: add --check.",
        "# Every key is explained by `python run.py --schema`.",
        "---",
        "job: train",
        "config:",
        _line(f"  name: {_quoted(plan.name)}", "of the run, its folder and its files"),
        "  process:",
        "    - type: sd_trainer",
        _line("      training_folder: output", "the run gets the folder output/<name>"),
        _line("      training_seed: 42", "the same seed gives the same run"),
    ]
    if plan.trigger is not None:
        trigger = f"      trigger_word: {_quoted(plan.trigger)}"
        lines.append(_line(trigger, "placed in every caption, and for [trigger] below"))
    return [
        *lines,
        "      model:",
        f"        name_or_path: {_quoted(preset.name_or_path)}",
        f"        arch: {preset.arch}",
        "      network:",
        "        type: lora",
        _line(f"        linear: {preset.rank}", "rank: higher learns more detail, and more by heart"),
        _line(f"        linear_alpha: {preset.rank}", "strength is linear_alpha / rank"),
        "      save:",
        "        dtype: float16",
        _line(f"        save_every: {plan.every}", "steps"),
        "        max_step_saves_to_keep: 8",
    ]


def _datasets(plan: Plan, photos: str) -> list[str]:
    look = plan.look
    lines = [
        "      datasets:",
        _line(f"        - folder_path: {_quoted(photos)}", count(len(look.sizes), "picture")),
        f"          caption_ext: {_quoted(look.caption_ext.removeprefix('.'))}",
    ]
    if len(look.captions) < len(look.sizes):
        text = f"          default_caption: {_quoted('[trigger]' if plan.trigger else '')}"
        lines.append(_line(text, "of pictures without a caption"))
    sizes = ", ".join(map(str, plan.resolution))
    dropout = "now and then no caption, which guidance needs"
    return [
        *lines,
        _line("          caption_dropout_rate: 0.05", dropout),
        _line(f"          resolution: [{sizes}]", "a list trains at each of its sizes"),
        _line("          buckets: true", "keep aspect ratios"),
        _line("          cache_latents_to_disk: true", "encode each picture once"),
    ]


def _train(plan: Plan) -> list[str]:
    preset, card = plan.preset, plan.card
    at_once = card.batch_size * card.gradient_accumulation
    seen = round(plan.steps * at_once / len(plan.look.sizes))
    checkpointing = str(card.gradient_checkpointing).lower()
    lines = [
        "      train:",
        _line(f"        steps: {plan.steps}", f"each picture is shown about {seen} times"),
        f"        batch_size: {card.batch_size}",
        _line(f"        gradient_accumulation: {card.gradient_accumulation}", "micro-batches per step"),
        f"        lr: {preset.lr:g}",
        f"        optimizer: {card.optimizer}",
        f"        noise_scheduler: {preset.noise_scheduler}",
    ]
    if preset.min_snr_gamma is not None:
        weighting = "evens out noise levels (arXiv:2303.09556)"
        lines.append(_line(f"        min_snr_gamma: {preset.min_snr_gamma}", weighting))
    cost = "true: less memory, about 30 % more time"
    dtype = f"        dtype: {preset.dtype}"
    return [
        *lines,
        _line(f"        gradient_checkpointing: {checkpointing}", cost),
        _line("        cache_text_embeddings: true", "encode each caption once"),
        _line(dtype, "fp16 on cards older than 2020") if preset.dtype == "bf16" else dtype,
    ]


def _sample(plan: Plan) -> list[str]:
    preset = plan.preset
    return [
        "      sample:",
        f"        sampler: {preset.sampler}",
        _line(f"        sample_every: {plan.every}", "steps"),
        f"        width: {plan.width}",
        f"        height: {plan.height}",
        "        seed: 42",
        _line("        walk_seed: true", "the i-th prompt uses seed + i"),
        f"        guidance_scale: {preset.guidance_scale:g}",
        f"        sample_steps: {preset.sample_steps}",
        _line("        prompts:", "the last shows what has changed beside the subject"),
        *(f"          - {_quoted(prompt)}" for prompt in plan.prompts),
    ]


# -- what is told ----------------------------------------------------------------------------------------


def _told(plan: Plan, path: Path, *, vram: float | None, given: float | None) -> list[str]:
    preset, card, look = plan.preset, plan.card, plan.look
    at_once = card.batch_size * card.gradient_accumulation
    lines = [f"{look.folder}: {look.lines()[0]}", *(f"  {line}" for line in look.lines()[1:]), ""]
    lines += [f"{path}: a LoRA on {preset.title}"]
    sizes = ", ".join(f"{side} x {side}" for side in plan.resolution)
    chosen = [
        ("resolution", f"{sizes} px, aspect ratios kept"),
        ("steps", f"{plan.steps}: {len(look.sizes)} pictures, {preset.showings} showings of each wanted, "
         f"between {preset.min_steps} and {preset.max_steps} steps"),
        ("a step", f"{count(at_once, 'picture')}: batch_size {card.batch_size}"
         + (f" x {card.gradient_accumulation} micro-batches" if card.gradient_accumulation > 1 else "")),
        ("learning", f"rank {preset.rank}, lr {preset.lr:g}, {card.optimizer}, {preset.dtype}, gradient "
         f"checkpointing {'on' if card.gradient_checkpointing else 'off'}"),
        ("saves", f"every {plan.every} steps, with {count(len(plan.prompts), 'preview')} of "
         f"{plan.width} x {plan.height} px"),
    ]  # fmt: skip
    if card.vram:
        why = "as asked" if vram is not None else "found here" if given is not None else "no card found here"
        size = DEFAULT_VRAM if given is None else given
        chosen.append(("memory", f"for a card of {size:g} GB ({why}); another: --vram GB"))
    lines += [f"  {name:<11} {text}" for name, text in chosen]
    lines += [f"  note: {note}" for note in _notes(plan)]
    quoted = shlex.quote(str(path))
    return [*lines, "", "Next:", f"  python run.py --check {quoted}", f"  python run.py {quoted}"]


def _notes(plan: Plan) -> list[str]:
    look, notes = plan.look, []
    if look.unreadable or look.bad_captions:
        notes.append(
            "a run is refused until what cannot be read is mended or gone; --check says what is wrong"
        )
    if not look.captions:
        word = f"'{plan.trigger}' alone" if plan.trigger else "nothing at all"
        notes.append(
            f"no captions: every picture will be described by {word}; a text file beside each is better"
        )
    if plan.trigger is None:
        notes.append(
            "no trigger word: without --trigger WORD the LoRA changes every picture of these subjects"
        )
    side = min(plan.resolution)
    if look.side < 0.85 * side:
        notes.append(
            f"the pictures have about {look.side:.0f} x {look.side:.0f} px, less than {side} x {side}"
        )
    if len(look.sizes) < 10:
        notes.append(f"{count(len(look.sizes), 'picture')}: ten or more learn a subject better")
    return notes
