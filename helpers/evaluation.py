"""Measure what steering did, and what it cost (notebook 06).

The word lists, prompts and sentences share no contrast word with ``SENTIMENT_PAIRS``, and the
prompts no beginning: what is measured was not used to find the direction.
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from scipy.stats import bootstrap, rankdata
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from .models import (
    SteeringError,
    check_prompts,
    context_length,
    encode,
    last_token,
    model_name,
    progress,
)
from .pairs import TEXTS
from .steering import as_list, force_matrix, steer

POSITIVE_WORDS = ["good", "great", "nice", "fantastic", "lovely", "best", "fun", "superb"]
NEGATIVE_WORDS = ["bad", "worst", "poor", "boring", "ugly", "dull", "stupid", "worse"]

DEV_PROMPTS = TEXTS["dev_prompts"]  # choose layer and force on these …
TEST_PROMPTS = TEXTS["test_prompts"]  # … and report on these, once
POSITIVE_SENTENCES = TEXTS["positive_sentences"]
NEGATIVE_SENTENCES = TEXTS["negative_sentences"]
UNRELATED_PROMPTS = TEXTS["unrelated_prompts"]  # no judgement is due: what steering should spare


def word_ids(tokenizer, words):
    """The token of each word as it stands inside a sentence, with a space before it.

    Raises SteeringError, with the pieces, for words that are not one token in this vocabulary.
    """
    ids, broken = [], []
    for word in words:
        # Byte-level vocabularies need the space, SentencePiece ones add it themselves.
        forms = [tokenizer.encode(text, add_special_tokens=False) for text in (f" {word}", word)]
        whole = [form[0] for form in forms if len(form) == 1]
        ids += whole[:1]
        if not whole:
            broken.append(f"{word} = {' + '.join(tokenizer.convert_ids_to_tokens(forms[0]))}")
    if broken:
        raise SteeringError(f"Not one token in this vocabulary: {'; '.join(broken)}. Drop them.")
    return ids


def next_token_logits(model, batch):
    """Logits [row, vocabulary] behind the last real token of each row of a right-padded batch.

    Only those tokens meet the unembedding, the widest matrix of a small model.
    """
    last = last_token(batch["attention_mask"])

    def pick(head, args):
        rows = torch.arange(len(last), device=args[0].device)
        return (args[0][rows, last.to(args[0].device)][:, None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        return model(**batch, use_cache=False).logits[:, 0]
    finally:
        handle.remove()


def odds(logits, sides):
    """Log of P(side 0) over P(side 1), each a list of tokens: [row, vocabulary] to [row]."""
    above, below = (logits[:, side].float().logsumexp(1) for side in sides)
    return (above - below).cpu()


@torch.no_grad()
def log_odds(
    model,
    tokenizer,
    prompts,
    vector=None,
    force=0.0,
    layer=None,
    positive=POSITIVE_WORDS,
    negative=NEGATIVE_WORDS,
    batch_size=128,
):
    """Sentiment of the next token: log of P(a positive word) over P(a negative word).

    Deterministic; in nats; 0 where both are equally likely. ``vector``, ``force`` and ``layer``
    are as in ``steer``, where a row is a prompt; without a vector nothing is steered. Returns
    float32 [prompt] on the CPU. Raises SteeringError as ``steer``, ``encode``, ``word_ids`` do.
    """
    prompts = check_prompts(prompts)
    sides = [word_ids(tokenizer, words) for words in (positive, negative)]
    vectors = [] if vector is None else as_list(vector)
    forces = force_matrix(force, max(len(vectors), 1), len(prompts))
    scores = []
    starts = range(0, len(prompts), batch_size)
    for start in progress(starts, desc="log-odds"):
        rows = slice(start, start + batch_size)
        batch = encode(model, tokenizer, prompts[rows])
        with steer(model, vectors, forces[:, rows], layer) if vectors else nullcontext():
            scores.append(odds(next_token_logits(model, batch), sides))
    return torch.cat(scores)


@torch.no_grad()
def perplexity(model, tokenizer, prompts, continuations, batch_size=32) -> Tensor:
    """How surprising each continuation of its prompt is to the model.

    exp of the mean negative log-likelihood of the continuation's tokens. Fluent text is low,
    broken text high; so is text that merely changes the subject, and a loop of one phrase is
    low: read it together with ``repetition``. To price steered text call it outside of
    ``steer``; inside, it says how well the steered model reads.

    Returns float32 [text] on the CPU, NaN for an empty continuation. Raises SteeringError for
    lists of different lengths, an unusable prompt, or a text beyond the context.
    """
    prompts = check_prompts(prompts)
    if len(prompts) != len(continuations):
        raise SteeringError(f"{len(continuations)} continuations for {len(prompts)} prompts.")
    heads = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    tails = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in continuations]
    longest = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    if longest > (context_length(model) or longest):
        raise SteeringError(f"A text has {longest} tokens: more than {model_name(model)} reads.")
    device = model.get_input_embeddings().weight.device
    result = torch.full([len(prompts)], torch.nan)
    for start in progress(range(0, len(prompts), batch_size), desc="perplexity"):
        rows = range(start, min(start + batch_size, len(prompts)))
        texts = [{"input_ids": heads[i] + tails[i]} for i in rows]
        batch = tokenizer.pad(texts, padding_side="right", return_tensors="pt").to(device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        ).view(len(ids), -1)
        begins = torch.tensor([len(heads[i]) for i in rows], device=device)[:, None]
        columns = torch.arange(1, ids.shape[1], device=device)
        scored = (columns >= begins) & mask[:, 1:].bool()
        result[list(rows)] = ((loss * scored).sum(1) / scored.sum(1)).exp().cpu()
    return result


def log_price(model, tokenizer, texts) -> Tensor:
    """What steering cost each of the ``SteeredTexts``: log of its perplexity ratio, [text].

    Steered over unsteered text, both read by the unsteered model: 0 as fluent as before, 0.69
    twice as surprising; NaN where either text is empty. Raises SteeringError as ``perplexity``.
    """
    prompts = [text.prompt for text in texts]
    steered = perplexity(model, tokenizer, prompts, [text.steered for text in texts])
    bases = dict.fromkeys((text.prompt, text.base) for text in texts)  # many texts share theirs
    values = perplexity(model, tokenizer, *zip(*bases, strict=True))
    base = dict(zip(bases, values, strict=True))
    return (steered / torch.stack([base[text.prompt, text.base] for text in texts])).log()


def repetition(texts, n=2) -> Tensor:
    """Share [text] of the word n-grams that stood before in the same text: 0 none, near 1 a loop.

    NaN for a text without an n-gram.
    """
    return 1 - torch.tensor([distinct([text], n) for text in texts])


def distinct(texts, n=2) -> float:
    """distinct-n: different word n-grams over all of them, in the texts together.

    Low where texts repeat themselves or each other (Li et al. 2016, arXiv 1510.03055); compare
    only collections of equal size. NaN without an n-gram.
    """
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else float("nan")


def judge(texts, name="vader") -> Tensor:
    """Sentiment of whole texts, by a judge that never saw the model: [text], from -1 to 1.

    ``"vader"`` (the default) is a lexicon with rules, made for short reviews and posts (Hutto &
    Gilbert 2014): it needs no network, and knows words, not meaning. Any other name is a text
    classifier on the Hugging Face hub or in a local folder, safetensors only, whose labels are
    named positive and negative: P(positive) - P(negative).

    Raises SteeringError if there is no such judge, or its labels say nothing about sentiment.
    """
    texts = list(texts)
    if name == "vader":
        analyse = SentimentIntensityAnalyzer().polarity_scores
        return torch.tensor([analyse(text)["compound"] for text in texts])
    from transformers import pipeline  # takes a second that only this judge should cost

    try:
        classify = pipeline(
            "text-classification", name, top_k=None, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise SteeringError(
            f"No judge could be loaded as {name!r}: looked for a local folder of that name and on "
            f"the Hugging Face hub. 'vader' needs no network. (Cause: {error})"
        ) from error
    labels = list(classify.model.config.id2label.values())
    if not {"positive", "negative"} <= {label.lower() for label in labels}:
        raise SteeringError(f"{name!r} cannot judge sentiment: its labels are {labels}.")
    judged = classify(texts, truncation=True)
    found = [{x["label"].lower(): x["score"] for x in scores} for scores in judged]
    return torch.tensor([scores["positive"] - scores["negative"] for scores in found])


class Estimate(NamedTuple):
    """A mean with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self):
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def mean_with_interval(values, confidence=0.95, seed=0) -> Estimate:
    """Mean over prompts, with a bootstrap interval (percentile, 10,000 resamples).

    For a paired effect give the differences, one for each prompt.

    Raises SteeringError for fewer than two values: one prompt has a mean but no interval.
    """
    values = np.asarray(values, dtype=float)
    if values.size < 2:
        raise SteeringError(f"An interval over {values.size} prompt(s) does not exist: give more.")
    return _estimate([values], np.mean, 10_000, confidence, seed)


