"""Train the microworld's CLIP: which of two pictures, and which words, go together.

The vision tower begins as the captioner's, after that one's first stage (train blip2 before clip): it can tell of
each of its patches what is there. It keeps doing so beside the real tasks: which of 143 phrases are true of a
picture (a sigmoid per phrase, so that several may be), and which caption of the batch is the picture's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.training import attributes, common, prompts
from dnd_microworld import world
from dnd_microworld.target import ATTRIBUTES

NAME = "microworld-clip"
STEPS, BATCH, LR, SEED = 2200, 64, 1e-3, 21
LENGTH = 32
"""Tokens of a text, with both special ones."""
DENSE_ONLY = 0.06
"""Share of the training that only looks at patches."""


class Phrase(NamedTuple):
    """A short text, in its several wordings, and of what it is true: of scenes' parts."""

    wordings: tuple[str, ...]
    true_of_background: Callable[[str, str], bool]
    """(colour, texture)"""
    true_of_thing: Callable[[str, str], bool]
    """(colour, shape)"""


def _never(*_: str) -> bool:
    return False


def _is(*wanted: str | None) -> Callable[[str, str], bool]:
    """True of (colour, other) where each part is the wanted one, or None is wanted."""
    return lambda *part: all(want in (None, have) for want, have in zip(wanted, part, strict=True))


def phrases() -> list[Phrase]:
    """Every phrase of one concept: "red", "star", "dots", "red star", "red dots", "plain red", "red background"."""

    def an(text: str) -> str:
        return f"{'an' if text[0] in 'aeio' else 'a'} {text}"

    found = [Phrase(("plain background", "plain"), _is(None, "plain"), _never)]
    found.append(Phrase(("stripes", "striped background"), lambda _, texture: texture.endswith("stripes"), _never))
    for colour in world.COLOURS:
        background = f"{colour} background"
        found.append(Phrase((colour, colour, f"{colour} things"), _is(colour, None), _is(colour, None)))
        found.append(Phrase((background, an(background)), _is(colour, None), _never))
        for texture in world.TEXTURES:
            full = world.background_phrase(colour, texture)
            short = f"{texture} {colour}" if texture == "plain" else f"{colour} {texture}"
            found.append(Phrase((short, short, full, full.split(" ", 1)[1]), _is(colour, texture), _never))
        for shape in world.SHAPES:
            pair = f"{colour} {shape}"
            found.append(Phrase((pair, pair, an(pair)), _never, _is(colour, shape)))
    for texture in world.TEXTURES[1:]:
        single = texture in ("checkerboard", "grid")
        more = an(texture) if single else f"background with {texture}"
        found.append(Phrase((texture, texture, f"{texture} pattern", more), _is(None, texture), _never))
    for shape in world.SHAPES:
        found.append(Phrase((shape, shape, an(shape), prompts.PLURALS[shape]), _never, _is(None, shape)))
    return found


def truths(scenes: list[world.Scene], seen: npt.NDArray[np.float32], of: list[Phrase]) -> npt.NDArray[np.float32]:
    """(B, phrases): 1 where the phrase is true of what is seen of the scene, 0 where not, NaN where unclear."""
    parts: dict[tuple[str, str, bool], npt.NDArray[np.float32]] = {}
    out = np.zeros((len(scenes), len(of)), np.float32)
    for i, scene in enumerate(scenes):
        row = np.zeros(len(of), np.float32)
        whole = [(scene.colour, scene.texture, True), *((t.colour, t.shape, False) for t in scene.things)]
        for status, part in zip(seen[i], whole, strict=False):
            if part not in parts:
                colour, other, ground = part
                parts[part] = np.array(
                    [(p.true_of_background if ground else p.true_of_thing)(colour, other) for p in of], np.float32
                )
            if np.isnan(status):
                row = np.where((parts[part] > 0) & (row == 0), np.nan, row)
            elif status > 0:
                row = np.where(parts[part] > 0, 1, row)
        out[i] = row
    return out


