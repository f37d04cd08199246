"""The summarizer `llama`, made fit for a CPU: answers are kept in a file, and what prompts share is computed once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from dnd.api import Runtime
from dnd_hf.sampling import SeededSampler
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.conversation import Ask
from dnd_llama.prompts import TEMPLATE

_TOKENS = 4000
"""Of prompts in one forward pass."""


class KeptSummarizer(LlamaSummarizer):
    """As its parent in all but two things. Answers come from `kept`, a file of JSON lines, where they are in it. And
    an ask is answered at all `temperatures` at once, from one pass over its prompt: a grid over them costs little more.
    """

    def __init__(self, config: LlamaConfig, folder: Path, kept: Path, temperatures: Sequence[float] = ()) -> None:
        super().__init__(config, Runtime("cpu", lambda name: folder))
        self._kept, self._temperatures = kept, tuple(temperatures)
        self._texts: dict[str, str] = {}
        if kept.exists():
            self._texts = dict(map(json.loads, kept.read_text("utf-8").splitlines()))
        self._heads: dict[tuple[int, ...], DynamicCache] = {}
        self.asked = self.read = 0

    def answer(self, asks: Sequence[Ask]) -> list[str]:
        keys = [self._key(ask, ask.temperature) for ask in asks]
        missing = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in self._texts}
        for batch in self._batches_of(list(missing.values())):
            rows = [(ask, temperature) for ask in batch for temperature in self._temperatures_of(ask)]
            found = self._compute(batch, rows)
            lines = [[self._key(*row), text] for row, text in zip(rows, found, strict=True)]
            self._texts.update((key, text) for key, text in lines)
            with self._kept.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        return [self._texts[key] for key in keys]

    def _read(self, unit: Any, ask: Ask, text: str) -> bool:
        unit.wrong = ""
        again = super()._read(unit, ask, text)
        self.asked, self.read = self.asked + 1, self.read + (not unit.wrong)
        return again

    def _key(self, ask: Ask, temperature: float) -> str:
        parts = [list(ask.messages), ask.seed, temperature, self.config.max_new_tokens]
        return sha256(json.dumps(parts).encode()).hexdigest()[:20]

    def _temperatures_of(self, ask: Ask) -> list[float]:
        return sorted({ask.temperature, *self._temperatures} if ask.temperature else {0.0})

    def _batches_of(self, asks: Sequence[Ask]) -> Iterator[list[Ask]]:
        """Asks of one instruction and like length together."""
        ordered = sorted(asks, key=lambda ask: (ask.messages[0]["content"], len(ask.messages), len(str(ask.messages))))
        for _, alike in groupby(ordered, lambda ask: (ask.messages[0]["content"], len(ask.messages))):
            batch: list[Ask] = []
            for ask in alike:
                size = len(ask.messages[-1]["content"]) // 4 + 10
                if batch and (len(batch) + 1) * size > _TOKENS:
                    yield batch
                    batch = []
                batch.append(ask)
            yield batch

    @torch.inference_mode()
    def _compute(self, asks: Sequence[Ask], rows: Sequence[tuple[Ask, float]]) -> list[str]:
        """Of each ask's rows, the answers, in their order."""
        if self._chat is None:
            self.load()
        assert self._chat is not None
        tokenizer, model = self._chat.tokenizer, self._chat.model
        texts = [
            tokenizer.apply_chat_template(list(ask.messages), tokenize=False, add_generation_prompt=True, **TEMPLATE)
            for ask in asks
        ]
        tokens: list[list[int]] = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        head, cache = self._head(model, tokens, len(asks))
        longest = max(map(len, tokens)) - head
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest + head - len(one)) + one[head:] for one in tokens])
        mask = torch.tensor(
            [[1] * head + [0] * (longest + head - len(one)) + [1] * (len(one) - head) for one in tokens]
        )
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, head:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        repeats = torch.tensor([sum(one is ask for one, _ in rows) for ask in asks])
        which = torch.arange(len(asks)).repeat_interleave(repeats)
        cache.reorder_cache(which)
        return self._decode(model, out.logits[which, -1], mask[which], cache, rows)

    def _decode(
        self,
        model: Any,
        logits: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache,
        rows: Sequence[tuple[Ask, float]],
    ) -> list[str]:
        assert self._chat is not None
        steps, ends = self.config.max_new_tokens, model.generation_config.eos_token_id
        sampler = SeededSampler([ask.seed for ask, _ in rows], [temperature for _, temperature in rows], steps)
        ends = torch.tensor(ends if isinstance(ends, list) else [ends])
        done, said = torch.zeros(len(rows), dtype=torch.bool), []
        for _ in range(steps):
            token = sampler(None, logits.float()).argmax(-1)
            said.append(torch.where(done, self._chat.tokenizer.pad_token_id, token))
            done |= torch.isin(token, ends)
            if done.all():
                break
            mask = torch.cat((mask, torch.ones(len(rows), 1, dtype=mask.dtype)), 1)
            out = model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=(mask.sum(-1, keepdim=True) - 1),
                past_key_values=cache,
                use_cache=True,
            )
            logits = out.logits[:, -1]
        answers = self._chat.tokenizer.batch_decode(torch.stack(said, 1), skip_special_tokens=True)
        return [text.strip() for text in answers]

    def _head(self, model: Any, tokens: Sequence[list[int]], rows: int) -> tuple[int, DynamicCache]:
        """How many tokens the prompts begin with in common, and the model's state after those, for each row."""
        known = next((head for head in self._heads if all(tuple(one[: len(head)]) == head for one in tokens)), None)
        if known is None:
            first = tokens[0]
            shared = len(list(takewhile(lambda same: len(set(same)) == 1, zip(*tokens, strict=False))))
            known = tuple(first[: max(1, min(shared, len(first) - 1) if len(tokens) > 1 else len(first) // 2)])
            cache = DynamicCache()
            model(input_ids=torch.tensor([known]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._heads[known] = cache
        cache = DynamicCache()
        for number, layer in enumerate(self._heads[known].layers):
            cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
        return len(known), cache
