"""What a push did, and what it cost (notebook 05).

Log-odds of the next word tell the effect; perplexity, price, repetition and a judge look at
whole texts.
"""

import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cross_entropy
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from .batches import READING, Batches
from .checks import SteeringError, checked, finite, fitted, numbers, steered_texts, two_lists
from .concepts import SENTIMENT, Concept
from .hooks import change, refuse_inside_steer
from .models import (
    context_length,
    encode,
    last_token,
    model_name,
    padded,
    rows_of,
    token_ids,
)
from .steering import as_list, force_matrix, steer


@checked
def word_ids(tokenizer, words) -> list[int]:
    """The token of each word as it stands inside a sentence, with a space before it.

    Raises SteeringError, with the pieces, for words that are not one token in this vocabulary.
    """
    found, broken, same = _by_token(tokenizer, words)
    if broken:
        raise SteeringError(f"Not one token in this vocabulary: {'; '.join(broken)}. Drop them.")
    if same:
        raise SteeringError(f"Two of these words are the same token: {', '.join(words)}. Drop one.")
    return list(found)


def _by_token(tokenizer, words):
    """{token: word}; what is wrong with words of several tokens; with those of a token again."""
    found, broken, same = {}, [], []
    for word in words:
        # Behind another word: some vocabularies add a space to the first one, others do not.
        _, *own = tokenizer.encode(f"a {word.strip()}", add_special_tokens=False)
        if len(own) != 1:
            broken.append(f"{word} = {' + '.join(tokenizer.convert_ids_to_tokens(own))}")
        elif own[0] in found:
            same.append(f"{word!r} is the same token as {found[own[0]]!r}")
        else:
            found[own[0]] = word
    return found, broken, same


@checked
def word_sides(tokenizer, concept) -> tuple[list[int], list[int]]:
    """The tokens of the concept's positive and of its negative words."""
    positive, negative = (word_ids(tokenizer, words) for words in concept.words)
    if both := set(positive) & set(negative):
        raise SteeringError(f"{tokenizer.decode(min(both))!r} stands on both sides: drop it.")
    return positive, negative


@checked
def usable_words(tokenizer, concept) -> Concept:
    """The concept without the words that cannot be counted in this vocabulary.

    A word is left out if it is not one token, is the same token as an earlier word of its side,
    or stands on both sides; one warning names each with the reason. Raises SteeringError if a
    side has none left.
    """
    sides = [_by_token(tokenizer, words) for words in concept.words]
    unfit = [problem for _, broken, same in sides for problem in broken + same]
    above, below = (found for found, *_ in sides)
    both = above.keys() & below.keys()
    unfit += [f"{above[token]!r} stands on both sides" for token in above if token in both]
    kept = [[word for token, word in x.items() if token not in both] for x in (above, below)]
    own, reasons = f"of {concept.name!r}", f"in this vocabulary: {'; '.join(unfit)}."
    for side, words in zip(concept.sides, kept, strict=True):
        if not words:
            raise SteeringError(f"No {side} word {own} is usable {reasons} Give it other words.")
    if unfit:
        warnings.warn(f"Words {own} are left out {reasons}", stacklevel=3)
    return replace(concept, positive_words=kept[0], negative_words=kept[1])


@checked
def next_token_logits(model, batch) -> Tensor:
    """Logits [row, vocabulary] behind the last real token of each row of a right-padded batch.

    Only those tokens meet the unembedding, the widest matrix of a small model.
    """
    last = last_token(batch["attention_mask"])
    return _logits_behind(model, batch, torch.arange(len(last)), last)


def _logits_behind(model, batch, rows, columns):
    """Logits [token, vocabulary] behind some tokens of a batch, given by row and column."""

    def pick(head, args):
        device = args[0].device
        return (args[0][rows.to(device), columns.to(device)][:, None],)

    with change(model) as ours:
        ours.hook(model.get_output_embeddings().register_forward_pre_hook, pick)
        return model(**batch, use_cache=False).logits[:, 0]


@checked(sides=two_lists)
def log_odds_from(logits, sides) -> Tensor:
    """Log of P(side 0) over P(side 1), each a list of tokens: [row, vocabulary] to [row]."""
    above, below = (logits[:, side].float().logsumexp(1) for side in sides)
    return (above - below).cpu()