def auc_with_interval(positive, negative, confidence=0.95, seed=0) -> Estimate:
    """Area under the ROC curve: chance that a positive text scores above a negative one.

    Ties count half; 0.5 is guessing, below it the direction points the wrong way. The interval
    draws texts of either class anew (percentile bootstrap, 2,000 resamples). Inputs are scores
    [text] of each class. Raises SteeringError for a class of fewer than two texts.
    """
    sides = [np.asarray(side, dtype=float) for side in (positive, negative)]
    if min(side.size for side in sides) < 2:
        raise SteeringError("An interval needs two texts of each class or more.")

    def auc(above, below, axis=-1):
        # Mann and Whitney: the ranks of one class among all tell how often it lies above.
        n, m = above.shape[-1], below.shape[-1]
        ranks = rankdata(np.concatenate([above, below], axis=-1), axis=-1)[..., :n]
        return (ranks.sum(-1) - n * (n + 1) / 2) / (n * m)

    return _estimate(sides, auc, 2_000, confidence, seed)


def _estimate(samples, statistic, n_resamples, confidence, seed):
    """A statistic of samples, with its percentile bootstrap interval."""
    low, high = bootstrap(
        samples,
        statistic,
        n_resamples=n_resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(statistic(*samples)), float(low), float(high))