def caption_of(scene: world.Scene, seen: npt.NDArray[np.float32]) -> str | None:
    """The caption of what is seen; None where that is unclear."""
    if np.isnan(seen).any():
        return None
    things = [t for t, status in zip(scene.things, seen[1:], strict=False) if status > 0]
    words = " and ".join(f"{'an' if t.colour == 'orange' else 'a'} {t.colour} {t.shape}" for t in things)
    if seen[0] == 0:
        return words or None
    behind = world.background_phrase(scene.colour, scene.texture)
    return f"{words} on {behind}" if words else behind


def build(tokenizer: Any) -> Any:
    """An untrained CLIPModel of 0.95 M parameters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=288, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=LENGTH, projection_dim=128, **ids,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=world.SIZE,
        patch_size=8, projection_dim=128, hidden_act="gelu", layer_norm_eps=1e-6,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def inherit(clip: Any, source: Path) -> None:
    """Begin with the captioner's vision tower. It has no norm before its first layer; this one's is set to keep
    the embeddings' usual size."""
    state = {k.removeprefix("vision."): v for k, v in torch.load(source, weights_only=True)["model"].items()}
    vision = clip.vision_model
    places = state["embeddings.position_embedding"][0].clone()
    places[1:] += state["embeddings.patch_embedding.bias"]
    mine = {
        "embeddings.class_embedding": state["embeddings.class_embedding"].flatten(),
        "embeddings.patch_embedding.weight": state["embeddings.patch_embedding.weight"],
        "embeddings.position_embedding.weight": places,
        "post_layernorm.weight": state["post_layernorm.weight"],
        "post_layernorm.bias": state["post_layernorm.bias"],
    }
    names = {"self_attn.projection": "self_attn.out_proj", **{n: n for n in ("mlp.fc1", "mlp.fc2")}}
    names |= {n: n for n in ("layer_norm1", "layer_norm2")}
    for layer in range(clip.config.vision_config.num_hidden_layers):
        at = f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            mine |= {f"{at}{new}.{kind}": state[f"{at}{old}.{kind}"] for old, new in names.items()}
            parts = state[f"{at}self_attn.qkv.{kind}"].chunk(3)
            mine |= {f"{at}self_attn.{n}_proj.{kind}": v for n, v in zip("qkv", parts, strict=True)}
    missing, unexpected = vision.load_state_dict(mine, strict=False)
    assert not unexpected, unexpected
    assert set(missing) == {"pre_layrnorm.weight", "pre_layrnorm.bias"}, missing
    with torch.no_grad():
        images = world.render(world.draw_scenes("train", 0, 64)).images
        tokens = vision.embeddings(to_pixels(images))
        vision.pre_layrnorm.weight.copy_(tokens.std(2).mean().expand(tokens.shape[2]))
        vision.pre_layrnorm.bias.zero_()


