"""A chat model on transformers: many chats in one batch, each with random draws of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from dnd_hf import checks, devices, loading
from dnd_hf.batches import Batches
from dnd_hf.sampling import SeededSampler
from dnd_llama.conversation import Ask
from dnd_llama.prefix import Prefix
from dnd_llama.prompts import TEMPLATE, Message, concept_messages


class ChatModel:
    """A causal language model with a chat template, loaded from a local folder."""

    def __init__(self, folder: Path, name: str, placement: loading.Placement) -> None:
        """`name` is for messages. Raises ModelError where the folder holds no usable chat model."""
        self.device = placement.device
        self.tokens = 0
        """Read and written so far."""
        needs = "config.json of a causal language model, its tokenizer"
        with loading.load_errors(name, folder, "a language model", needs):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **loading.LOCAL)
            self.model: Any = loading.load_model(AutoModelForCausalLM, folder, name, placement)
            if self.tokenizer.chat_template:
                self._prompt(concept_messages([]))  # a template that cannot be read is told now
        checks.check_tokenizer(self.tokenizer, self.model, name)
        loading.prepare_chat(self.model, self.tokenizer, name, self.tokenizer.chat_template)
        self._prefix = Prefix(self.model, self.device, self.tokenizer.pad_token_id)

    def answer(self, asks: Sequence[Ask], batches: Batches, *, max_new_tokens: int) -> list[str]:
        """One answer per chat. Those of like length are answered together: less is filled up. Raises RuntimeError if
        not even one fits the device's memory."""
        order = sorted(range(len(asks)), key=lambda index: sum(len(m["content"]) for m in asks[index].messages))
        answers = batches.map(
            lambda batch: self.answer_batch(batch, max_new_tokens=max_new_tokens), [asks[index] for index in order]
        )
        return [answer for _, answer in sorted(zip(order, answers, strict=True))]

    def _prompt(self, messages: Sequence[Message]) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **TEMPLATE
        )
        return text

    @torch.inference_mode()
    def answer_batch(self, asks: Sequence[Ask], *, max_new_tokens: int) -> list[str]:
        """All of them in one forward pass after another."""
        prompts = [self._prompt(ask.messages) for ask in asks]
        inputs = self._prefix.inputs(self.tokenizer(prompts, add_special_tokens=False)["input_ids"])
        sampler = SeededSampler([ask.seed for ask in asks], [ask.temperature for ask in asks], max_new_tokens)
        draw = LogitsProcessorList([sampler])
        tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, logits_processor=draw)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        self.tokens += int(inputs["attention_mask"].sum()) + int((answers != self.tokenizer.pad_token_id).sum())
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def close(self) -> None:
        """It cannot be used any more."""
        model = ref(self.model)
        del self.model, self.tokenizer, self._prefix
        devices.release(self.device, model)
