"""The autoencoder of the microworld's SDXL: 32x32 pictures to 8x8 latents of six channels, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from benchmarks.training import common
from dnd_microworld import world

SIDE = 32
"""Side of a generated picture: half of a scene's, shapes and textures stay legible."""
STEPS, BATCH, LR, SEED = 3400, 16, 6e-4, 5
KL_WEIGHT = 5e-4
"""Weight of the latents' mean KL divergence (nats): enough for a smooth latent space, not for blur."""


def build() -> Any:
    """An untrained AutoencoderKL of 1.3 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=6,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIDE,
        force_upcast=False,
    )


def shrink(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(B, 64, 64, 3) scenes -> (B, 3, 32, 32) in -1..1, averaged over 2x2 pixels."""
    return F.avg_pool2d(common.to_tensor(images), world.SIZE // SIDE)


def weights(owners: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(B, 64, 64) owners of pixels -> (B, 1, 32, 32): how much each counts. Shapes are small and hard, so more."""
    things = F.max_pool2d(torch.from_numpy(owners > 0).float()[:, None], world.SIZE // SIDE)
    return 1 + 3 * F.max_pool2d(things, 3, stride=1, padding=1)


def loss(vae: Any, pictures: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """L1 + L2 of pixels, L1 of their differences (flat areas stay flat, edges sharp), and a little KL."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments = vae.quant_conv(vae.encoder(pictures))
    mean, logvar = moments.float().chunk(2, dim=1)
    logvar = logvar.clamp(-20, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = vae.decoder(vae.post_quant_conv(mean + torch.randn_like(mean) * (0.5 * logvar).exp()))
    error = made.float() - pictures
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edge = (across.abs() * weight[..., 1:]).mean() + (down.abs() * weight[..., 1:, :]).mean()
    total = ((error.abs() + error.square()) * weight).mean() + 0.5 * edge + KL_WEIGHT * kl
    psnr = 10 * torch.log10(4 / error.detach().square().mean())
    return total, {"psnr": float(psnr), "kl": float(kl.detach())}


@torch.inference_mode()
def psnr(vae: Any, count: int = 1024) -> float:
    """Mean over validation pictures of the reconstruction's PSNR, in dB; latents at their means."""
    found = []
    for _, drawn in world.batches("validation", 0, count, 64):
        pictures = shrink(drawn.images)
        made = vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)
        found.append(10 * torch.log10(4 / (made - pictures).square().mean((1, 2, 3))))
    return float(torch.cat(found).mean())


@torch.inference_mode()
def latents(vae: Any, scenes: Sequence[world.Scene], size: int = 128) -> torch.Tensor:
    """Mean and spread of the scenes' latents, unscaled: (N, 2, 6, 8, 8) float16."""
    parts = []
    for at in range(0, len(scenes), size):
        pictures = shrink(world.render(scenes[at : at + size]).images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coded = vae.encode(pictures).latent_dist
        parts.append(torch.stack((coded.mean, coded.std), 1).half())
    return torch.cat(parts)


def load(work: Path) -> Any:
    """The autoencoder that `main` left in `work`."""
    vae = build()
    vae.load_state_dict(torch.load(work / "vae-mean.pt", weights_only=True))
    return vae.eval()


def main(work: Path, steps: int | None) -> None:
    """Train the autoencoder (half an hour on one core) and leave it as `work/vae-mean.pt`."""
    torch.manual_seed(SEED)
    vae = build()

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = world.render(world.draw_scenes("train", step * BATCH, BATCH))
        return loss(vae, shrink(drawn.images), weights(drawn.owners))

    common.fit(
        vae, loss_of, steps=steps or STEPS, lr=LR, work=work, name="vae", seed=SEED, weight_decay=1e-4, ema=0.998
    )
    torch.save(vae.state_dict(), work / "vae-mean.pt")
    print(f"validation PSNR {psnr(vae):.2f} dB", flush=True)
