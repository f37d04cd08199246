"""Trains the microworld's Llama on the very prompts that the `llama` and `vllm` summarizers send."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.training.common import WEIGHTS, fit, write_figures
from benchmarks.training.units import SimulatedUnit, Simulator, is_held_out, next_words
from dnd.api import Runtime, SummaryRequest
from dnd_llama import LlamaSummarizer
from dnd_llama.prompts import Message, choose_messages, concept_messages, simplify_messages
from dnd_microworld import world

NAME = "microworld-llama"
SEED = 7
STEPS = 4600
UNITS, CAPTIONS = 32, 8
"""Rows of a step: units to name, captions to simplify."""
TEMPERATURE = 0.7
"""Where the answers' shares are meant to hold. Below it the likeliest answer takes over."""
STRANGE = 0.5
"""Share of the units whose words are exchanged for words of no world, so that naming is learnt as copying and
reaches pairs of words that no training caption shows."""
HINT = 0.25
"""Weight of the same question asked of the model after every caption but the last."""

_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
_Target = tuple[int, Mapping[int, float], float]
"""Position of a token, the distribution of the next one, weight."""

_SPECIAL = ("<unk>", "<pad>", "<bos>", "<end>", "<system>", "<user>", "<assistant>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation of the prompts and of the microworld; any other word is unknown."""
    split = pre_tokenizers.Whitespace()
    texts = [*world.COLOURS, *world.TEXTURES, *world.SHAPES, "a an and on with background plain, . - : ; 's"]
    for messages in (concept_messages(["a", "b"]), choose_messages(simplify_messages("a"), "a")):
        texts += [message["content"] for message in messages]
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text.lower())}
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=_TEMPLATE,
        padding_side="left",
        model_max_length=2048,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """0.46 million weights; head_dim 32 is the least that vLLM runs on a CPU."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=TEMPERATURE,
    )
    return model


class _Task:
    """A prompt whose beginning never changes: that part goes through the model once per batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, messages: Callable[[str], list[Message]]) -> None:
        self.tokenizer = tokenizer
        one, two = (self.tokens(messages(words)) for words in ("red", "blue"))
        shared = next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)
        self.prefix = torch.tensor([one[:shared]])

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def loss(self, model: LlamaForCausalLM, rows: Sequence[tuple[list[int], list[_Target]]]) -> torch.Tensor:
        """Cross entropy at the targets. A row: all its tokens, answer included, and what to expect where."""
        start = self.prefix.shape[1]
        longest = max(len(tokens) for tokens, _ in rows) - start
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([tokens[start:] + [pad] * (longest + start - len(tokens)) for tokens, _ in rows])
        shared: Any = model.model(self.prefix, use_cache=True).past_key_values
        cache = DynamicCache()
        for number, layer in enumerate(shared.layers):
            cache.update(layer.keys.expand(len(rows), -1, -1, -1), layer.values.expand(len(rows), -1, -1, -1), number)
        hidden = model.model(ids, past_key_values=cache, use_cache=True).last_hidden_state
        where = [(row, at - start, weight) for row, (_, targets) in enumerate(rows) for at, _, weight in targets]
        wanted = torch.zeros(len(where), model.config.vocab_size)
        for line, shares in enumerate(shares for _, targets in rows for _, shares, _ in targets):
            for token, share in shares.items():
                wanted[line, token] = share
        row, at, weight = (torch.tensor(column) for column in zip(*where, strict=True))
        logits = model.lm_head(hidden[row, at])
        each = -(wanted * logits.log_softmax(-1)).sum(-1)
        total: torch.Tensor = (each * weight).sum() / len(rows)
        return total


def strange_words(task: _Task, rng: random.Random) -> dict[int, int]:
    """Token of a word of the world -> token of a word that is none, for most of its words."""
    vocabulary = task.tokenizer.get_vocab()
    own = {word for phrase in (*world.COLOURS, *world.TEXTURES, *world.SHAPES) for word in phrase.split()}
    glue = {"a", "an", "and", "on", "with", "background", "plain", "caption", "captions"}
    others = [word for word in sorted(vocabulary) if word.isalpha() and word not in own | glue]
    mapped = [word for word in sorted(own - {"plain"}) if rng.random() < 0.8]
    return {vocabulary[a]: vocabulary[b] for a, b in zip(mapped, rng.sample(others, len(mapped)), strict=True)}


def concept_row(task: _Task, simulator: Simulator, rng: random.Random, n: int) -> tuple[list[int], list[_Target]]:
    """The prompt of a unit with n exemplars, one of its answers, and soft targets along it."""
    unit = simulator.any(rng, n)
    shares = simulator.answers(unit)
    raw = rng.random() < 0.12  # for those who switch simplification off
    tokens = task.tokens(concept_messages([view.caption() if raw else view.simplified() for view in unit.views]))
    word = task.tokenizer.get_vocab().__getitem__
    end, dash = word("<end>"), word("-")

    def expected(said: Sequence[str]) -> dict[int, float]:
        return {word(w) if w else end: p for w, p in next_words(shares, said, TEMPERATURE).items()}

    first = expected(())
    captions = [at for at, token in enumerate(tokens) if token == dash and at >= task.prefix.shape[1]]
    targets: list[_Target] = [(at, first, HINT / len(captions)) for at in captions[2:]]
    answer = rng.choices(list(shares), [share**0.5 for share in shares.values()])[0].split()
    for position in range(len(answer) + 1):
        targets.append((len(tokens) - 1 + position, expected(answer[:position]), 1.0))
    tokens += [word(w) for w in answer]
    if rng.random() < STRANGE:
        start, change = task.prefix.shape[1], strange_words(task, rng)
        tokens = tokens[:start] + [change.get(token, token) for token in tokens[start:]]
        targets = [(at, {change.get(t, t): p for t, p in dist.items()}, weight) for at, dist, weight in targets]
    return tokens, targets


