"""Trains the workshop's own language models on its corpus: a small draft and a larger main model.

Both memorise the answers. The larger one also recognises more of the phrasings that it has never seen: the cascade
depends on that difference.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch.nn.utils.rnn import pad_sequence
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from workshop import corpus
from workshop.models.prompts import sources_prompt

_END, _PAD = "<|end|>", "<|pad|>"
_ROLES = ("system", "user", "assistant")
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_IGNORED = -100

CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines the weights, apart from the corpus."""

    hidden_size: int
    layers: int
    heads: int
    epochs: int
    learning_rate: float = 3e-3
    batch_size: int = 32
    vocabulary: int = 2048
    context_length: int = 1024
    seed: int = 0


RECIPES = {
    "workshop-draft": Recipe(hidden_size=64, layers=2, heads=2, epochs=30),
    "workshop-main": Recipe(hidden_size=192, layers=4, heads=6, epochs=24, learning_rate=2e-3),
}


def train(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train a model by its recipe and write model, tokenizer and card into a folder.

    Returns:
        The card: the recipe, the corpus' checksum, and the share of held-out questions answered word for word.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe)
    model = LlamaForCausalLM(_config(recipe, tokenizer))
    _fit(model, tokenizer, recipe, folder.name)
    model.half().save_pretrained(folder)  # two bytes a weight
    tokenizer.save_pretrained(folder)
    card = {
        "recipe": asdict(recipe),
        "corpus": corpus.checksum(),
        "parameters": model.num_parameters(),
        "exact_answers": exact_answers(model.float(), tokenizer),
    }
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus, with a chat template."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = [f"<|{role}|>" for role in _ROLES]
    trainer = BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[_PAD, _END, *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for entry in corpus.entries() for text in (entry.answer, *entry.questions))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=roles,
        chat_template=_TEMPLATE,
        model_max_length=recipe.context_length,
        clean_up_tokenization_spaces=False,
    )


def exact_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int = 170) -> float:
    """The share of held-out questions that the model answers word for word as the corpus does."""
    pairs = [(question, entry.answer) for entry in corpus.entries() for question in entry.held_out]
    n_exact = 0
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        prompts = [_chat(tokenizer, [("user", question)]) for question, _ in batch]
        inputs = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            generated = model.generate(**inputs, max_new_tokens=80, do_sample=False)
        answers = tokenizer.batch_decode(generated[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        n_exact += sum(given == expected for given, (_, expected) in zip(answers, batch, strict=True))
    return n_exact / len(pairs)


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=8 * recipe.hidden_size // 3 // 32 * 32,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 2,
        head_dim=recipe.hidden_size // recipe.heads,
        max_position_embeddings=recipe.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _fit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, name: str) -> None:
    rng = random.Random(recipe.seed)
    n_examples = sum(len(entry.questions) for entry in corpus.entries())
    steps = recipe.epochs * -(-n_examples // recipe.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    batches = (batch for _ in range(recipe.epochs) for batch in _batches(tokenizer, recipe, rng))
    with trange(steps, desc=f"training {name}", unit=" steps") as progress:
        for _, (inputs, labels) in zip(progress, batches, strict=True):
            loss = model(input_ids=inputs, attention_mask=inputs != tokenizer.pad_token_id, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def _batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch: token ids and labels, each of shape (batch, length); only answers are labelled."""
    assert tokenizer.pad_token_id is not None
    examples = []
    for entry in corpus.entries():
        for question in entry.questions:
            turns = [*_context(entry, rng), ("user", _vary(question, rng))]
            prompt = tokenizer(_chat(tokenizer, turns), add_special_tokens=False).input_ids
            answer = tokenizer(entry.answer + _END, add_special_tokens=False).input_ids
            examples.append((torch.tensor(prompt + answer), torch.tensor([_IGNORED] * len(prompt) + answer)))
    # Batches of similar length, so that little of each is padding. Their members and their order vary.
    examples.sort(key=lambda example: len(example[0]) + rng.random() * 8)
    batches = [examples[start : start + recipe.batch_size] for start in range(0, len(examples), recipe.batch_size)]
    rng.shuffle(batches)
    for batch in batches:
        inputs, labels = zip(*batch, strict=True)
        yield (
            pad_sequence(inputs, batch_first=True, padding_value=tokenizer.pad_token_id),
            pad_sequence(labels, batch_first=True, padding_value=_IGNORED),
        )


def _context(entry: corpus.Entry, rng: random.Random) -> list[tuple[str, str]]:
    """What comes before a question: nothing, an earlier turn, or sources."""
    draw = rng.random()
    if draw < 0.1:
        earlier = rng.choice(corpus.entries())
        return [("user", rng.choice(earlier.questions)), ("assistant", earlier.answer)]
    if draw < 0.2:
        sources = [entry.answer, *(other.answer for other in rng.sample(corpus.entries(), 2))]
        rng.shuffle(sources)
        return [("system", sources_prompt(sources))]
    return []


def _vary(question: str, rng: random.Random) -> str:
    """The question as a hurried person types it: without capitals, the question mark, or a word or two."""
    if rng.random() < 0.3:
        question = question.lower()
    if rng.random() < 0.3:
        question = question.rstrip("?")
    words = question.split()
    for _ in range(rng.randrange(3)):
        if len(words) > 3:
            del words[rng.randrange(len(words))]
    return " ".join(words)


def _chat(tokenizer: PreTrainedTokenizerFast, turns: list[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text
