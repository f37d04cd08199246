"""Sentence embeddings of a local encoder, and of each text's tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnd.api import is_out_of_memory
from dnd.errors import DndError, ModelError, UsageError
from dnd.models.weights import Weights

Floats = npt.NDArray[np.float32]
_BATCH = 64
_LONGEST = 256
"""Tokens of a text that are read at most."""


@dataclass(frozen=True)
class Encoded:
    """Texts as vectors of length 1."""

    sentences: Floats
    """(n, d)."""
    tokens: Floats
    """(all tokens, d): those of each text one after the other, without the special ones; one of zeros for a text
    that has none."""
    starts: npt.NDArray[np.int64]
    """(n,): where each text's tokens begin."""


def find_model(name: str, role: str, option: str) -> tuple[Path, str]:
    """The folder of a model by its name in models.lock, verified, or of any local folder; and what names it."""
    weights = Weights.default()
    if name in weights.by_name:
        weights.check_role(name, option, (role,))
        return weights.resolve(name), weights.digest(name)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder, ""
    known = ", ".join(model.name for model in weights.by_name.values() if model.role == role)
    what = f"{name} holds no config.json" if folder.is_dir() else f"there is no {role} {name!r}"
    raise UsageError(what, f"Name a folder with a model, or one of models.lock: {known}.")


class Encoder:
    """A BERT-like sentence encoder: mean of the tokens' last hidden states, or the first token's where it says so."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        self.name = name
        folder, self.digest = find_model(name, "encoder", "--encoder")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
            model, info = AutoModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **local)
        except Exception as error:  # whatever a library raises as it reads a folder is for what the folder holds
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{folder} does not load as a sentence encoder: {error}",
                "It needs config.json, the tokenizer's files and safetensors weights.",
            ) from error
        # Nobody reads the pooler, and many checkpoints have none. Any other part would go on with random weights.
        if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
            raise ModelError(
                f"the weights in {folder} are not whole: {missing[0]} is missing ({len(missing)} in all)",
                "See that config.json and the weights are of the same checkpoint.",
            )
        if 2 * len(self._tokenizer) < model.config.vocab_size:
            raise ModelError(
                f"the tokenizer in {folder} has {len(self._tokenizer)} tokens, the model {model.config.vocab_size}",
                "Put the tokenizer's files of the model beside its weights.",
            )
        self._model: Any = model.float().to(device).eval()
        self._first_token = _pools_first_token(folder)
        self._known: dict[str, tuple[Floats, Floats]] = {}

    def encode(self, texts: Sequence[str] | str) -> Encoded:
        """Vectors of each text, in order, every distinct text read once ever; a lone string is one text."""
        wanted = [texts] if isinstance(texts, str) else list(texts)
        new = sorted({text for text in wanted if text not in self._known}, key=lambda text: (len(text), text))
        for at in range(0, len(new), _BATCH):
            batch = new[at : at + _BATCH]
            self._known.update(zip(batch, zip(*self._read(batch), strict=True), strict=True))
        sentences, tokens = zip(*(self._known[text] for text in wanted), strict=True)
        return Encoded(
            np.stack(sentences), np.concatenate(tokens), np.cumsum([0, *(len(those) for those in tokens[:-1])])
        )

    def _read(self, batch: list[str]) -> tuple[Floats, list[Floats]]:
        import torch

        inputs = self._tokenizer(
            batch,
            padding=True,
            truncation=True,
            max_length=_LONGEST,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        special = inputs.pop("special_tokens_mask").bool()
        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            states = self._model(**inputs).last_hidden_state.float().cpu()  # (B, T, d)
        mask = inputs["attention_mask"].cpu().bool()
        pooled = states[:, 0] if self._first_token else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        normal = torch.nn.functional.normalize
        parts = [normal(row[keep], dim=-1).numpy() for row, keep in zip(states, mask & ~special, strict=True)]
        nothing = np.zeros((1, states.shape[2]), np.float32)
        return normal(pooled, dim=-1).numpy(), [part if len(part) else nothing for part in parts]


def _pools_first_token(folder: Path) -> bool:
    """What a sentence-transformers folder says of its pooling; the mean where it says nothing."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return False
    chosen = [key for key, value in json.loads(file.read_text("utf-8")).items() if value is True]
    modes = [key for key in chosen if key.startswith("pooling_mode_")]
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ModelError(f"{file}: {', '.join(modes) or 'no pooling'} is not supported", "Mean and first token are.")
    return modes == ["pooling_mode_cls_token"]


_NEEDS = ("scipy", "transformers")


def load_encoder(name: str | None = None) -> Encoder:
    """An encoder by its name in models.lock or its folder; by default the first of models.lock that is here.

    Raises ModelError where there is none, UsageError where the packages are missing that it needs.
    """
    missing = [module for module in _NEEDS if util.find_spec(module) is None]
    if missing:
        raise UsageError(f"packages are missing: {', '.join(missing)}", "Run: pip install 'dnd-describe[eval]'")
    from dnd.models.weights import Weights

    if name is not None:
        return Encoder(name)
    weights = Weights.default()
    known = [model.name for model in weights.by_name.values() if model.role == "encoder"]
    for one in known:
        try:
            weights.resolve(one)
        except DndError:
            continue
        return Encoder(one)
    raise ModelError(
        "no sentence encoder is on this machine",
        f"`dnd models fetch {known[0]}`, or name one with --encoder FOLDER." if known else "Name one with --encoder.",
    )


def embed(encoder: Encoder, texts: Sequence[str]) -> Floats:
    """Vectors of length 1, (n, d)."""
    return encoder.encode(list(texts)).sentences
