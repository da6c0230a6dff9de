"""The API for what there is: the machine's load, and models to train."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from toolkit.models.catalogue import ARCHITECTURES
from toolkit.paths import EMBEDDED_MODELS, models_root
from web.models import errors
from web.services import Served
from web.system import Gpu, Machine
from web.system_models import CpuOut, GpuList, ModelList

router = APIRouter(prefix="/api", tags=["system"], responses=errors())
_MIB = 1024 * 1024


@router.get("/system", response_model=Machine)
def read_system(services: Served) -> Response:
    """GPUs, processors, memory and disks of the server's machine."""
    return JSONResponse(asdict(services.monitor.look()))


@router.get("/gpu", response_model=GpuList)
def read_gpus(services: Served) -> Response:
    """The GPUs in the form of ai-toolkit: memory in MiB; null where nvidia-smi does not tell."""
    machine = services.monitor.look()
    gpus = [_as_before(gpu) for gpu in machine.gpus or []]
    error = machine.gpu_note or None
    return JSONResponse({"hasNvidiaSmi": machine.gpus is not None, "gpus": gpus, "error": error})


def _as_before(gpu: Gpu) -> dict[str, Any]:
    """A GPU under the names that ai-toolkit's API gives."""

    def mib(count: float | None) -> float | None:
        return None if count is None else count / _MIB

    used, total = mib(gpu.memory_used), mib(gpu.memory_total)
    share = None if used is None or not total else round(100 * used / total, 1)
    return {
        "index": gpu.index, "name": gpu.name, "driverVersion": gpu.driver, "temperature": gpu.temperature,
        "utilization": {"gpu": gpu.load, "memory": share},
        "memory": {
            "total": total, "used": used, "free": None if used is None or total is None else total - used,
        },
        "power": {"draw": gpu.power, "limit": gpu.power_limit},
        "clocks": {"graphics": gpu.clock},
        "fan": {"speed": gpu.fan},
    }  # fmt: skip


@router.get("/cpu", response_model=CpuOut)
def read_cpu(services: Served) -> Response:
    """The processors and the memory; memory in MiB, load in percent."""
    machine = services.monitor.look()
    free = machine.memory_total - machine.memory_used
    return JSONResponse({
        "cores": machine.cores, "currentLoad": machine.load,
        "totalMemory": machine.memory_total / _MIB, "availableMemory": free / _MIB,
    })  # fmt: skip


@router.get("/models", response_model=ModelList)
def list_models() -> Response:
    """Architectures that can be trained, and models on the server; all others are named by their hub id."""
    architectures = [
        {
            "name": entry.name, "title": entry.title, "aliases": list(entry.aliases),
            "resolution": entry.resolution,
        }
        for entry in ARCHITECTURES.values() if entry.supported
    ]  # fmt: skip
    root = models_root()
    found = sorted(root.iterdir()) if root.is_dir() else []
    local = [path.name for path in found if _is_model(path)]
    return JSONResponse({"architectures": architectures, "local": [*EMBEDDED_MODELS, *local]})


def _is_model(path: Path) -> bool:
    """Whether an entry of the folder of models is one: diffusers' layout, or a single file."""
    return path.suffix == ".safetensors" or (path / "model_index.json").is_file()
