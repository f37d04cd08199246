"""Checkpoints of the architectures with random weights, under the file names and in the shards of the published ones.

Speed and memory do not depend on what weights say. A model is never whole in memory: it is drawn tensor by tensor, and
a shard is written before the next is drawn.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import architectures as arch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from dnd.models.digests import sha256_of
from dnd.models.lockfile import LockedFile, LockedModel, read_lock, write_lock
from dnd_microworld import world

LOCK = Path(__file__).parent.parent / "models.lock"
_TOKENIZERS = Path(world.__file__).parent / "weights"
State = Mapping[str, torch.Tensor]


@contextmanager
def lent(architecture: str, size: str, device: str, work: Path | None, keep: bool = False) -> Iterator[dict[str, str]]:
    """A store with one random model and its models.lock, as environment variables.

    It lies in a folder of `work`, and is gone afterwards unless `keep`; a model that was kept is not drawn again.
    """
    if not keep:
        with tempfile.TemporaryDirectory(dir=work) as place:
            yield _store(architecture, size, device, Path(place))
        return
    place = (work or Path(tempfile.gettempdir())) / f"random-{size}-{architecture}"
    yield _store(architecture, size, device, place)


def _store(architecture: str, size: str, device: str, store: Path) -> dict[str, str]:
    lock, name = store / "random.lock", arch.model_name(architecture, size)
    if not lock.exists():
        shutil.rmtree(store / name, ignore_errors=True)
        write(architecture, size, device, store / name)
        entry = _entry(store / name, name, read_lock(LOCK)[arch.MODELS[architecture]])
        write_lock(lock, {name: entry})
    return {"DND_MODELS": str(store), "DND_LOCK": str(lock), "DND_CACHE": str(store / "cache")}


def _entry(folder: Path, name: str, like: LockedModel) -> LockedModel:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_of, paths))
    files = tuple(
        LockedFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=digest)
        for path, digest in zip(paths, digests, strict=True)
    )
    source = f"hub:random/weights@{0:040}"
    return LockedModel(name=name, role=like.role, source=source, licence="none", gated=False, files=files)


def write(architecture: str, size: str, device: str, folder: Path) -> None:
    """A random model, drawn on the device, with all that its plugin reads."""
    folder.mkdir(parents=True)
    writers = {
        "blip2": _write_blip2,
        "blip2-t5": partial(_write_blip2, language="t5"),
        "llama": _write_llama,
        "sdxl": _write_sdxl,
        "clip": _write_clip,
    }
    writers[architecture](size, device, folder)


def _write_blip2(size: str, device: str, folder: Path, language: str = "opt") -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Blip2Processor, PreTrainedTokenizerFast
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        "<image>",
        *(f"w{number}" for number in range(arch.N_WORDS[language][size] - 5)),
    ]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##")
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["<image>"], **named)
    pictures = BlipImageProcessorPil(size={"height": arch.SIDE[size], "width": arch.SIDE[size]})
    Blip2Processor(pictures, tokenizer, num_query_tokens=arch.N_QUERIES[size]).save_pretrained(folder)
    model = _empty(lambda: arch.blip2_model(size, language), torch.float32)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _draw(_state(model), folder, device, shard="10GB")


def _write_llama(size: str, device: str, folder: Path) -> None:
    for file in (_TOKENIZERS / "microworld-llama").iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    model = _empty(lambda: arch.llama_model(size), torch.bfloat16)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _draw(_state(model), folder, device, shard="5GB")


def _write_clip(size: str, device: str, folder: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    side = arch.SIDE[size]
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    CLIPProcessor(pictures, _clip_tokenizer(size)).save_pretrained(folder)
    model = _empty(lambda: arch.clip_model(size), torch.float32)
    model.config.save_pretrained(folder)
    places = {  # OpenAI's file has them still
        f"{tower}_model.embeddings.position_ids": torch.arange(count)[None]
        for tower, count in (("text", arch.N_PLACES[size]), ("vision", (side // 14) ** 2 + 1))
    }
    _draw(_state(model), folder, device, shard="10GB", others=places)


def _write_sdxl(size: str, device: str, folder: Path) -> None:
    """Half precision, in files of the variant "fp16"; the VAE is sdxl-vae-fp16-fix, which has one file in float32."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    tokenizer = _clip_tokenizer(size)
    parts = {
        name: _empty(build, torch.float32 if name == "vae" else torch.float16)
        for name, build in arch.sdxl_parts(size).items()
    }
    pipeline = StableDiffusionXLPipeline(
        **parts, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler, add_watermarker=False
    )
    pipeline.save_config(folder)
    scheduler.save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(folder / name)
    for name, model in parts.items():
        text = name.startswith("text")
        if text:
            model.config.save_pretrained(folder / name)
        else:
            model.save_config(folder / name)
        stem = "model" if text else "diffusion_pytorch_model"
        state = _state(model)
        if name == "text_encoder":  # transformers 5 leaves the prefix away; published files have it
            state = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in state.items()}
        _draw(state, folder / name, device, shard="10GB", stem=stem, variant="" if name == "vae" else ".fp16")


def _clip_tokenizer(size: str) -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(
        _TOKENIZERS / "microworld-sdxl" / "tokenizer", model_max_length=arch.N_PLACES[size]
    )
    tokenizer.add_tokens([f"unused{number}" for number in range(len(tokenizer), arch.N_CLIP_TOKENS)])
    return tokenizer


# --- from shapes to files -----------------------------------------------------------------------------


def _empty(build: Callable[[], Any], dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return build().to(dtype)


def _state(model: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint has of a model without weights: shared ones once."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _draw(
    state: State,
    folder: Path,
    device: str,
    *,
    shard: str,
    stem: str = "model",
    variant: str = "",
    others: State | None = None,
) -> None:
    """Write the tensors, drawn one file at a time; `others` go into the last as they are."""
    pattern = f"{stem}{{suffix}}{variant}.safetensors"
    split = split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=shard)
    files = list(split.filename_to_tensors.items())
    for file, names in files:
        drawn = {name: _random(name, state[name], device) for name in names}
        if others and file == files[-1][0]:
            drawn |= others
        save_file(drawn, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")


def _random(name: str, like: torch.Tensor, device: str) -> torch.Tensor:
    """Weights that keep the size of what passes: norms are one, biases zero, matrices have rows of length about one."""
    if like.dim() < 2:
        return torch.full(like.shape, float(name.endswith("weight")), dtype=like.dtype, device=device)
    source = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    drawn = torch.empty(like.shape, dtype=like.dtype, device=device)
    return drawn.normal_(0, 1 / math.sqrt(like[0].numel()), generator=source)
