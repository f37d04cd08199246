"""Writes the files of this folder with the libraries that people use: overcomplete 0.3.0, sae-lens 6.54 and ViT-Prisma
(its repository, May 2025). They are no dependency of the project: the files are what the tests read.

Each is a small autoencoder beside `expected.safetensors`: features x (7, 12), and what the library's own encode() makes
of them, by file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from overcomplete import sae as overcomplete
from sae_lens.saes import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from safetensors.torch import load_file, save_file
from vit_prisma.sae import sae as prisma
from vit_prisma.sae.config import VisionModelSAERunnerConfig

HERE = Path(__file__).parent
WIDTH, N = 12, 24
X = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 + 0.3


def shaken(module: torch.nn.Module, seed: int) -> Any:
    """With no weight left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor += torch.randn(tensor.shape, generator=generator) * 0.3
    return module


def of_overcomplete() -> dict[str, torch.Tensor]:
    points = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(1))
    made = {
        "plain": overcomplete.SAE(WIDTH, N),
        "topk": overcomplete.TopKSAE(WIDTH, N, top_k=5),
        "batchtopk": overcomplete.BatchTopKSAE(WIDTH, N, top_k=30),
        "jump": overcomplete.JumpSAE(WIDTH, N, encoder_module="mlp_bn_1"),
        "archetypal": overcomplete.RATopKSAE(WIDTH, N, points=points, top_k=3).tied(bias=True),
        "pursuit": overcomplete.MpSAE(WIDTH, N),
        "layernorm": overcomplete.TopKSAE(WIDTH, N, top_k=5, encoder_module="mlp_ln_1"),
    }
    found = {}
    for seed, (name, sae) in enumerate(made.items()):
        shaken(sae, seed).train()
        for _ in range(3):  # running statistics and thresholds
            sae(X + seed)
        torch.save(sae.eval(), HERE / f"overcomplete-{name}.pt")
        found[f"overcomplete-{name}.pt"] = sae.encode(X)[1]
    torch.save(made["archetypal"].train(), HERE / "overcomplete-training.pt")
    return found


def of_prisma() -> dict[str, torch.Tensor]:
    kinds = {
        "standard": (prisma.StandardSparseAutoencoder, {"activation_fn_str": "relu"}),
        "topk": (
            prisma.StandardSparseAutoencoder,
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": "none"},
        ),
        "gated": (prisma.GatedSparseAutoencoder, {"activation_fn_str": "relu", "architecture": "gated"}),
    }
    found = {}
    for seed, (name, (kind, settings)) in enumerate(kinds.items()):
        paths = {
            name: "anywhere" for name in ("dataset_path", "dataset_train_path", "dataset_val_path", "checkpoint_path")
        }
        config = VisionModelSAERunnerConfig(d_in=WIDTH, expansion_factor=2, _device="cpu", **paths, **settings)
        sae = shaken(kind(config), seed)
        folder = HERE / f"prisma-{name}"
        folder.mkdir(exist_ok=True)
        config.save_config(str(folder / "config.json"))
        torch.save(sae.state_dict(), folder / "weights.pt")  # as they are published
        found[folder.name] = sae.encode(X)[1]
    sae.save_model(str(HERE / "prisma-whole.pt"))  # as training leaves them
    return found | {"prisma-whole.pt": found["prisma-gated"]}


def of_sae_lens() -> dict[str, torch.Tensor]:
    sizes = {"d_in": WIDTH, "d_sae": N}
    made = {
        "standard": StandardSAE(StandardSAEConfig(**sizes, apply_b_dec_to_input=False)),
        "topk": TopKSAE(TopKSAEConfig(**sizes, k=3, rescale_acts_by_decoder_norm=True)),
        "gated": GatedSAE(GatedSAEConfig(**sizes, normalize_activations="layer_norm")),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**sizes, normalize_activations="constant_norm_rescale")),
    }
    found = {}
    for seed, (name, sae) in enumerate(made.items()):
        folder = HERE / f"saelens-{name}"
        shaken(sae, seed).save_model(folder)
        found[folder.name] = sae.encode(X)
    sae = shaken(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=3)), 9)
    sae.topk_threshold += 1.7
    sae.save_model(HERE / "saelens-batchtopk")  # a checkpoint of training
    sae.save_inference_model(HERE / "saelens-inference")
    inference = JumpReLUSAE(JumpReLUSAEConfig(**sizes))
    inference.load_state_dict(load_file(HERE / "saelens-inference" / "sae_weights.safetensors"))
    found["saelens-batchtopk"] = found["saelens-inference"] = inference.encode(X)
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    found = {**of_overcomplete(), **of_prisma(), **of_sae_lens()}
    tensors = {"x": X, **{name: value.detach().clone() for name, value in found.items()}}
    save_file(tensors, HERE / "expected.safetensors")
