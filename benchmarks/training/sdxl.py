"""The microworld's SDXL: a UNet on 8x8 latents and two text encoders, trained together from nothing."""

from __future__ import annotations

from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.training import autoencoder, common, prompts
from dnd_microworld import world

NAME = "microworld-sdxl"
VOCABULARY = 653
POOL, STEPS, BATCH, LR, SEED = 32_768, 7_900, 48, 1e-3, 6
SHAPES_FROM = 3_300
"""From this step on most scenes and phrases are of single shapes, which are learned last."""
DROPPED = 0.12
"""Share of prompts replaced by zeros, for guidance."""


def build() -> tuple[Any, Any, Any]:
    """Untrained UNet (4.4 M parameters) and the two text encoders (0.3 M)."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text(layers: int) -> Any:
        return CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=prompts.LENGTH,
            projection_dim=64,
            hidden_act="gelu",
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )

    unet = UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=8,
        in_channels=6,
        out_channels=6,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4),  # diffusers' name for the number of heads
        cross_attention_dim=128,
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64 + 6 * 8,
    )
    return unet, CLIPTextModel(text(2)), CLIPTextModelWithProjection(text(3))


def scheduler() -> Any:
    """Velocity prediction on a cosine that ends in pure noise: flat colours need the first step to know nothing."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(  # type: ignore[no-untyped-call]
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )


class Trained(nn.Module):
    """What learns: UNet and text encoders, conditioned exactly as StableDiffusionXLPipeline conditions them."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        super().__init__()
        self.unet, self.text, self.text_2 = build()
        self.unet.set_attn_processor(AttnProcessor())  # in bf16 on a CPU the fused kernel's backward is slow
        for text in (self.text, self.text_2):
            text.set_attn_implementation("eager")
        self.alphas: torch.Tensor
        self.register_buffer("alphas", scheduler().alphas_cumprod, persistent=False)

    def forward(self, clean: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Loss of a batch. clean: (B, 6, 8, 8) latents of unit variance; ids: (B, LENGTH) tokens."""
        size = len(clean)
        when = (torch.randperm(size) + torch.rand(size)) * (len(self.alphas) / size)  # spread evenly
        when = when.long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[when].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        kept = (torch.rand(size) >= DROPPED).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            one, two = self.text(ids, output_hidden_states=True), self.text_2(ids, output_hidden_states=True)
            hidden = torch.cat((one.hidden_states[-2], two.hidden_states[-2]), -1) * kept[:, None, None]
            sizes = torch.tensor([[autoencoder.SIDE, autoencoder.SIDE, 0, 0, autoencoder.SIDE, autoencoder.SIDE]])
            added = {"text_embeds": two.text_embeds * kept[:, None], "time_ids": sizes.repeat(size, 1)}
            guess = self.unet(noisy, when, hidden, added_cond_kwargs=added, return_dict=False)[0]
        return F.mse_loss(guess.float(), velocity)


def pool(work: Path, vae: Any) -> tuple[list[world.Scene], torch.Tensor]:
    """Training scenes worth learning from, and their latents (N, 2, 6, 8, 8): mean and spread. Kept in `work`."""
    rng, scenes = np.random.default_rng(SEED), []
    for index in count():
        scene = world.draw_scene("train", index)
        if prompts.wanted(scene, rng):
            scenes.append(scene)
        if len(scenes) == POOL:
            break
    path = work / "latents.pt"
    if not path.exists():
        torch.save(autoencoder.latents(vae, scenes), path)
    return scenes, torch.load(path, weights_only=True)


@torch.no_grad()
def _normalise(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Build the latents' scale into the two 1x1 convolutions: the pipeline's own per-channel scale takes 4 channels."""
    into, out = vae.quant_conv, vae.post_quant_conv
    into.bias -= torch.cat((mean, 2 * std.log()))
    into.weight[: len(std)] /= std[:, None, None, None]
    into.bias[: len(std)] /= std
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[:, None, None]
    vae.register_to_config(scaling_factor=1.0)


def export(work: Path, folder: Path = common.WEIGHTS / NAME) -> None:
    """Write the running mean of the training in `work`, finished or not, as a StableDiffusionXLPipeline."""
    from diffusers import StableDiffusionXLPipeline

    trained, vae = Trained(), autoencoder.load(work)
    state = torch.load(work / "sdxl.pt", weights_only=True)["mean"]
    trained.load_state_dict({k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")})
    scale = torch.load(work / "scale.pt", weights_only=True)
    _normalise(vae, scale["mean"], scale["std"])
    tokenizer = prompts.save_tokenizer(folder / "tokenizer")
    pipeline: Any = StableDiffusionXLPipeline(  # type: ignore[no-untyped-call]
        vae=vae,
        text_encoder=trained.text,
        text_encoder_2=trained.text_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=trained.unet,
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def main(work: Path, steps: int | None) -> None:
    """Train UNet and text encoders on the autoencoder's latents (80 minutes on one core) and ship them."""
    vae = autoencoder.load(work)
    scenes, coded = pool(work, vae)
    mean, std = coded[:, 0].float().mean((0, 2, 3)), coded[:, 0].float().std((0, 2, 3))
    torch.save({"mean": mean, "std": std}, work / "scale.pt")
    tokenizer = prompts.save_tokenizer(work / "tokenizer")
    assert len(tokenizer) == VOCABULARY, len(tokenizer)

    @cache
    def tokens(phrase: str) -> torch.Tensor:
        text = prompts.TEMPLATE.format(concept=phrase)
        found: torch.Tensor = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        return found[0]

    torch.manual_seed(SEED)
    trained = Trained()
    single = np.array([i for i, scene in enumerate(scenes) if len(scene.things) == 1])
    shift, scale = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng((SEED, step))
        chosen = rng.integers(len(scenes), size=BATCH)
        if step >= SHAPES_FROM:
            chosen = np.where(rng.random(BATCH) < 0.7, rng.choice(single, BATCH), chosen)
        phrases = [prompts.phrase_about(scenes[i], rng, 0.15 if step >= SHAPES_FROM else 0.4) for i in chosen]
        ids = torch.stack([tokens(phrase) for phrase in phrases])
        centre, spread = coded[chosen].float().unbind(1)
        clean = (centre + spread * torch.randn_like(centre) - shift) / scale
        return trained(clean, ids), {}

    common.fit(trained, loss_of, steps=steps or STEPS, lr=LR, work=work, name="sdxl", seed=SEED, warmup=300, ema=0.9993)
    export(work)