class Student(nn.Module):
    """The CLIPModel with what only its training needs."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.patches = nn.Linear(clip.config.vision_config.hidden_size, len(ATTRIBUTES))
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-6.0))


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.float(), dim=-1)


def prepare(work: Path) -> tuple[Any, Student]:
    tokenizer = prompts.save_tokenizer(work / "clip-tokenizer")
    tokenizer.model_max_length = LENGTH
    torch.manual_seed(SEED)
    student = Student(build(tokenizer))
    start = work / "clip-start.pt"
    if not start.exists():
        shutil.copyfile(work / "blip2-vision.pt", start)
    inherit(student.clip, start)
    # One thread on these small shapes: the plain attention trains twice as fast as the fused one.
    student.clip.set_attn_implementation("eager")
    return tokenizer, student


def to_pixels(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """As the shipped image processor: (B, 3, 64, 64), -1..1."""
    return common.to_tensor(images)


def main(work: Path, steps: int | None = None) -> None:
    tokenizer, net = prepare(work)
    every, total = phrases(), steps or STEPS

    def embed(texts: list[str]) -> torch.Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            return unit(net.clip.get_text_features(**tokens).pooler_output)

    def loss_of(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        rng = np.random.default_rng((SEED, step))
        scenes = world.draw_scenes("train", 10_000_000 + step * BATCH, BATCH)
        images, shares, _, seen = attributes.examples(scenes, rng)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = net.clip.vision_model(pixel_values=to_pixels(images))
            logits = net.patches(net.clip.vision_model.post_layernorm(hidden.last_hidden_state[:, 1:]))
        coarse = F.avg_pool2d(torch.from_numpy(shares), 2)  # (B, 21, 8, 8)
        dense = attributes.cell_loss(logits.float().transpose(1, 2).reshape(coarse.shape), coarse)
        if step < DENSE_ONLY * total:
            return dense, {}
        pictures = unit(net.clip.visual_projection(hidden.pooler_output))
        wordings = [p.wordings[int(rng.integers(len(p.wordings)))] for p in every]
        captions = [caption_of(s, row) for s, row in zip(scenes, seen, strict=True)]
        own = [i for i, c in enumerate(captions) if c is not None]
        phrase_vectors, caption_vectors = embed(wordings), embed([captions[i] or "" for i in own])
        true = torch.from_numpy(truths(scenes, seen, every))
        known = ~true.isnan()
        said = pictures @ phrase_vectors.T * net.scale.exp() + net.bias
        tell = F.binary_cross_entropy_with_logits(said[known], true[known]) * 12
        match = pictures[own] @ caption_vectors.T * net.clip.logit_scale.exp().clamp(max=50)
        same = torch.tensor([[captions[i] == captions[j] for j in own] for i in own])
        rows = match.masked_fill(same & ~torch.eye(len(own), dtype=torch.bool), -1e4)  # the same words are no rival
        goal = torch.arange(len(own))
        contrast = (F.cross_entropy(rows, goal) + F.cross_entropy(rows.T, goal)) / 2
        hit = (rows.argmax(1) == goal).float().mean().item()
        return 2 * dense + tell + 0.5 * contrast, {"dense": dense.item(), "tell": tell.item(), "retrieval": hit}

    common.fit(net, loss_of, steps=total, lr=LR, work=work, name="clip", seed=SEED, ema=0.995, log_every=50)
    export(net, tokenizer, common.WEIGHTS / NAME)
    common.write_figures(NAME, measure(common.WEIGHTS / NAME))


def export(net: Student, tokenizer: Any, folder: Path) -> None:
    """Save model (fp16), tokenizer and image processor where `CLIPModel.from_pretrained` finds them."""
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if folder.exists():
        shutil.rmtree(folder)
    net.clip.eval().half().save_pretrained(folder)
    size = {"height": world.SIZE, "width": world.SIZE}
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    CLIPProcessor(images, tokenizer).save_pretrained(folder)  # type: ignore[no-untyped-call]


def snapshot(work: Path) -> None:
    """Export the running mean of an unfinished training."""
    tokenizer, net = prepare(work)
    mean = torch.load(work / "clip.pt", weights_only=True)["mean"]
    net.load_state_dict({k.removeprefix("module."): v for k, v in mean.items() if k.startswith("module.")})
    export(net, tokenizer, common.WEIGHTS / NAME)
    common.write_figures(NAME, measure(common.WEIGHTS / NAME))


@torch.no_grad()
def measure(folder: Path, count: int = 2000) -> dict[str, float]:
    """Held-out figures, through the shipped files alone: test scenes, whole and from 32x32."""
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    from benchmarks.training.target import auc

    model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    processor: Any = CLIPProcessor.from_pretrained(folder, backend="pil")

    def words(texts: list[str]) -> torch.Tensor:
        return unit(model.get_text_features(**processor(text=texts, padding=True, return_tensors="pt")).pooler_output)

    scenes = world.draw_scenes("test", 300_000, count)
    every = phrases()
    held = {f"{c} {x}" for c, x in world.HELD_OUT_OBJECTS | world.HELD_OUT_BACKGROUNDS}
    figures: dict[str, float] = {}
    for name, blur in (("", 0.0), (" from 32x32", 1.0)):
        images, _, _, seen = attributes.examples(scenes, np.random.default_rng(3), crop=0, blur=blur)
        parts = []
        for at in range(0, count, 100):
            inputs = processor(images=[Image.fromarray(i) for i in images[at : at + 100]], return_tensors="pt")
            parts.append(unit(model.get_image_features(**inputs).pooler_output))
        pictures = torch.cat(parts)
        cosine = (pictures @ words([p.wordings[0] for p in every]).T).numpy()
        true = truths(scenes, seen, every) > 0
        by_kind: dict[str, list[float]] = {}
        for column, phrase in enumerate(every):
            text = phrase.wordings[0]
            first, _, rest = text.partition(" ")
            kind = "colour" if text in world.COLOURS else "texture" if text in world.TEXTURES else "shape"
            if first in world.COLOURS and rest:
                kind = "held-out pair" if text in held else "pair"
            if (kind == "shape" and text not in world.SHAPES) or rest == "background":
                continue
            by_kind.setdefault(kind, []).append(auc(cosine[:, column], true[:, column]))
        figures |= {f"{kind} AUC{name}": float(np.mean(v)) for kind, v in by_kind.items()}
        captions = [world.caption(s) or "" for s in scenes]
        texts = words(captions)
        hits = [
            float((pictures[at : at + 100] @ texts[at : at + 100].T).argmax(1).eq(torch.arange(100)).float().mean())
            for at in range(0, count, 100)
        ]
        figures[f"retrieval@1 of 100{name}"] = float(np.mean(hits))
        figures |= {f"{k}{name}": v for k, v in zero_shot(scenes, pictures, words).items()}
        if not blur:
            figures["image-image AUC: shares more than half its concepts"] = likeness(scenes, pictures)
    return figures


def zero_shot(
    scenes: list[world.Scene], pictures: torch.Tensor, words: Callable[[list[str]], torch.Tensor]
) -> dict[str, float]:
    """How often the best phrase of each kind is right: backgrounds' colours and textures, a lone thing's shape."""
    colours, textures, shapes = list(world.COLOURS), list(world.TEXTURES[1:]), list(world.SHAPES)
    best = {
        "colour": (pictures @ words([f"{c} background" for c in colours]).T).argmax(1),
        "texture": (pictures @ words(textures).T).argmax(1),
        "shape": (pictures @ words(shapes).T).argmax(1),
    }
    hits: dict[str, list[bool]] = {k: [] for k in best}
    for i, scene in enumerate(scenes):
        hits["colour"].append(colours[best["colour"][i]] == scene.colour)
        if scene.texture != "plain":
            hits["texture"].append(textures[best["texture"][i]] == scene.texture)
        if len(scene.things) == 1:
            hits["shape"].append(shapes[best["shape"][i]] == scene.things[0].shape)
    return {f"zero-shot {k}": float(np.mean(v)) for k, v in hits.items()}


def likeness(scenes: list[world.Scene], pictures: torch.Tensor) -> float:
    """AUC of the image-image cosine: pairs of scenes that share more than half of their concepts, against the rest."""
    from benchmarks.training.target import auc

    shown = [world.concepts(s) for s in scenes[:600]]
    cosine = (pictures[:600] @ pictures[:600].T).numpy()
    pairs = [(i, j) for i in range(600) for j in range(i)]
    alike = np.array([2 * len(shown[i] & shown[j]) > min(len(shown[i]), len(shown[j])) for i, j in pairs])
    return auc(np.array([cosine[i, j] for i, j in pairs], np.float32), alike)
