"""Train the microworld's captioner: a real BLIP-2 of 1.8 million parameters, from nothing, on one CPU core.

A small vision transformer learns colours and textures at once and shapes last. So the vision tower is first
trained alone to tell, patch by patch, what the masks say (shape, colour, texture, outline), and those linear
heads stay on as an auxiliary loss while the whole learns to write captions. They are not shipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from benchmarks.training import common
from dnd_microworld import world

NAME = "microworld-blip2"
SEED = 2
WIDTH, QUERIES, PATCH = 128, 16, 8
WARM_STEPS, WARM_SCENES = 1520, 32
STEPS, SCENES = 2560, 16
"""Steps and scenes a step, of the vision tower alone and of the whole. A scene gives a picture and a crop."""
GRID = world.SIZE // PATCH
COLOURS = tuple(world.COLOURS)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SECTIONS = {"shape": 1 + len(world.SHAPES), "colour": len(COLOURS), "texture": len(world.TEXTURES), "outline": 16}
"""Outputs of the auxiliary head per patch: soft classes, but for the outline: how full each 2x2 pixels are."""


# --- data ------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Pictures with their captions, and what their patches show."""

    images: npt.NDArray[np.uint8]
    """(B, 64, 64, 3)."""
    captions: list[str]
    patches: dict[str, torch.Tensor]
    """Section -> (B, 64, classes) float32: the share of the patch's pixels of each class; the texture's
    shares add up to that of the background."""
    scenes: list[world.Scene]


