"""Summarizers whose answers are kept in a file: `llama` and `vllm` as they are, and `llama` made fit for a CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import DynamicCache

from dnd.api import Runtime
from dnd_hf.sampling import SeededSampler
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.conversation import Ask, AskingConfig, AskingSummarizer
from dnd_llama.prompts import TEMPLATE
from dnd_vllm import VllmSummarizer

_TOKENS = 4000
"""Of prompts in one forward pass."""
_PORTION = 128
"""Chats whose answers are kept together."""


class Kept(AskingSummarizer):
    """Comes before a summarizer among a class's bases: an answer that is in `file`, of JSON lines, comes from there."""

    def __init__(self, config: AskingConfig, folder: Path, file: Path) -> None:
        super().__init__(config, Runtime("cpu", lambda name: folder))
        self._file = file
        self.texts: dict[str, str] = {}
        if file.exists():
            self.texts = dict(map(json.loads, file.read_text("utf-8").splitlines()))
        self.replies: list[tuple[str, bool]] = []
        """What was answered, and whether it could be read."""
        self.fresh = 0
        self.seconds = self.cpu_seconds = 0.0
        """What the `fresh` answers took, children included, without the model's loading."""

    def answer(self, asks: Sequence[Ask]) -> list[str]:
        keys = [self._key(ask, ask.temperature) for ask in asks]
        missing = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in self.texts}
        if missing:
            self.load()
        wall, cpu = time.monotonic(), cpu_seconds()
        for lines in self._fresh(list(missing.values())):
            found = dict(lines)
            self.texts |= found
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in found.items())
            self.fresh += len(found)
        self.seconds, self.cpu_seconds = self.seconds + time.monotonic() - wall, self.cpu_seconds + cpu_seconds() - cpu
        return [self.texts[key] for key in keys]

    def _fresh(self, asks: Sequence[Ask]) -> Iterator[Iterable[tuple[str, str]]]:
        """Keys and answers, some at a time."""
        for start in range(0, len(asks), _PORTION):
            some = asks[start : start + _PORTION]
            yield zip((self._key(ask, ask.temperature) for ask in some), super().answer(some), strict=True)

    def _read(self, unit: Any, ask: Ask, text: str) -> bool:
        unit.wrong = ""
        again = super()._read(unit, ask, text)
        self.replies.append((text, not unit.wrong))
        return again

    def _key(self, ask: Ask, temperature: float) -> str:
        parts = [list(ask.messages), ask.seed, temperature, self.config.max_new_tokens]
        return sha256(json.dumps(parts).encode()).hexdigest()[:20]


def cpu_seconds() -> float:
    """Of this process and of all that it started."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))


class KeptLlama(Kept, LlamaSummarizer):
    """The summarizer `llama`."""


class KeptVllm(Kept, VllmSummarizer):
    """The summarizer `vllm`."""


class GridLlama(KeptLlama):
    """What prompts share is computed once, and an ask is answered at all `temperatures` at once, from one pass over its
    prompt: a grid over them costs little more."""

    def __init__(self, config: LlamaConfig, folder: Path, file: Path, temperatures: Sequence[float] = ()) -> None:
        super().__init__(config, folder, file)
        self._temperatures = tuple(temperatures)
        self._heads: dict[tuple[int, ...], DynamicCache] = {}

    def _fresh(self, asks: Sequence[Ask]) -> Iterator[Iterable[tuple[str, str]]]:
        for batch in self._batches_of(asks):
            rows = [(ask, temperature) for ask in batch for temperature in self._temperatures_of(ask)]
            yield zip((self._key(*row) for row in rows), self._compute(batch, rows), strict=True)

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
