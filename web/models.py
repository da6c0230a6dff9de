"""Bodies of requests and answers, as the API documents them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from web.queue.states import State, StopMode


def is_torn(data: Any) -> bool:
    """Whether a text in `data` cannot be written: JSON can name half of a letter of two UTF-16 units."""
    if isinstance(data, str):
        return any("\ud800" <= letter <= "\udfff" for letter in data)
    if isinstance(data, dict):
        return any(is_torn(key) or is_torn(value) for key, value in data.items())
    return isinstance(data, list) and any(map(is_torn, data))


class Body(BaseModel):
    """A body that a client sends; unknown members are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _whole_letters(cls, data: Any) -> Any:
        if is_torn(data):
            raise ValueError("holds half of a letter (a lone surrogate)")
        return data


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="Where: a JSON pointer, or a key of the config.")
    detail: str
    code: str | None = None
    line: int | None = None
    remedy: str | None = None


class ProblemOut(BaseModel):
    """An error (RFC 9457). `error` repeats `detail`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    error: str
    errors: list[FieldError] = []


class ExitOut(BaseModel):
    """How a process ended: with a code, or by a signal."""

    code: int | None
    signal: int | None


class JobOut(BaseModel):
    """A job."""

    id: str
    name: str
    kind: str
    status: State
    devices: list[str]
    launcher: dict[str, Any]
    position: int
    attempt: int
    rev: int
    created_at: str
    updated_at: str
    queued_at: str | None
    started_at: str | None
    ended_at: str | None
    reason: str = Field(description="Why it is in this state.")
    exit: ExitOut
    phase: str
    info: str
    step: int
    total_steps: int | None
    speed: float | None = Field(description="Steps per second.")
    eta_s: float | None = Field(description="Seconds until it is done, as far as can be told.")
    loss: float | None
    lr: float | None
    progress_at: str | None = Field(description="When it was last seen to move.")
    stalled: bool = Field(description="It runs, but has not moved for a long time.")
    stop_mode: StopMode | None
    stop_at: str | None
    requeue: bool


class JobList(BaseModel):
    """A page of jobs."""

    jobs: list[JobOut]
    next_cursor: str | None


class LauncherIn(Body):
    """How the job is started. accelerate: number of processes of `accelerate launch` (0: without it)."""

    kind: Literal["local"] = "local"
    accelerate: int = Field(0, ge=0, le=64)


class JobIn(Body):
    """A job to make. Its config as an object or as YAML."""

    name: str | None = Field(None, max_length=150, description="Default: config.name.")
    kind: str | None = Field(None, max_length=40, description="Must fit the config; default: what it says.")
    devices: list[str] | None = Field(
        None, min_length=1, max_length=64, description="Default: the first lane."
    )
    launcher: LauncherIn | None = None
    config: dict[str, Any] | None = None
    config_yaml: str | None = None


class CloneIn(Body):
    """A copy to make."""

    name: str | None = Field(
        None,
        max_length=150,
        description="Default: <name>_copy, cut and numbered so that it fits and is free.",
    )


class EnqueueIn(Body):
    """How a job enters the queue."""

    position: Literal["last", "first"] = "last"
    start_queue: bool = Field(True, description="Also start the lanes of its devices.")


class StopIn(Body):
    """How a job is stopped. save: after a checkpoint. now: at once, without. kill: by SIGKILL."""

    mode: StopMode = "save"
    requeue: bool = Field(False, description="Put it back into the queue once it has stopped.")


class EventOut(BaseModel):
    """Something that happened to a job."""

    id: int
    at: str
    who: str
    from_status: State | None
    to_status: State | None
    attempt: int
    reason: str


class EventList(BaseModel):
    """What happened to a job, oldest first."""

    events: list[EventOut]


class ConfigOut(BaseModel):
    """A config as it is edited, and as it was last enqueued."""

    config_yaml: str
    snapshot_yaml: str | None
    snapshot_sha256: str | None


class ConfigIn(Body):
    """A config to check, as an object or as YAML."""

    config: dict[str, Any] | None = None
    config_yaml: str | None = None
    name: str | None = Field(None, max_length=150, description="What [name] stands for.")


class CheckOut(BaseModel):
    """What is wrong with a config, and the config with every default filled in."""

    ok: bool
    errors: list[FieldError]
    notes: list[str]
    normalized: dict[str, Any] | None


class LaneOut(BaseModel):
    """A lane: whether its jobs are started, which job holds its device, how many wait for it."""

    device: str
    started: bool
    job_id: str | None
    waiting: int


class QueueOut(BaseModel):
    """Every lane, and the jobs that wait in their order."""

    rev: int
    lanes: list[LaneOut]
    order: list[str] = Field(description="Ids of the jobs that wait, the next one first (at most 1000).")


class LaneStopIn(Body):
    """drain: what runs goes on to its end. requeue: it is stopped with a checkpoint and waits again."""

    mode: Literal["drain", "requeue"] = "drain"


class Move(Body):
    """Put a job behind another one, or (null) in front of all."""

    id: str
    after: str | None


class MovedOut(BaseModel):
    """The rev of the order after a move."""

    rev: int


class AuthOut(BaseModel):
    """Whether the caller is signed in, and whether one has to be."""

    isAuthenticated: bool  # noqa: N815 - the name that clients of ai-toolkit read
    required: bool


class LoginIn(Body):
    """The token."""

    token: str = Field(max_length=1000)


class HealthOut(BaseModel):
    """The server answers."""

    status: Literal["ok", "unavailable"]


class LogOut(BaseModel):
    """A piece of what a job printed."""

    text: str = Field(description="Whole lines.")
    offset: int = Field(description="Where the next piece begins.")
    reset: bool = Field(description="The text is another one than was read before: begin anew.")
    eof: bool = Field(description="Nothing more will come.")
    attempt: int


Point = tuple[int, float | None, float | None]


class MetricsOut(BaseModel):
    """Series of [step, time, value]. When generation changes, points read before may no longer hold."""

    keys: list[str]
    series: dict[str, list[Point]]
    generation: int


class LossPoint(BaseModel):
    """A point of a series."""

    step: int
    wall_time: float | None
    value: float | None


class LossOut(BaseModel):
    """One series."""

    key: str
    keys: list[str]
    points: list[LossPoint]


class CompareOut(BaseModel):
    """One series of several jobs."""

    key: str
    series: dict[str, list[Point]]


class SampleOut(BaseModel):
    """A preview and, as far as it tells, prompt, seed and size."""

    prompt_index: int
    name: str
    url: str
    thumb_url: str
    made_at: str
    recipe: dict[str, Any]


class SampleStep(BaseModel):
    """The previews of a step."""

    step: int
    samples: list[SampleOut]


class SampleList(BaseModel):
    """Previews by step; more: there are earlier steps."""

    steps: list[SampleStep]
    more: bool


class FileOut(BaseModel):
    """A saved model; step: null for the finished one."""

    name: str
    path: str
    size: int
    step: int | None
    modified_at: str
    url: str


class FileList(BaseModel):
    """Saved models."""

    files: list[FileOut]


class SettingsOut(BaseModel):
    """Folders and devices of the server."""

    training_folder: str
    datasets_folder: str
    hf_token_set: bool
    devices: list[str]


class SettingsIn(Body):
    """What to change; null puts the default back."""

    training_folder: str | None = Field(None, max_length=1000)
    datasets_folder: str | None = Field(None, max_length=1000)
    hf_token: str | None = Field(None, max_length=500)


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemOut"}}},
    }
    for status, text in {
        400: "The Host is not allowed, or the request is malformed.",
        401: "Not signed in.",
        403: "Sent by a page of another site.",
        404: "There is no such thing.",
        408: "The request stopped coming.",
        409: "Not in the state that things are in.",
        412: "Changed since it was read.",
        413: "The request is too large.",
        415: "Not a kind of file that is taken here.",
        416: "There is no such range.",
        422: "A value that cannot be used.",
        429: "Too many requests.",
        500: "A bug of the server.",
        503: "The database is busy.",
        507: "The disk is full.",
    }.items()
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these errors and of those that every route can answer."""
    return {status: ERRORS[status] for status in (400, 401, 403, 408, 413, 422, 500, 503, *statuses)}