@checked
@torch.no_grad()
def log_odds(
    model,
    tokenizer,
    prompts,
    vector=None,
    force=0.0,
    layer=None,
    concept=SENTIMENT,
    batch_tokens=READING,
) -> Tensor:
    """How the next word leans: log of P(a positive word) over P(a negative word) of the concept.

    Deterministic; in nats (natural logarithm); 0 where both are equally likely. ``vector``,
    ``force`` and ``layer`` are as in ``steer``, where a row is a prompt; without a vector nothing
    is steered. Returns float32 [prompt] on the CPU. Raises SteeringError as ``steer``,
    ``encode`` and ``word_ids`` do, and for a force without a vector.
    """
    if vector is None and torch.as_tensor(force).any():
        raise SteeringError("A force needs a vector to push along: give vector=...")
    refuse_inside_steer(model, only_rows=True)
    sides = word_sides(tokenizer, concept)
    vectors = [] if vector is None else as_list(vector)
    forces = force_matrix(force, max(len(vectors), 1), len(prompts))
    everything = encode(model, tokenizer, prompts)
    scores = torch.empty(len(prompts))

    def score(rows):
        batch = rows_of(everything, rows)
        with steer(model, vectors, forces[:, rows], layer) if vectors else nullcontext():
            scores[rows] = log_odds_from(next_token_logits(model, batch), sides)

    Batches(batch_tokens).run(score, everything["attention_mask"].sum(1).tolist(), "log-odds")
    return finite(scores, "the log-odds", model)


@checked
def balanced_prompts(model, tokenizer, concept=SENTIMENT, n=3) -> list[str]:
    """The n development prompts whose unsteered log-odds are closest to 0, closest first.

    Where the model leans to neither side, a push to either side shows. Raises SteeringError if
    there are not as many.
    """
    refuse_inside_steer(model)
    if n > len(concept.dev_prompts):
        raise SteeringError(f"n={n}, but there are {len(concept.dev_prompts)} dev_prompts.")
    leaning = log_odds(model, tokenizer, concept.dev_prompts, concept=concept).abs()
    return [concept.dev_prompts[i] for i in leaning.argsort(stable=True)[:n]]


@checked
def surprisal(logits, ids) -> Tensor:
    """Bits of surprise at each token but the first: −log2 of its probability, [row, token − 1].

    ``logits`` [row, token, vocabulary] and ``ids`` [row, token] are those of one forward pass.
    """
    rows = zip(logits[:, :-1], ids[:, 1:], strict=True)
    return torch.stack([_bits(row, own) for row, own in rows])


def _bits(logits, ids):
    """Surprisal [token] of tokens, each by its own logits [token, vocabulary]."""
    # In slices: a copy of all logits would be the largest thing in memory.
    slices = zip(logits.split(64), ids.to(logits.device).split(64), strict=True)
    loss = [cross_entropy(some.float(), own, reduction="none") for some, own in slices]
    return torch.cat(loss) / torch.tensor(2.0).log()


@checked
def mean_surprisal(model, batch, scored) -> Tensor:
    """Bits of surprise of each row, float32 [row] on the CPU: the mean over some of its tokens.

    ``scored`` [row, token] marks them; a row's first token is predicted by nothing, so never
    counts. NaN for a row without any.
    """
    scored = scored.clone()
    scored[:, 0] = False
    rows, columns = scored.nonzero().T
    logits = _logits_behind(model, batch, rows, columns - 1)
    bits = torch.zeros(scored.shape)
    bits[rows.cpu(), columns.cpu()] = _bits(logits, batch["input_ids"][rows, columns]).cpu()
    return bits.sum(1) / scored.sum(1).cpu()


@checked
@torch.no_grad()
def perplexity(model, tokenizer, prompts, continuations, batch_tokens=READING) -> Tensor:
    """How surprising each continuation of its prompt is to the model.

    2 to the power of the mean surprisal of the continuation's tokens in bits. Fluent text is low,
    broken text high; so is text that merely changes the subject, and a loop of one phrase is
    low: read it together with ``repetition``. To price steered text call it outside of
    ``steer``; inside, it says how well the steered model reads.

    Returns float32 [text] on the CPU, NaN for an empty continuation. Raises SteeringError for
    lists of different lengths, an unusable prompt, or a text beyond the context.
    """
    refuse_inside_steer(model, only_rows=True)
    if len(prompts) != len(continuations):
        raise SteeringError(f"{len(continuations)} continuations for {len(prompts)} prompts.")
    starts, ids = _tokens_of_texts(model, tokenizer, prompts, continuations)
    lengths = [len(text) for text in ids]
    if max(lengths) > (context_length(model) or max(lengths)):
        raise SteeringError(
            f"A text has {max(lengths)} tokens: more than {model_name(model)} reads."
        )
    everything = padded(model, ids)
    begins = torch.tensor(starts, device=everything["input_ids"].device)[:, None]
    result = torch.empty(len(prompts))

    def read(rows):
        batch = rows_of(everything, rows)
        columns = torch.arange(batch["input_ids"].shape[1], device=begins.device)
        scored = (columns >= begins[rows]) & batch["attention_mask"].bool()
        result[rows] = mean_surprisal(model, batch, scored).exp2()

    Batches(batch_tokens).run(read, lengths, "perplexity")
    written = torch.tensor(lengths) > torch.tensor(starts)
    finite(result[written], "a perplexity", model)
    return result


def _tokens_of_texts(model, tokenizer, prompts, continuations):
    """Where each continuation starts, and the tokens of its prompt and of itself."""
    heads = token_ids(model, tokenizer, prompts)
    tails = token_ids(model, tokenizer, continuations, add_special_tokens=False)
    whole = [head + tail for head, tail in zip(heads, tails, strict=True)]
    return [len(head) for head in heads], whole