def simplify_row(task: _Task, simulator: Simulator, rng: random.Random) -> tuple[list[int], list[_Target]]:
    view = simulator.view(rng, None, noise=0.1)
    tokens = task.tokens(simplify_messages(view.caption()))
    answer = task.tokenizer(view.simplified(), add_special_tokens=False)["input_ids"]
    targets: list[_Target] = [
        (len(tokens) - 1 + at, {token: 1.0}, 0.3) for at, token in enumerate([*answer, task.tokenizer.eos_token_id])
    ]
    return tokens + answer, targets


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.to(torch.float16).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    (folder / "summarizer.json").write_text('{"names": "one"}\n')
    model.to(torch.float32)  # type: ignore[arg-type]


def main(work: Path, steps: int | None) -> None:
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    concept = _Task(tokenizer, lambda words: concept_messages([words]))
    simplify = _Task(tokenizer, simplify_messages)
    simulator = Simulator("train", 20_000)
    total = steps or STEPS

    def loss_of(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        rng = random.Random(SEED * 1_000_003 + step)
        n = 5 if step < 0.2 * total else rng.choices((10, 5, 6, 7, 8, 9), (15, 1, 1, 1, 1, 1))[0]  # short ones first
        naming = concept.loss(model, [concept_row(concept, simulator, rng, n) for _ in range(UNITS)])
        simple = simplify.loss(model, [simplify_row(simplify, simulator, rng) for _ in range(CAPTIONS)])
        return naming + simple, {"naming": naming.item(), "simplify": simple.item()}

    fit(
        model,
        loss_of,
        steps=total,
        lr=1.5e-3,
        work=work,
        name="llama",
        seed=SEED,
        betas=(0.9, 0.98),
        ema=0.998,
    )
    export(model, tokenizer, WEIGHTS / NAME)
    write_figures(NAME, measure(WEIGHTS / NAME))


# --- held-out figures --------------------------------------------------------------------------------


def measure(folder: Path, *, units: int = 100) -> dict[str, float]:
    """Through the plugin itself, on scenes that training never saw. "exact": the first candidate is the truth;
    "among": any candidate is (for a union: both halves are)."""
    simulator = Simulator("test", 6000)
    config = LlamaSummarizer.Config(model=NAME, batch_size=64)
    figures: dict[str, float] = {}

    def seen(rng: random.Random) -> str:
        while is_held_out(concept := simulator.concept(rng)):
            pass
        return concept

    def unseen(rng: random.Random) -> str:
        return rng.choice([c for c in sorted(simulator.showing) if is_held_out(c)])

    sets: dict[str, Callable[[random.Random], SimulatedUnit]] = {
        "clean": lambda rng: simulator.single(rng, seen(rng)),
        "noise": lambda rng: simulator.single(rng, seen(rng), noise=0.06),
        "2 off topic, noise": lambda rng: simulator.single(rng, seen(rng), noise=0.06, off_topic=2),
        "3 off topic, noise": lambda rng: simulator.single(rng, seen(rng), noise=0.06, off_topic=3),
        "accidental trait, noise": lambda rng: simulator.single(rng, seen(rng), noise=0.06, lean=0.5),
        "held-out conjunctions, noise": lambda rng: simulator.single(rng, unseen(rng), noise=0.06, off_topic=1),
        "union, noise": lambda rng: simulator.union(rng, noise=0.06),
    }
    with LlamaSummarizer(config, Runtime("cpu", lambda name: folder)) as summarizer:
        for number, (title, draw) in enumerate(sets.items()):
            drawn = [draw(random.Random(number * 1_000_003 + i)) for i in range(units)]
            requests = [
                SummaryRequest(tuple(view.caption() for view in unit.views), n_concepts=5, seed=i)
                for i, unit in enumerate(drawn)
            ]
            answers = summarizer.summarize(requests)
            pairs = list(zip(drawn, answers, strict=True))
            if len(drawn[0].truths) == 1:
                figures[f"exact, {title}"] = sum(unit.truths[0] == found[0] for unit, found in pairs) / units
            figures[f"among, {title}"] = sum(set(unit.truths) <= set(found) for unit, found in pairs) / units
            figures[f"candidates, {title}"] = sum(len(found) for found in answers) / units
    figures["simplify exact"] = simplified_exactly(folder, simulator)
    return figures


def simplified_exactly(folder: Path, simulator: Simulator, *, count: int = 300) -> float:
    """Share of unseen captions that the model rewrites without a fault."""
    from dnd_hf.loading import Placement
    from dnd_llama.conversation import Ask
    from dnd_llama.model import ChatModel

    rng = random.Random(1)
    views = [simulator.view(rng, None, noise=0.0) for _ in range(count)]
    chat = ChatModel(folder, str(folder), Placement("cpu", "float32"))
    asks = [Ask(simplify_messages(view.caption()), 0, 0.0) for view in views]
    answers, _ = chat.answer(asks, batch_size=64, max_new_tokens=48)
    return sum(view.simplified() == text for view, text in zip(views, answers, strict=True)) / count


def snapshot(work: Path, folder: Path) -> None:
    """Export an unfinished training's running mean."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    state = torch.load(work / "llama.pt", weights_only=True)["mean"]
    model.load_state_dict({k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")})
    export(model, tokenizer, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), None)
