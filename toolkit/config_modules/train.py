"""The `train` section of a diffusion trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from toolkit.config_modules.base import Float, Int, Text, one_of
from toolkit.config_modules.loop import LoopConfig
from toolkit.config_modules.names import (
    LOSS_TYPES,
    LOSS_TYPES_NOT_YET,
    SAMPLERS,
    TIMESTEP_TYPES,
    TIMESTEP_TYPES_NOT_YET,
)
from toolkit.config_modules.validation import ValidationItemsConfig

# All of diffusers' Stable Diffusion schedulers share one training noise table; only their sampling differs.
_NOISE_TABLES = {name: "ddpm" for name in SAMPLERS if name not in ("flowmatch", "lcm")} | {
    "flowmatch": "flowmatch"
}
_NO_CONTROLNET = "only counts with controlnet_use"
_NO_FEATURES = "only counts with a feature extractor"
_TORCH_ATTENTION = "attention always runs through torch's own scaled_dot_product_attention"


Bias = Literal["balanced", "content", "style"]


def _debiased(data: Mapping[str, Any]) -> dict[str, str]:
    """kohya's switch debiased_estimation_loss: true is the exact form."""
    value = data.get("debiased_estimation_loss")
    return {"debiased_estimation_loss": "exact" if value else "off"} if isinstance(value, bool) else {}