@checked(texts=steered_texts)
def price(model, tokenizer, texts) -> Tensor:
    """What steering cost each of the ``SteeredTexts``, in bits per token: [text].

    How much more surprising the steered text is to the unsteered model than the unsteered text
    is: log2 of the ratio of their perplexities. 0 is as fluent as before; at 1 each token was on
    average half as likely. NaN where either text is empty, or too long to be read again.

    Call it outside of ``steer``. Raises SteeringError if there is no text.
    """
    refuse_inside_steer(model)
    if not texts:
        raise SteeringError("There are no texts to price: give at least one.")
    pairs = dict.fromkeys((text.prompt, x) for text in texts for x in (text.base, text.steered))
    known, room = dict.fromkeys(pairs, float("nan")), context_length(model)
    _, ids = _tokens_of_texts(model, tokenizer, *zip(*pairs, strict=True))
    # Read again, a text can have more tokens than were written.
    readable = [p for p, whole in zip(pairs, ids, strict=True) if not room or len(whole) <= room]
    if readable:
        values = perplexity(model, tokenizer, *zip(*readable, strict=True))  # each text once
        known.update(zip(readable, values.log2().tolist(), strict=True))
    return torch.tensor([known[t.prompt, t.steered] - known[t.prompt, t.base] for t in texts])


@checked
def repetition(texts, n=2, unit="word") -> Tensor:
    """Share [text] of the n-grams that stood before in the same text: 0 none, near 1 a loop.

    Of words, or, with ``unit="character"``, of letters, signs and spaces: four of them also see a
    loop inside words, or one that commas break up. NaN for a text without an n-gram.
    """
    return 1 - torch.tensor([distinct([text], n, unit) for text in texts])


@checked
def distinct(texts, n=2, unit="word") -> float:
    """distinct-n: different n-grams over all of them, in the texts together.

    Of words or characters, as in ``repetition``. Low where texts repeat themselves or each other
    (Li et al. 2016, arXiv 1510.03055); compare only collections of equal size. NaN without an
    n-gram. Raises SteeringError for another unit.
    """
    if unit not in ("word", "character"):
        raise SteeringError(f"unit must be 'word' or 'character', got {unit!r}.")
    grams = []
    for text in texts:
        parts = text.lower().split() if unit == "word" else " ".join(text.lower().split())
        grams += zip(*(parts[i:] for i in range(min(n, len(parts) + 1))), strict=False)
    return len(set(grams)) / len(grams) if grams else float("nan")


@checked
def judge(texts, by="vader") -> Tensor:
    """What a judge that never saw the model says of whole texts: [text].

    ``by`` is ``"vader"`` (the default), a lexicon with rules for the sentiment of short reviews
    and posts (Hutto & Gilbert 2014), from -1 to 1: it needs no network, and knows words, not
    meaning. Or a callable that takes the list of texts and returns a number for each. Or the name
    of a text classifier on the Hugging Face hub or of a local folder, safetensors only, whose
    labels are named positive and negative: P(positive) - P(negative).

    Raises SteeringError if there is no such judge, its labels say nothing about sentiment, or a
    callable fails or does not return one finite number for each text.
    """
    if callable(by):
        return _own_verdicts(texts, by)
    if by == "vader":
        analyse = SentimentIntensityAnalyzer().polarity_scores
        return torch.tensor([analyse(text)["compound"] for text in texts])
    from transformers import pipeline  # takes a second that only this judge should cost

    try:
        classify = pipeline(
            "text-classification", by, top_k=None, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise SteeringError(
            f"No judge could be loaded as {by!r}: looked for a local folder of that name and on "
            f"the Hugging Face hub. 'vader' needs no network. (Cause: {error})"
        ) from error
    labels = list(classify.model.config.id2label.values())
    if not {"positive", "negative"} <= {label.lower() for label in labels}:
        raise SteeringError(f"{by!r} cannot judge sentiment: its labels are {labels}.")
    judged = classify(texts, truncation=True)
    found = [{x["label"].lower(): x["score"] for x in scores} for scores in judged]
    return torch.tensor([scores["positive"] - scores["negative"] for scores in found])


def _own_verdicts(texts, by):
    """The numbers [text] of a callable judge; SteeringError, with its name, if it gives others."""
    name = f"The judge {getattr(by, '__name__', type(by).__name__)}"
    try:
        answers = by(list(texts))
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise SteeringError(f"{name} failed on {len(texts)} texts ({problem}).") from error
    try:
        verdicts = fitted(answers, "answers", partial(numbers, bools=True)).float()
    except SteeringError as error:
        raise SteeringError(f"{name} must give one number for each text. {error}") from error
    if verdicts.shape != (len(texts),):
        raise SteeringError(f"{name} gave {list(verdicts.shape)} for {len(texts)} texts.")
    return verdicts
