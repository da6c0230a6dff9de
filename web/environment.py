"""The environment that a job gets: what programs need, and none of the server's secrets. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from web.queue.devices import visible_devices

_NAMES = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "TMP", "TEMP",
    "SYSTEMROOT", "WINDIR", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "USERPROFILE",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "MODELS_PATH", "MPLBACKEND",
    "MPLCONFIGDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy",
    "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CI", "DISABLE_TELEMETRY",
})  # fmt: skip
_PREFIXES = (
    "LC_", "XDG_", "HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "TOKENIZERS_",
    "CUDA_",
    "NVIDIA_", "NCCL_", "ROCR_", "ROCM_", "HIP_", "HSA_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "PYTORCH_",
    "TORCH_",
    "TORCHINDUCTOR_", "TRITON_", "ACCELERATE_", "WANDB_", "PYTHON", "BNB_",
)  # fmt: skip
# What a config may not put into files and pictures by naming it in ${...}.
_SECRET = re.compile(
    r"AI_TOOLKIT_|TOKEN|SECRET|PASSW|CREDENTIAL|(?:^|_)(?:KEY|AUTH|PAT)(?:_|$)|API_?KEY", re.IGNORECASE
)


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name is taken to hold a secret."""
    return _SECRET.search(name) is not None


def job_environment(
    devices: Iterable[str], *, hf_token: str | None = None, parent: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of a job on these devices. parent: the server's own environment (default)."""
    source = os.environ if parent is None else parent
    chosen = {key: value for key, value in source.items() if key in _NAMES or key.startswith(_PREFIXES)}
    if hf_token:
        chosen["HF_TOKEN"] = hf_token
    # Set and empty, so that run.py does not fill it in from a file .env.
    chosen["AI_TOOLKIT_AUTH"] = ""
    chosen["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    chosen["CUDA_VISIBLE_DEVICES"] = visible_devices(devices)
    chosen["PYTHONUNBUFFERED"] = "1"
    chosen["PYTHONIOENCODING"] = "utf-8"
    return chosen