class TrainConfig(LoopConfig):
    """What is trained, on which noise and with which loss."""

    NOT_YET: ClassVar = {
        "refiner_lr": None, "adapter_lr": None,
        "train_turbo": False, "attention_backend": "native",
        "num_train_timesteps": 1000,
        "loss_target": "noise", "learnable_snr_gos": False, "dynamic_noise_offset": False,
        "blended_blur_noise": False,
        "adaptive_scaling_factor": False, "standardize_images": False, "standardize_latents": False,
        "max_negative_prompts": 1,
        "prompt_dropout_prob": 0.0, "prompt_saturation_chance": 0.0,
        "do_prior_divergence": False, "target_norm_std": None,
        "unload_text_encoder": False,
        "short_and_long_captions": False, "short_and_long_captions_encoder_split": False,
        "single_item_batching": False, "merge_network_on_save": False,
        "free_u": False, "weight_jitter": 0.0, "switch_boundary_every": 1, "do_paramiter_swapping": False,
        "latent_feature_extractor_path": None, "diffusion_feature_extractor_path": None,
        "adapter_assist_name_or_path": None, "match_adapter_chance": 0.0, "match_adapter_assist": False,
        "log_per_example": False, "save_loss_json": False, "controlnet_use": False,
        "max_loss": None, "do_fft_loss": False, "t0_loss_target": False, "do_signal_correction_noise": False,
        "do_batch_noise_correction": False, "do_blank_stabilization": False,
    }  # fmt: skip
    IDLE: ClassVar = {
        "sdp": (False, _TORCH_ATTENTION), "xformers": (False, _TORCH_ATTENTION),
        "train_refiner": (True, "the supported models have no refiner"),
        "next_sample_timesteps": (8, "only counts with timestep_type: next_sample"),
        "paramiter_swapping_factor": (0.1, "only counts with do_paramiter_swapping"),
        "latent_feature_loss_weight": (1.0, _NO_FEATURES),
        "latent_feature_extractor_loss_weight": (1.0, _NO_FEATURES),
        "diffusion_feature_extractor_weight": (1.0, _NO_FEATURES),
        "diffusion_feature_extractor_loss_weight": (1.0, _NO_FEATURES),
        "adapter_assist_type": ("t2i", "only counts with adapter_assist_name_or_path"),
        "max_examples_print": (50, "only counts with log_per_example"),
        "log_per_dataset": (False, "metrics.jsonl has one loss for each step, over all datasets"),
        "flag_bad_captions": (False, "captions are not judged while training"),
        "controlnet_type": ("canny", _NO_CONTROLNET),
        "controlnet_generate_on_the_fly": (True, _NO_CONTROLNET),
        "controlnet_precompute_control": (False, _NO_CONTROLNET),
        "controlnet_offload_strategy": ("none", _NO_CONTROLNET),
        "controlnet_residual_storage": ("gpu", _NO_CONTROLNET),
        "controlnet_reroute": ("none", _NO_CONTROLNET),
        "controlnet_aux_loss": ("none", _NO_CONTROLNET), "controlnet_aux_loss_weight": (1.0, _NO_CONTROLNET),
        "max_loss_debug": (False, "only counts with max_loss"),
        "audio_loss_multiplier": (1.0, "the supported models have no sound"),
    }  # fmt: skip

    unet_lr: Float | None = Field(None, ge=0, description="Peak learning rate of the denoiser (null: lr).")
    text_encoder_lr: Float | None = Field(
        None, ge=0, description="Peak learning rate of text encoders (null: lr)."
    )
    embedding_lr: Float | None = Field(
        None, ge=0, description="Peak learning rate of an embedding's vectors (null: lr)."
    )
    train_unet: bool = Field(True, description="Train the denoiser.")
    train_text_encoder: bool = Field(False, description="Train the text encoders.")
    full_bf16: bool = Field(
        False,
        description="Keep the weights of a full fine-tune in bfloat16 and round their updates stochastically "
        "(arXiv:2010.06192): half the memory. Else they are float32, whatever the dtype of the forward pass.",
    )
    noise_scheduler: Annotated[
        Literal["ddpm", "flowmatch"],
        *one_of("noise scheduler", _NOISE_TABLES, ("lcm", "custom_lcm", "mean_flow")),
    ] = Field(
        "ddpm", description="Noise of training: ddpm (a table of 1000 levels) or flowmatch (a straight line)."
    )
    timestep_type: Annotated[
        Literal[
            "sigmoid", "linear", "shift", "flux_shift", "lumina2_shift", "weighted", "lognorm_blend",
            "one_step",
        ],
        *one_of("timestep type", TIMESTEP_TYPES, TIMESTEP_TYPES_NOT_YET),
    ] = Field(
        "sigmoid",
        description="Density of noise levels: sigmoid (of a normal draw: mostly middle), linear (even), "
        "shift, flux_shift and lumina2_shift (towards noise, the more the larger the picture), weighted "
        "(even, middle levels count more), lognorm_blend, one_step (pure noise). "
        "Left out it is sigmoid for flowmatch and linear for ddpm, as ai-toolkit trains.",
    )  # fmt: skip
    discrete_flow_shift: Float | None = Field(
        None, gt=0, description="Fixed shift of timestep_type: shift (null: by the size of the picture)."
    )
    content_or_style: Bias = Field(
        "balanced", description="More draws at high noise (content), at low noise (style), or neither."
    )
    content_or_style_reg: Bias = Field(
        "balanced", description="The same for the pictures of regularisation datasets."
    )
    min_denoising_steps: Int = Field(
        0, ge=0, le=999, description="First of 1000 denoising steps that is trained; 0 is pure noise."
    )
    max_denoising_steps: Int = Field(
        999, ge=0, le=1000, description="Last denoising step that is trained; 999 is almost clean."
    )
    linear_timesteps: bool = Field(
        False, description="Even noise levels, and a loss that counts by a bell over them."
    )
    linear_timesteps2: bool = Field(
        False, description="The same with the bell's top for all levels of the clean half."
    )
    min_snr_gamma: Float | None = Field(
        None,
        gt=0,
        description="Weight each item by min(gamma / SNR, 1) (arXiv:2303.09556); 5 is usual; ddpm only.",
    )
    snr_gamma: Float | None = Field(
        None, gt=0, description="Weight each item by gamma / SNR, min_snr_gamma without its cap; ddpm only."
    )
    debiased_estimation_loss: Literal["off", "exact", "kohya"] = Field(
        "off",
        description="Weight by 1 / sqrt(SNR) (arXiv:2310.08442); true is exact, kohya another for v.",
    )
    loss_type: Annotated[
        Literal["mse", "mae", "huber", "smooth_l1", "pseudo_huber", "wavelet"],
        *one_of("loss type", LOSS_TYPES, LOSS_TYPES_NOT_YET),
    ] = Field(
        "mse",
        description="Distance between prediction and target: mse (squared), mae (absolute), or squared for "
        "small and absolute for large differences: huber, smooth_l1, pseudo_huber; or wavelet: squared, "
        "with fine details counted more.",
    )
    wavelet_detail: Float | None = Field(
        None,
        ge=0,
        description="How much details count in loss_type: wavelet (null: twice; 1 is mse).",
    )
    huber_c: Float | None = Field(
        None, gt=0, le=1, description="Where a Huber loss turns (null: 0.1, for pseudo_huber 0.01)."
    )
    huber_schedule: Literal["constant", "exponential", "snr"] | None = Field(
        None,
        description="How huber_c falls from 1 (clean) to its value (noise): constant, exponential or snr "
        "(null: snr, for pseudo_huber constant).",
    )
    noise_offset: Float = Field(
        0.0, ge=0, description="Spread of a value added to the noise of whole channels; 0.05 to 0.1 is usual."
    )
    multires_noise_iterations: Int = Field(
        0, ge=0, le=16, description="Levels of coarser noise added to the noise; 6 is usual."
    )
    multires_noise_discount: Float = Field(
        0.3, ge=0, le=1, description="Strength of each coarser level next to the one before."
    )
    ip_noise_gamma: Float = Field(
        0.0,
        ge=0,
        description="Input perturbation: noise that the target does not hold (arXiv:2301.11706); 0.1.",
    )
    force_consistent_noise: bool = Field(False, description="A picture has the same noise in every epoch.")
    noise_multiplier: Float = Field(1.0, description="Factor of the noise, mixed in and in the target.")
    target_noise_multiplier: Float = Field(1.0, description="Factor of the noise in the target alone.")
    latent_multiplier: Float = Field(1.0, description="Factor of the latents before noise is mixed in.")
    noisy_latent_multiplier: Float = Field(1.0, description="Factor of the latents after noise is mixed in.")
    img_multiplier: Float = Field(
        1.0, description="Factor of the pixels before they are encoded; not with cached latents."
    )
    random_noise_multiplier: Float = Field(
        0.0, ge=0, description="Spread of a random factor around 1 of the noise of whole channels."
    )
    random_noise_shift: Float = Field(
        0.0, ge=0, description="Spread of a random shift of the noise of whole channels."
    )
    optimal_noise_pairing_samples: Int = Field(
        1,
        ge=1,
        le=1024,
        description="Noises drawn for each item, of which the nearest to its latents is taken "
        "(arXiv:2406.12303); needs cached latents.",
    )
    zero_terminal_snr: bool = Field(
        False,
        description="Rescale the noise table so that it ends in pure noise (arXiv:2305.08891); needs v.",
    )
    reg_weight: Float = Field(1.0, ge=0, description="Weight of the losses of regularisation pictures.")
    normalize_masked_loss: bool = Field(
        True,
        description="Average over what a mask lets count, so that small subjects count as much as "
        "large ones; false averages over the whole picture, as kohya's scripts do.",
    )
    inverted_mask_prior: bool = Field(
        False, description="Hold what the masks leave out to what the base model predicts there."
    )
    inverted_mask_prior_multiplier: Float = Field(0.5, ge=0, description="Weight of inverted_mask_prior.")
    diff_output_preservation: bool = Field(
        False, description="Hold the prediction for the class word to the base model's, for the same noise."
    )
    diff_output_preservation_multiplier: Float = Field(
        1.0, ge=0, description="Weight of diff_output_preservation."
    )
    diff_output_preservation_class: Text = Field(
        "",
        description="Class word for the trigger word in diff_output_preservation, such as person.",
    )
    blank_prompt_preservation: bool = Field(
        False, description="Hold the prediction for the empty prompt to the base model's, for the same noise."
    )
    blank_prompt_preservation_multiplier: Float = Field(
        1.0, ge=0, description="Weight of blank_prompt_preservation."
    )
    do_differential_guidance: bool = Field(
        False, description="Aim beyond the target: prediction + scale (target - prediction)."
    )
    differential_guidance_scale: Float = Field(3.0, description="Scale of do_differential_guidance.")
    do_guidance_loss: bool = Field(
        False,
        description="Aim beyond the target, away from the prediction without a prompt: "
        "u + guidance_loss_target (target - u).",
    )
    guidance_loss_target: Float | Annotated[list[Float], Field(min_length=2, max_length=2)] = Field(
        3.0, description="Scale of do_guidance_loss, or two between which one is drawn for each item."
    )
    guidance_loss_schedule: Literal["constant", "sigma"] = Field(
        "constant",
        description="That scale at every noise level, or from 1 (clean) in a line to it (noise): sigma.",
    )
    do_guidance_loss_cfg_zero: bool = Field(
        False, description="Scale u to come as near to the target as it can first (arXiv:2503.18886)."
    )
    unconditional_prompt: Text = Field("", description="The prompt of u in do_guidance_loss.")
    do_cfg: bool = Field(
        False,
        description="Train with classifier-free guidance: the prediction that is compared is "
        "n + cfg_scale (prediction - n), n for negative_prompt.",
    )
    do_random_cfg: bool = Field(
        False, description="The same at a scale drawn for each item between 1 and max_cfg_scale."
    )
    cfg_scale: Float = Field(1.0, description="Scale of do_cfg.")
    max_cfg_scale: Float | None = Field(
        None, ge=1, description="Largest scale of do_random_cfg (null: cfg_scale)."
    )
    cfg_rescale: Float = Field(
        0.0, ge=0, le=1, description="How far guidance keeps the spread of its prediction (arXiv:2305.08891)."
    )
    negative_prompt: Text | None = Field(
        None,
        description="Prompt of n, or a text file with one on each line, drawn for each item (null: empty).",
    )
    pred_scaler: Float = Field(1.0, description="Factor of the prediction before it is compared.")
    match_noise_norm: bool = Field(
        False, description="Scale the prediction to the norm of its target before it is compared."
    )
    correct_pred_norm: bool = Field(
        False, description="Bring mean and spread of the prediction's channels to the base model's first."
    )
    correct_pred_norm_multiplier: Float = Field(
        1.0, ge=0, description="Share of the way that correct_pred_norm goes."
    )
    bypass_guidance_embedding: bool = Field(
        False,
        description="Train without the guidance embedding, as Flex.1 and other models without distillation "
        "are; previews still use it.",
    )
    cache_text_embeddings: bool = Field(
        False, description="Encode every caption once and set the text encoders aside; for all datasets."
    )
    validation_config: ValidationItemsConfig | None = Field(
        None, description="ai-toolkit's form of the section `validation`."
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Uniform noise levels for ddpm unless the file names a density."""
        data = super().prepare(data)
        data = {**data, **_debiased(data)}
        if data.get("linear_timesteps") or data.get("linear_timesteps2"):
            data = {"timestep_type": "linear", **data}
        if "timestep_type" not in data and data.get("noise_scheduler", "ddpm") != "flowmatch":
            data = {**data, "timestep_type": "linear"}
        return data

    @property
    def largest_cfg_scale(self) -> float:
        """The largest scale that do_cfg and do_random_cfg come to."""
        random = self.do_random_cfg and self.max_cfg_scale is not None
        return self.max_cfg_scale if random and self.max_cfg_scale is not None else self.cfg_scale

    @property
    def denoiser_lr(self) -> float:
        """Peak learning rate of the denoiser."""
        return self.lr if self.unet_lr is None else self.unet_lr

    @property
    def vectors_lr(self) -> float:
        """Peak learning rate of an embedding's vectors."""
        return self.lr if self.embedding_lr is None else self.embedding_lr

    @property
    def encoder_lr(self) -> float:
        """Peak learning rate of the text encoders."""
        return self.lr if self.text_encoder_lr is None else self.text_encoder_lr
