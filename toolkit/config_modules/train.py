"""The `train` section of a diffusion trainer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from toolkit.config_modules.base import AnyOf, Float, one_of
from toolkit.config_modules.loop import LoopConfig
from toolkit.config_modules.names import SAMPLERS

# All of diffusers' Stable Diffusion schedulers share one training noise table; only their sampling differs.
_NOISE_TABLES = {name: "ddpm" for name in SAMPLERS if name not in ("flowmatch", "lcm")} | {
    "flowmatch": "flowmatch"
}
_NO_CFG = "only counts with do_cfg or do_random_cfg"
_NO_DOP = "only counts with diff_output_preservation"
_NO_GUIDANCE = "only counts with do_guidance_loss"
_NO_CONTROLNET = "only counts with controlnet_use"
_NO_FEATURES = "only counts with a feature extractor"
_TORCH_ATTENTION = "attention always runs through torch's own scaled_dot_product_attention"


class TrainConfig(LoopConfig):
    """What is trained, on which noise and with which loss."""

    NOT_YET: ClassVar = {
        "refiner_lr": None, "embedding_lr": None, "adapter_lr": None,
        "train_turbo": False, "attention_backend": "native",
        "content_or_style": "balanced", "content_or_style_reg": "balanced",
        "min_denoising_steps": 0, "max_denoising_steps": AnyOf(999, 1000), "num_train_timesteps": 1000,
        "linear_timesteps": False, "linear_timesteps2": False,
        "loss_target": "noise", "snr_gamma": None, "learnable_snr_gos": False,
        "noise_offset": 0.0, "dynamic_noise_offset": False,
        "noise_multiplier": 1.0, "target_noise_multiplier": 1.0, "latent_multiplier": 1.0,
        "noisy_latent_multiplier": 1.0, "img_multiplier": 1.0,
        "random_noise_multiplier": 0.0, "random_noise_shift": 0.0,
        "optimal_noise_pairing_samples": 1, "force_consistent_noise": False, "blended_blur_noise": False,
        "adaptive_scaling_factor": False, "standardize_images": False, "standardize_latents": False,
        "match_noise_norm": False,
        "do_cfg": False, "do_random_cfg": False, "negative_prompt": None,
        "prompt_dropout_prob": 0.0, "prompt_saturation_chance": 0.0,
        "reg_weight": 1.0, "inverted_mask_prior": False,
        "diff_output_preservation": False, "blank_prompt_preservation": False,
        "do_prior_divergence": False, "correct_pred_norm": False, "pred_scaler": 1.0, "target_norm_std": None,
        "do_differential_guidance": False, "do_guidance_loss": False, "bypass_guidance_embedding": False,
        "start_step": None, "unload_text_encoder": False,
        "short_and_long_captions": False, "short_and_long_captions_encoder_split": False,
        "single_item_batching": False, "merge_network_on_save": False,
        "free_u": False, "weight_jitter": 0.0, "switch_boundary_every": 1, "do_paramiter_swapping": False,
        "latent_feature_extractor_path": None, "diffusion_feature_extractor_path": None,
        "adapter_assist_name_or_path": None, "match_adapter_chance": 0.0, "match_adapter_assist": False,
        "log_per_example": False, "save_loss_json": False, "controlnet_use": False,
        "max_loss": None, "do_fft_loss": False, "t0_loss_target": False, "do_signal_correction_noise": False,
        "do_batch_noise_correction": False, "do_blank_stabilization": False, "validation_config": None,
    }  # fmt: skip
    IDLE: ClassVar = {
        "sdp": (False, _TORCH_ATTENTION), "xformers": (False, _TORCH_ATTENTION),
        "train_refiner": (True, "the supported models have no refiner"),
        "next_sample_timesteps": (8, "only counts with timestep_type: next_sample"),
        "cfg_scale": (1.0, _NO_CFG), "max_cfg_scale": (None, _NO_CFG), "cfg_rescale": (None, _NO_CFG),
        "max_negative_prompts": (1, "only counts with negative_prompt"),
        "inverted_mask_prior_multiplier": (0.5, "only counts with inverted_mask_prior"),
        "diff_output_preservation_multiplier": (1.0, _NO_DOP),
        "diff_output_preservation_class": ("", _NO_DOP),
        "blank_prompt_preservation_multiplier": (1.0, "only counts with blank_prompt_preservation"),
        "correct_pred_norm_multiplier": (1.0, "only counts with correct_pred_norm"),
        "differential_guidance_scale": (3.0, "only counts with do_differential_guidance"),
        "guidance_loss_target": (3.0, _NO_GUIDANCE), "do_guidance_loss_cfg_zero": (False, _NO_GUIDANCE),
        "guidance_loss_schedule": ("constant", _NO_GUIDANCE), "unconditional_prompt": ("", _NO_GUIDANCE),
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
    train_unet: bool = Field(True, description="Train the denoiser.")
    train_text_encoder: bool = Field(False, description="Train the text encoders.")
    noise_scheduler: Annotated[
        Literal["ddpm", "flowmatch"],
        *one_of("noise scheduler", _NOISE_TABLES, ("lcm", "custom_lcm", "mean_flow")),
    ] = Field(
        "ddpm", description="Noise of training: ddpm (a table of 1000 levels) or flowmatch (a straight line)."
    )
    timestep_type: Annotated[
        Literal["sigmoid", "linear"],
        *one_of(
            "timestep type",
            ("sigmoid", "linear"),
            ("shift", "flux_shift", "lumina2_shift", "weighted", "lognorm_blend", "next_sample", "one_step",
             "two_step", "four_step", "eight_step"),
        ),
    ] = Field(
        "sigmoid",
        description="Density of noise levels: sigmoid (of a normal draw: mostly middle) or linear (uniform). "
        "Left out it is sigmoid for flowmatch and linear for ddpm, as ai-toolkit trains.",
    )  # fmt: skip
    min_snr_gamma: Float | None = Field(
        None,
        gt=0,
        description="Weight each item by min(gamma / SNR, 1) (arXiv:2303.09556); 5 is usual; ddpm only.",
    )
    loss_type: Annotated[
        Literal["mse", "mae"],
        *one_of(
            "loss type", ("mse", "mae"), ("wavelet", "stepped", "mean_flow", "pixelspace", "pseudo_huber")
        ),
    ] = Field("mse", description="Distance between prediction and target: mse (squared) or mae (absolute).")
    cache_text_embeddings: bool = Field(
        False, description="Encode every caption once and set the text encoders aside; for all datasets."
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Uniform noise levels for ddpm unless the file names a density."""
        data = super().prepare(data)
        if "timestep_type" not in data and data.get("noise_scheduler", "ddpm") != "flowmatch":
            data = {**data, "timestep_type": "linear"}
        return data

    @property
    def denoiser_lr(self) -> float:
        """Peak learning rate of the denoiser."""
        return self.lr if self.unet_lr is None else self.unet_lr

    @property
    def encoder_lr(self) -> float:
        """Peak learning rate of the text encoders."""
        return self.lr if self.text_encoder_lr is None else self.text_encoder_lr
