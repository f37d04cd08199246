"""How likely a BLIP-2 finds a caption: the sum of its words' log-probabilities given the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_AT_ONCE = 32
"""Texts in one pass of the language model."""


def log_probabilities(
    model: Any, processor: Any, image: Image, texts: Sequence[str], prompt: str | None
) -> list[float]:
    """Natural logarithms, the end of the text included. The vision tower and the Q-Former run once.

    `model` is a `Blip2ForConditionalGeneration` in eval mode. With a prompt, the text goes on from it.
    """
    import torch

    with torch.inference_mode():
        given = processor(images=[image], text=None if prompt is None else [prompt], return_tensors="pt")
        given = given.to(model.query_tokens.device)
        seen = _look(model, given["pixel_values"])
        start = given.get("input_ids")
        if start is None:
            start = torch.tensor([[model.config.image_token_index] * seen.shape[1] + _begin(model)], device=seen.device)
        found: list[float] = []
        for at in range(0, len(texts), _AT_ONCE):
            tokens, mask = _tokens(model, processor.tokenizer, texts[at : at + _AT_ONCE], bool(prompt))
            logits = _logits(model, seen, start, tokens, mask)  # (n, length, vocabulary)
            chances = logits.float().log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
            found += (chances * mask).sum(1).double().cpu().tolist()
    return found


def _look(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the language model is shown of an image: (1, n_queries, width)."""
    patches = model.vision_model(pixel_values=pixels).last_hidden_state
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    found = model.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state
    shown: torch.Tensor = model.language_projection(found.to(patches.dtype))
    return shown


def _begin(model: Any) -> list[int]:
    token = getattr(model.config.text_config, "bos_token_id", None)
    return [] if token is None or not model.config.use_decoder_only_language_model else [token]


def _tokens(model: Any, tokenizer: Any, texts: Sequence[str], goes_on: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, length) token ids, each text with its end, and a mask of those that count."""
    import torch

    ends = model.generation_config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    rows = [[*tokenizer(f" {t}" if goes_on else t, add_special_tokens=False).input_ids, end] for t in texts]
    length = max(len(row) for row in rows)
    tokens = torch.tensor([row + [end] * (length - len(row)) for row in rows], device=model.query_tokens.device)
    counts = torch.tensor([len(row) for row in rows], device=tokens.device)
    return tokens, torch.arange(length, device=tokens.device)[None] < counts[:, None]


def _logits(
    model: Any, seen: torch.Tensor, start: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """What the language model predicts at each place of `tokens`: (n, length, vocabulary)."""
    import torch

    embed = model.language_model.get_input_embeddings()
    n, length = tokens.shape
    prefix = embed(start)
    place = (start == model.config.image_token_index)[:, :, None].expand_as(prefix)
    prefix = prefix.masked_scatter(place, seen.to(prefix.dtype)).expand(n, -1, -1)
    ones = torch.ones(prefix.shape[:2], dtype=torch.long, device=mask.device)
    if model.config.use_decoder_only_language_model:
        inputs = torch.cat([prefix, embed(tokens)], 1)
        attention = torch.cat([ones, mask.long()], 1)
        logits: torch.Tensor = model.language_model(inputs_embeds=inputs, attention_mask=attention).logits
        return logits[:, -length - 1 : -1]
    begin = model.config.text_config.decoder_start_token_id
    shifted = torch.cat([torch.full((n, 1), begin, device=tokens.device), tokens[:, :-1]], 1)
    decoded: torch.Tensor = model.language_model(
        inputs_embeds=prefix, attention_mask=ones, decoder_input_ids=shifted
    ).logits
    return decoded
