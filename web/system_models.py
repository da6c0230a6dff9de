"""Answers about the machine and its models, as the API documents them."""

from __future__ import annotations

from pydantic import BaseModel


class Utilization(BaseModel):
    """Percent."""

    gpu: float | None
    memory: float | None


class MemoryMiB(BaseModel):
    """In MiB."""

    total: float | None
    used: float | None
    free: float | None


class Power(BaseModel):
    """In watts."""

    draw: float | None
    limit: float | None


class Clocks(BaseModel):
    """In MHz."""

    graphics: float | None


class Fan(BaseModel):
    """In percent."""

    speed: float | None


class OldGpu(BaseModel):
    """A GPU in the form of ai-toolkit."""

    index: int
    name: str
    driverVersion: str  # noqa: N815 - the name in that form
    temperature: float | None
    utilization: Utilization
    memory: MemoryMiB
    power: Power
    clocks: Clocks
    fan: Fan


class GpuList(BaseModel):
    """GPUs; error: why there are none to be seen."""

    hasNvidiaSmi: bool  # noqa: N815
    gpus: list[OldGpu]
    error: str | None


class CpuOut(BaseModel):
    """Processors and memory (MiB)."""

    cores: int
    currentLoad: float  # noqa: N815
    totalMemory: float  # noqa: N815
    availableMemory: float  # noqa: N815


class ArchitectureOut(BaseModel):
    """What kind of model can be trained; resolution: the side in pixels its base models were trained at."""

    name: str
    title: str
    aliases: list[str]
    resolution: int


class ModelList(BaseModel):
    """Architectures, and names of models on the server."""

    architectures: list[ArchitectureOut]
    local: list[str]
