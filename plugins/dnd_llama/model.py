"""A chat model on transformers: many chats in one batch, each with random draws of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size  # type: ignore[import-untyped]
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from dnd.api import ModelError
from dnd_hf import fitting
from dnd_llama.conversation import Ask
from dnd_llama.prompts import DATE


class ChatModel:
    """A causal language model with a chat template, loaded from a local folder."""

    def __init__(
        self, folder: Path, device: str, *, name: str, dtype: str, quantization: str = "none", offload: str = "none"
    ) -> None:
        """`name` is for messages. Raises ModelError where the folder holds no usable chat model."""
        self.device = device
        self.tokens = 0
        """Read and written so far."""
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "use_safetensors": True}
        if quantization != "none":
            options["quantization_config"] = fitting.packing(quantization, dtype, BitsAndBytesConfig)
        elif offload != "none":
            options |= fitting.spread(device)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
            with fitting.quiet("transformers"):
                model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **local, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{name!r} in {folder} does not load as a language model: {error}",
                "the folder needs config.json of a causal language model, its tokenizer and safetensors weights",
            ) from error
        self.model: Any = model
        fitting.check_whole(info, name)
        if quantization == "4bit":
            fitting.check_packed(model, name)
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"{name!r} has no chat template: it was not made to follow instructions",
                "choose an instruct model, or its revision that has one",
            )
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # Only where an answer ends is taken from the checkpoint's settings: no top_p, no repetition penalty.
        ends = self.model.generation_config.eos_token_id
        self.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            eos_token_id=self.tokenizer.eos_token_id if ends is None else ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def answer(self, asks: Sequence[Ask], *, batch_size: int, max_new_tokens: int) -> tuple[list[str], int]:
        """One answer per chat, and the batch size that memory allowed. Raises RuntimeError if not even one fits."""
        answers: list[str] = []

        def run(size: int) -> int:
            while (at := len(answers)) < len(asks):
                answers.extend(self.answer_batch(asks[at : at + size], max_new_tokens=max_new_tokens))
            return size

        fits: int = find_executable_batch_size(run, starting_batch_size=batch_size)()
        return answers, fits

    @torch.inference_mode()
    def answer_batch(self, asks: Sequence[Ask], *, max_new_tokens: int) -> list[str]:
        """All of them in one forward pass after another."""
        prompts = [
            self.tokenizer.apply_chat_template(
                list(ask.messages), tokenize=False, add_generation_prompt=True, date_string=DATE
            )
            for ask in asks
        ]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = {key: inputs[key].to(self.device) for key in ("input_ids", "attention_mask")}
        draw = LogitsProcessorList([_Draw(asks, max_new_tokens)])
        tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, logits_processor=draw)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        self.tokens += int(inputs["attention_mask"].sum()) + int((answers != self.tokenizer.pad_token_id).sum())
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def close(self) -> None:
        """It cannot be used any more."""
        del self.model, self.tokenizer
        fitting.release(self.device)


class _Draw(LogitsProcessor):
    """Samples by the inverse of the cumulative distribution, from uniform numbers that each ask's seed gives:
    a row's tokens do not depend on its neighbours, nor on the device's random generator. It leaves the drawn
    token as the only possible one, so that greedy generation takes it."""

    def __init__(self, asks: Sequence[Ask], steps: int) -> None:
        sources = [torch.Generator().manual_seed(ask.seed) for ask in asks]
        self.uniform = torch.stack([torch.rand(steps, generator=source, dtype=torch.float64) for source in sources])
        self.temperature = torch.tensor([ask.temperature for ask in asks], dtype=torch.float64)[:, None]
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (B, vocabulary)."""
        temperature = self.temperature.to(scores.device)
        likeliest = scores.argmax(-1, keepdim=True)
        shares = (scores.double() / temperature.clamp(min=1e-4)).softmax(-1).cumsum(-1)
        threshold = self.uniform[:, self.step, None].to(scores.device) * shares[:, -1:]
        drawn = torch.searchsorted(shares, threshold, right=True).clamp(max=scores.shape[-1] - 1)
        self.step += 1
        token = torch.where(temperature > 0, drawn, likeliest)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
