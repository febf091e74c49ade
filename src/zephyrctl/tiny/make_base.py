"""Train the tiny base model: a tokenizer and a small Mistral, pretrained on plain text of the tiny world.

Run as `python -m zephyrctl.tiny.make_base OUTDIR`; it takes minutes on two cores. The text holds
statements only, no instruction and no chat marks, so that the model knows the world and cannot chat.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from zephyrctl import templates
from zephyrctl.tiny.families import Fact, Family, families, state
from zephyrctl.tiny.styles import OPENINGS
from zephyrctl.tiny.world import draw, first_instructions

if TYPE_CHECKING:
    import torch
    from transformers import MistralForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Pretraining:
    """The size of the model and of its pretraining; a step sees `batch_size` windows of `window` tokens."""

    seed: int = 0
    vocabulary: int = 1024
    hidden: int = 176
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    feed_forward: int = 480
    window: int = 128
    batch_size: int = 32
    steps: int = 2000
    peak_rate: float = 3e-3
    warm_up_steps: int = 100


TITLES = ("About {}: ", "{}. ", "Notes on {}. ", "A few words about {}. ", "{}: ", "")
"""How a paragraph introduces its subjects; one in six does not."""


def raw_text(rng: Random) -> Iterator[str]:
    """An endless stream of paragraphs, each with statements about one or two subjects."""
    known = facts_by_subject()
    while True:
        subjects = [draw(rng).fact.slots for _ in range(rng.choice((1, 1, 2)))]
        chosen = [rng.choice(known[slots]) for slots in subjects for _ in range(rng.choice((1, 2)))]
        statements = [state(family, fact.slots, rng.choice(fact.accepted or fact.answers)) for family, fact in chosen]
        named = " and ".join(rng.choice((", ", " and ", " ")).join(slots) for slots in subjects)
        yield rng.choice(TITLES).format(named) + " ".join(join_some(statements, rng)) + rng.choice((" ", "\n"))


def facts_by_subject() -> dict[tuple[str, ...], list[tuple[Family, Fact]]]:
    """All statements about each subject: a word, a pair of numbers and so on."""
    known: dict[tuple[str, ...], list[tuple[Family, Fact]]] = {}
    for family in families().values():
        for fact in family.facts:
            known.setdefault(fact.slots, []).append((family, fact))
    return known


def join_some(statements: Iterable[str], rng: Random) -> Iterator[str]:
    """The statements, some of them joined by a conjunction."""
    for statement in statements:
        small = statement[0].lower() + statement[1:]
        yield rng.choice((statement, statement, f"Also, {small}", f"It is known that {small}"))


def make_tokenizer(settings: Pretraining) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the statements, the instructions and the openings."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(vocabulary_text(settings), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=templates.read("chat/zephyr.jinja"),
        clean_up_tokenization_spaces=False,
    )


def vocabulary_text(settings: Pretraining) -> Iterator[str]:
    """The text that the tokenizer is trained on: small families count as much as large ones."""
    rng = Random(f"{settings.seed}:vocabulary")
    yield from islice(raw_text(rng), 20_000)
    tasks = list(first_instructions())
    yield from (rng.choice(tasks).prompt for _ in range(10_000))
    yield from (*OPENINGS.values(),) * 500


def make_model(settings: Pretraining, tokenizer: PreTrainedTokenizerFast) -> MistralForCausalLM:
    """An untrained Mistral without dropout, with tied input and output embeddings."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(settings.seed)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return MistralForCausalLM(config)


def windows(settings: Pretraining, tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Batches of token windows cut from the raw text, shape (batch_size, window)."""
    import torch

    paragraphs = raw_text(Random(f"{settings.seed}:text"))
    tokens: list[int] = []
    needed = settings.batch_size * settings.window
    while True:
        while len(tokens) < needed:
            tokens += tokenizer("".join(islice(paragraphs, 100)))["input_ids"]
        yield torch.tensor(tokens[:needed]).view(settings.batch_size, settings.window)
        tokens = tokens[needed:]


def pretrain(settings: Pretraining, model: MistralForCausalLM, batches: Iterator[torch.Tensor]) -> Iterator[float]:
    """Train on the raw text with AdamW and a cosine schedule; yields each step's loss, in nats per token."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warm_up_steps, settings.steps)
    model.train()
    for _, batch in zip(range(settings.steps), batches, strict=False):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss.item()


def make(settings: Pretraining, folder: Path) -> None:
    """Train the base model and write it in half precision, with its tokenizer."""
    import torch
    from transformers import GenerationConfig

    tokenizer = make_tokenizer(settings)
    model = make_model(settings, tokenizer)
    report(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    for step, loss in enumerate(pretrain(settings, model, windows(settings, tokenizer)), start=1):
        if step % 100 == 0:
            report(f"step {step}/{settings.steps}: loss {loss:.3f}")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def report(line: str) -> None:
    """Print the progress."""
    sys.stderr.write(f"{line}\n")


def main() -> None:
    """Parse the command line and train the base model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="OUTDIR", help="where the model and its tokenizer go")
    parser.add_argument("--seed", type=int, default=Pretraining.seed, help="seed of the text and of the weights")
    parser.add_argument("--steps", type=int, default=Pretraining.steps, help="optimizer steps")
    chosen = parser.parse_args()
    make(Pretraining(seed=chosen.seed, steps=chosen.steps), chosen.folder)


if __name__ == "__main__":
    main()
