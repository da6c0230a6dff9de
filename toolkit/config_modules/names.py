"""Names that a config may use for dtypes, samplers, optimizers and architectures. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.models.catalogue import ARCHITECTURES

# Every spelling -> the attribute of torch it means.
DTYPES = {
    "fp32": "float32", "float32": "float32", "float": "float32", "single": "float32",
    "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp16": "float16", "float16": "float16", "half": "float16",
}  # fmt: skip
DTYPES_NOT_YET = ("8bit", "float8", "fp8", "e4m3fn", "e5m2")


@dataclass(frozen=True, slots=True)
class Sampler:
    """A scheduler class of diffusers and the settings that make it the sampler of that name.

    least_steps, most_steps: of a model that predicts noise or velocity; None: its noise levels set the limit.
    A flow-matching model has no limits.
    """

    scheduler: str
    settings: dict[str, Any] = field(default_factory=dict)
    least_steps: int = 1
    most_steps: int | None = None


_KARRAS = {"use_karras_sigmas": True}
# Plain DPM-Solver (not ++) has no last step to sigma 0: diffusers refuses that combination.
_DPM = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
_DPMPP = {"algorithm_type": "dpmsolver++"}

SAMPLERS = {
    "ddpm": Sampler("DDPMScheduler"),
    "ddim": Sampler("DDIMScheduler"),
    "pndm": Sampler("PNDMScheduler", least_steps=4),
    "euler": Sampler("EulerDiscreteScheduler"),
    "k_euler": Sampler("EulerDiscreteScheduler", _KARRAS),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler"),
    "dpmsolver": Sampler("DPMSolverMultistepScheduler", _DPM),
    "k_dpmsolver": Sampler("DPMSolverMultistepScheduler", _DPM | _KARRAS),
    "dpmsolver++": Sampler("DPMSolverMultistepScheduler", _DPMPP),
    "k_dpmsolver++": Sampler("DPMSolverMultistepScheduler", _DPMPP | _KARRAS),
    "dpmsingle": Sampler("DPMSolverSinglestepScheduler"),
    "heun": Sampler("HeunDiscreteScheduler"),
    "dpm_2": Sampler("KDPM2DiscreteScheduler"),
    "dpm_2_a": Sampler("KDPM2AncestralDiscreteScheduler"),
    "lcm": Sampler("LCMScheduler", most_steps=50),
    "flowmatch": Sampler("FlowMatchEulerDiscreteScheduler"),
}
SAMPLERS_NOT_YET = ("custom_lcm", "mean_flow", "lms", "k_lms")  # lms needs scipy
FLOW_SAMPLERS = ("flowmatch", "euler", "ddim", "dpmsolver++")  # the ones that sample a flow-matching model

# Equal to the tables in toolkit/training (a test compares them); those import torch, which a check must not.
_OPTIMIZERS = (
    "adamw", "adam", "sgd", "adagrad", "rmsprop", "adafactor",
    "lion", "tiger", "came", "muon", "ademamix", "adopt", "stableadamw", "ranger", "adan", "lamb",
    "adabelief", "soap",
    "adamwschedulefree", "sgdschedulefree", "radamschedulefree",
    "prodigy", "dadaptadam", "dadaptlion", "dadaptadan", "dadaptsgd", "dadaptadagrad",
    "adamw8bit", "adam8bit", "lion8bit", "ademamix8bit", "adagrad8bit", "rmsprop8bit", "sgd8bit",
    "pagedadamw", "pagedadamw8bit", "pagedlion8bit", "pagedademamix8bit",
)  # fmt: skip
# Other spellings, of ai-toolkit, kohya's scripts, OneTrainer and pytorch-optimizer -> the name here.
_OPTIMIZER_ALIASES = {
    "adamw8": "adamw8bit", "adam8": "adam8bit", "dadaptation": "dadaptadam", "dadaptationadam": "dadaptadam",
    "dadaptationlion": "dadaptlion", "schedulefreeadamw": "adamwschedulefree",
    "schedulefreesgd": "sgdschedulefree", "schedulefreeradam": "radamschedulefree",
    "schedule_free_adamw": "adamwschedulefree", "schedule_free_sgd": "sgdschedulefree",
    "adamw_8bit": "adamw8bit", "adam_8bit": "adam8bit", "lion_8bit": "lion8bit",
    "ademamix_8bit": "ademamix8bit", "adagrad_8bit": "adagrad8bit", "rmsprop_8bit": "rmsprop8bit",
    "sgd_8bit": "sgd8bit",
    "dadapt_adam": "dadaptadam", "dadapt_lion": "dadaptlion", "dadapt_adan": "dadaptadan",
    "dadapt_sgd": "dadaptsgd", "dadapt_ada_grad": "dadaptadagrad",
}  # fmt: skip
# Every spelling of an optimizer -> its name in toolkit/training/optimizers.py.
OPTIMIZERS = {name: name for name in _OPTIMIZERS} | _OPTIMIZER_ALIASES
OPTIMIZERS_NOT_YET = ("prodigy8bit", "automagic", "automagic2", "automagic3", "sophia", "sophiah")
# They estimate the rate while training: `lr` is a factor on the estimate, 1.0 is usual, one for all weights.
RATE_FREE = ("prodigy", "dadaptadam", "dadaptlion", "dadaptadan", "dadaptsgd", "dadaptadagrad")
# They train one set of weights and hand out an average of them.
SCHEDULE_FREE = ("adamwschedulefree", "sgdschedulefree", "radamschedulefree")
LR_SCHEDULERS = {
    "constant": "constant", "constant_with_warmup": "constant_with_warmup", "linear": "linear",
    "cosine": "cosine", "cosine_with_restarts": "cosine_with_restarts",
    "cosine_with_hard_restarts": "cosine_with_restarts", "polynomial": "polynomial", "step": "step",
    "rex": "rex",
}  # fmt: skip

# Equal to the tables in toolkit/diffusion (a test compares them); every spelling -> its name.
TIMESTEP_TYPES = (
    "sigmoid", "linear", "shift", "flux_shift", "lumina2_shift", "weighted", "lognorm_blend", "one_step",
)  # fmt: skip
EVAL_TIMESTEP_TYPES = ("uniform", "cubic_early", "cubic_late", *TIMESTEP_TYPES)
TIMESTEP_TYPES_NOT_YET = ("next_sample", "two_step", "four_step", "eight_step")
LOSS_TYPES = {
    "mse": "mse", "l2": "mse", "mae": "mae", "l1": "mae",
    "huber": "huber", "smooth_l1": "smooth_l1", "pseudo_huber": "pseudo_huber", "wavelet": "wavelet",
}  # fmt: skip
LOSS_TYPES_NOT_YET = ("stepped", "mean_flow", "pixelspace")

# Every spelling of a network type -> its name in toolkit/networks/catalogue.py.
NETWORK_TYPES = {
    "lora": "lora", "locon": "locon", "lycoris": "locon", "dora": "dora", "loha": "loha", "lokr": "lokr",
}  # fmt: skip
NETWORKS_NOT_YET = ("lorm", "fullrank", "lierla")

# Every spelling of an architecture -> its name in the catalogue.
ARCHES = {
    name: entry.name
    for entry in ARCHITECTURES.values()
    if entry.supported
    for name in (entry.name, *entry.aliases)
}
ARCHES_NOT_YET = tuple(
    name for entry in ARCHITECTURES.values() if not entry.supported for name in (entry.name, *entry.aliases)
)
# ai-toolkit's older way to say which architecture a model has: flag -> the architecture.
ARCH_FLAGS = {
    "is_xl": "sdxl", "is_ssd": "ssd", "is_vega": "vega", "is_v2": "sd2", "is_v3": "sd3", "is_flux": "flux",
    "is_pixart": "pixart", "is_pixart_sigma": "pixart_sigma", "is_auraflow": "auraflow",
    "is_lumina2": "lumina2",
}  # fmt: skip