def draw_box(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A crop of sides 24..64, every second one square: (left, top, right, bottom)."""
    width, height = (int(side) for side in rng.integers(24, world.SIZE + 1, 2))
    if rng.random() < 0.5:
        height = width
    left, top = int(rng.integers(world.SIZE - width + 1)), int(rng.integers(world.SIZE - height + 1))
    return left, top, left + width, top + height


def resized(image: npt.NDArray[np.uint8], side: int, filtering: Image.Resampling) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((side, side), filtering))


def batch(split: str, start: int, scenes: int, *, crops: bool = True, whole: bool = True, blur: float = 1 / 3) -> Batch:
    """Every scene whole and (or) as one random crop of its own; a share `blur` of them seen through 32x32 pixels.

    A scene none of whose eight random crops has a clear caption gives no crop. Depends on the arguments alone.
    """
    drawn = world.draw_scenes(split, start, scenes)
    rendered = world.render(drawn)
    rng = np.random.default_rng((SEED, world.SPLITS[split], start))
    images, captions, owners, sources = [], [], [], []
    for scene, image, owner in zip(drawn, rendered.images, rendered.owners, strict=True):
        boxes = [draw_box(rng) for _ in range(8)] if crops else []
        for box in [None] * whole + boxes:
            words = world.caption(scene, box, owner)
            if words is None:
                continue
            picture, seen = image, owner
            if box is not None:
                left, top, right, bottom = box
                picture = resized(image[top:bottom, left:right], world.SIZE, Image.Resampling.BICUBIC)
                seen = resized(owner[top:bottom, left:right], world.SIZE, Image.Resampling.NEAREST)
            if rng.random() < blur:
                small = resized(picture, world.SIZE // 2, Image.Resampling.BOX)
                picture = resized(small, world.SIZE, Image.Resampling.BICUBIC)
            images.append(picture)
            captions.append(words)
            owners.append(seen)
            sources.append(scene)
            if box is not None:
                break
    return Batch(np.stack(images), captions, patch_targets(sources, np.stack(owners)), sources)


def patch_targets(scenes: list[world.Scene], owners: npt.NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    """What each patch shows. owners: (B, 64, 64)."""
    cells = owners.reshape(-1, GRID, PATCH, GRID, PATCH).swapaxes(2, 3).reshape(-1, GRID * GRID, PATCH * PATCH)
    shares = np.stack([(cells == place).mean(axis=2) for place in range(3)], axis=2).astype(np.float32)  # (B, 64, 3)
    n = len(scenes)
    shape, colour, texture = (np.zeros((n, 3, SECTIONS[s]), np.float32) for s in ("shape", "colour", "texture"))
    shape[:, 0, 0] = 1
    for i, scene in enumerate(scenes):
        colour[i, 0, COLOURS.index(scene.colour)] = 1
        texture[i, 0, world.TEXTURES.index(scene.texture)] = 1
        for place, thing in enumerate(scene.things, start=1):
            shape[i, place, 1 + world.SHAPES.index(thing.shape)] = 1
            colour[i, place, COLOURS.index(thing.colour)] = 1
    full = (cells > 0).reshape(n, GRID * GRID, 4, 2, 4, 2).mean(axis=(3, 5), dtype=np.float32)
    found = {"shape": shares @ shape, "colour": shares @ colour, "texture": shares @ texture}
    found["outline"] = full.reshape(n, GRID * GRID, 16)
    return {section: torch.from_numpy(values) for section, values in found.items()}


# --- model -----------------------------------------------------------------------------------------


def build_processor() -> Blip2Processor:
    """Word-level tokenizer of every word that a caption can hold, and the image processor that runs on PIL alone."""
    phrases = [world.background_phrase(c, t) for c in world.COLOURS for t in world.TEXTURES]
    words = sorted({w for p in phrases for w in p.split()} | {*world.SHAPES, "a", "an", "and", "on"})
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )
    pictures = BlipImageProcessorPil(
        size={"height": world.SIZE, "width": world.SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Blip2Processor(pictures, tokenizer, num_query_tokens=QUERIES)


def build_model(processor: Blip2Processor) -> Blip2ForConditionalGeneration:
    tokenizer = processor.tokenizer
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=world.SIZE,
            patch_size=PATCH,
            initializer_range=0.02,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=64,
            cross_attention_frequency=1,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=4 * WIDTH,
            max_position_embeddings=64,
            dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ).to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=WIDTH,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config)
    # One thread on these small shapes: the plain attention trains twice as fast as the fused one.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model.query_tokens.normal_()
        model.vision_model.embeddings.position_embedding.copy_(waves())
        model.vision_model.embeddings.class_embedding.normal_(std=0.1)
        nn.init.normal_(model.vision_model.embeddings.patch_embedding.weight, std=(3 * PATCH * PATCH) ** -0.5)
    return model


def waves() -> torch.Tensor:
    """The first position embedding, (1, 65, WIDTH): sines and cosines of a patch's column and row; the first is 0."""
    at = torch.arange(GRID, dtype=torch.float32)[:, None] * torch.pi / GRID * torch.logspace(-1, 3, WIDTH // 4, base=2)
    line = torch.cat([at.sin(), at.cos()], dim=1) * 0.3  # (8, WIDTH / 2)
    grid = torch.cat([line.repeat(GRID, 1), line.repeat_interleave(GRID, dim=0)], dim=1)
    return torch.cat([torch.zeros(1, WIDTH), grid])[None]


class Student(nn.Module):
    """BLIP-2 with the auxiliary heads on its vision tower."""

    def __init__(self, processor: Blip2Processor) -> None:
        super().__init__()
        self.blip = build_model(processor)
        self.heads = nn.Linear(WIDTH, sum(SECTIONS.values()))
        self.tokenizer = processor.tokenizer

    def patch_loss(
        self, seen: torch.Tensor, patches: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """seen: (B, 65, WIDTH), the vision tower's tokens."""
        parts = dict(zip(SECTIONS, self.heads(seen[:, 1:]).float().split(list(SECTIONS.values()), dim=-1), strict=True))
        loss = functional.binary_cross_entropy_with_logits(parts["outline"], patches["outline"])
        for section, weight in (("shape", 2.0), ("colour", 1.0), ("texture", 1.0)):
            # Patches of things are few: their classes weigh as much as the background's.
            loss = loss - weight * (patches[section] * parts[section].log_softmax(-1)).sum(-1).mean()
        figures = {}
        with torch.no_grad():
            things = patches["shape"][..., 1:].sum(-1) > 0.5
            for section in ("shape", "colour"):
                right = parts[section].argmax(-1) == patches[section].argmax(-1)
                figures[section] = float(right[things].float().mean())
            right = parts["texture"].argmax(-1) == patches["texture"].argmax(-1)
            figures["texture"] = float(right[~things].float().mean())
        return loss, figures

    def caption_loss(self, images: torch.Tensor, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of a word, and the vision tower's tokens (B, 65, WIDTH)."""
        rows = [self.tokenizer(words + " </s>")["input_ids"] for words in captions]
        text = nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self.tokenizer.pad_token_id
        )
        image_token: int = self.tokenizer.convert_tokens_to_ids("<image>")
        ids = torch.cat([torch.full((len(rows), QUERIES), image_token), text], dim=1)
        labels = ids.masked_fill((ids == image_token) | (ids < 2), -100)  # neither <pad> nor <s> is to be written
        out = self.blip(pixel_values=images, input_ids=ids, attention_mask=(ids != self.tokenizer.pad_token_id).long())
        logits = out.logits[:, QUERIES:-1].float()
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, QUERIES + 1 :].flatten(), ignore_index=-100)
        return loss, out.vision_outputs.last_hidden_state


def train_step(student: Student, step: int, *, captions: bool) -> tuple[torch.Tensor, dict[str, float]]:
    if captions:
        data = batch("train", WARM_STEPS * WARM_SCENES + step * SCENES, SCENES)
    else:
        data = batch("train", step * WARM_SCENES, WARM_SCENES)
    images = common.to_tensor(data.images)
    with torch.autocast("cpu", torch.bfloat16):
        if not captions:
            return student.patch_loss(student.blip.vision_model(images).last_hidden_state, data.patches)
        said, seen = student.caption_loss(images, data.captions)
        looked, figures = student.patch_loss(seen, data.patches)
        return said + 0.5 * looked, {"words": said.item(), **figures}


# --- export and figures ----------------------------------------------------------------------------


def export(blip: Blip2ForConditionalGeneration, processor: Blip2Processor, folder: Path) -> None:
    """Write the checkpoint in half precision, safetensors, so that plain `from_pretrained` reads it."""
    fresh = Blip2ForConditionalGeneration(Blip2Config.from_dict(blip.config.to_dict()))
    fresh.load_state_dict(blip.state_dict())
    fresh.generation_config.max_new_tokens = 32
    shutil.rmtree(folder, ignore_errors=True)
    fresh.half().save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def read(words: str) -> tuple[list[tuple[str, str]], tuple[str, str] | None]:
    """A caption's things, (colour, shape) from left to right, and its background, (colour, texture)."""
    things_part, _, behind = words.partition(" on ") if " on " in words else ("", "", words)
    if "background" not in behind:
        things_part, behind = words, ""
    pairs = [tuple(p.split()[1:]) for p in things_part.split(" and ")] if things_part else []
    grounds = {world.background_phrase(c, t): (c, t) for c in world.COLOURS for t in world.TEXTURES}
    return [(p[0], p[1]) for p in pairs if len(p) == 2], grounds.get(behind)


def caption_all(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, images: npt.NDArray[np.uint8]
) -> list[str]:
    """Greedy captions by plain `generate`, 64 at a time."""
    said: list[str] = []
    for at in range(0, len(images), 64):
        inputs = processor(images=[Image.fromarray(i) for i in images[at : at + 64]], return_tensors="pt")
        ids = model.generate(pixel_values=inputs["pixel_values"].to(model.dtype), max_new_tokens=32, do_sample=False)
        said += [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    return said


def judge(truth: list[str], said: list[str]) -> dict[str, float]:
    """Shares of right answers; a thing's place in the caption counts, and a missing thing is wrong."""
    asked = ("background colour", "texture", "object colour", "object shape", "exact", "exact of one thing")
    hits: dict[str, list[bool]] = {k: [] for k in asked}
    for true, words in zip(truth, said, strict=True):
        things, ground = read(true)
        found, behind = read(words)
        hits["exact"].append(true == words)
        if len(things) == 1:
            hits["exact of one thing"].append(true == words)
        if ground:
            hits["background colour"].append(behind is not None and behind[0] == ground[0])
            hits["texture"].append(behind is not None and behind[1] == ground[1])
        for place, thing in enumerate(things):
            there = found[place] if place < len(found) else ("", "")
            hits["object colour"].append(there[0] == thing[0])
            hits["object shape"].append(there[1] == thing[1])
    return {k: float(np.mean(v)) for k, v in hits.items()}


def judge_pairs(truth: list[str], said: list[str]) -> float:
    """Of the pairs that training never showed and that a caption ought to name, the share it names."""
    hits = []
    for true, words in zip(truth, said, strict=True):
        things, ground = read(true)
        found, behind = read(words)
        hits += [pair in found for pair in things if pair in world.HELD_OUT_OBJECTS]
        hits += [behind == ground] if ground in world.HELD_OUT_BACKGROUNDS else []
    return float(np.mean(hits))


def measure(folder: Path) -> dict[str, float]:
    """Held-out figures of a saved checkpoint, through plain `from_pretrained` and `generate`."""
    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Blip2Processor.from_pretrained(folder)
    figures: dict[str, float] = {}
    for split, count in (("validation", 600), ("test", 1200)):
        for view in ("scenes", "crops", "blurred scenes"):
            crops = view == "crops"
            data = batch(split, 0, count, crops=crops, whole=not crops, blur=float(view.startswith("blurred")))
            chosen = [i for i, s in enumerate(data.scenes) if split != "test" or shows_held_out(s)]
            truth = [data.captions[i] for i in chosen]
            said = caption_all(model, processor, data.images[chosen])
            where = view if split == "validation" else f"held-out pairs, {view}"
            figures |= {f"{where}: {k}": v for k, v in judge(truth, said).items()}
            if split == "test":
                figures[f"{where}: pair named"] = judge_pairs(truth, said)
    return figures


def shows_held_out(scene: world.Scene) -> bool:
    pairs = {(thing.colour, thing.shape) for thing in scene.things}
    return bool(pairs & world.HELD_OUT_OBJECTS) or (scene.colour, scene.texture) in world.HELD_OUT_BACKGROUNDS


def main(work: Path, steps: int | None = None) -> None:
    """Train (or resume) in `work`, write the checkpoint and its held-out figures. `steps`: of the joint training."""
    steps = STEPS if steps is None else steps
    torch.manual_seed(SEED)
    processor = build_processor()
    student = Student(processor)
    common.fit(
        nn.ModuleDict({"vision": student.blip.vision_model, "heads": student.heads}),
        lambda step: train_step(student, step, captions=False),
        steps=min(WARM_STEPS, steps),
        lr=1.5e-3,
        work=work,
        name="blip2-vision",
        seed=SEED,
        weight_decay=0.03,
    )
    common.fit(
        student,
        lambda step: train_step(student, step, captions=True),
        steps=steps,
        lr=1e-3,
        work=work,
        name="blip2",
        seed=SEED,
        weight_decay=0.03,
        ema=0.998,
    )
    export(student.blip, processor, common.WEIGHTS / NAME)
    common.write_figures(NAME, measure(common.WEIGHTS / NAME))


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
