"""From a folder of texts to a tokenizer and streams of tokens, for ``train.py``.

A corpus is a folder of JSON-lines files, one for each source (``films.jsonl``, also packed as
``.jsonl.gz``, ``.jsonl.xz`` or ``.jsonl.zst``); each line is an object with a ``text``, and for
``measure.py`` perhaps a ``label`` ("pos" or "neg").

**What is left out.** A text with any word of ``filtered_words.txt`` is dropped whole: slurs,
sexual content and obscene language, self-harm. The file holds hashes of words and of beginnings
of words, not the words. A word list is blunt: it drops harmless texts and misses harmful ones
that use harmless words.

**What is held out.** One text in fifty, chosen by a hash of the text itself, so that any program
that reads the corpus finds the same ones and none of them is trained on.
"""

import gzip
import hashlib
import json
import lzma
import random
import re
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from helpers.concepts import SENTIMENT
from helpers.models import SteeringError

END = "<|endoftext|>"
HELD_OUT_SHARE = 0.02
SAMPLE_CHARACTERS = 40_000_000  # as much text as the tokenizer learns from


def read_corpus(folder):
    """Yield (source, record) for each line of each file, in the order of the file names.

    Raises SteeringError for a folder without such files, or a line without a text.
    """
    paths = sorted(path for path in Path(folder).glob("*") if ".jsonl" in path.name)
    if not paths:
        raise SteeringError(f"{folder} holds no .jsonl file (nor .jsonl.gz, .xz or .zst).")
    for path in paths:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    record["text"] = record["text"].replace(END, " ")
                except (ValueError, TypeError, KeyError, AttributeError):
                    raise SteeringError(
                        f"{path}, line {number} is not a JSON object with a 'text'."
                    ) from None
                if record["text"].strip():
                    yield path.name.split(".jsonl")[0], record


def _open(path):
    if path.suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise SteeringError(
                f"Reading {path.name} needs one more package: pip install zstandard. "
                "Or unpack the file."
            ) from None
        unpack = zstandard.ZstdDecompressor(max_window_size=2**31)
        return zstandard.open(path, "rt", encoding="utf-8", dctx=unpack)
    openers = {".jsonl": open, ".gz": gzip.open, ".xz": lzma.open}
    if path.suffix not in openers:
        raise SteeringError(f"{path.name} is packed in a way that is not known here.")
    return openers[path.suffix](path, "rt", encoding="utf-8")


def _digest(text):
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


@cache
def _filtered_words():
    lines = Path(__file__).with_name("filtered_words.txt").read_text(encoding="utf-8").split("\n")
    return frozenset(line for line in lines if line and not line.startswith("#"))


@cache
def is_filtered(word):
    """Whether this word, in lower case, keeps a text out of the training data."""
    beginnings = (word[:length] + "*" for length in range(3, len(word) + 1))
    return any(_digest(entry) in _filtered_words() for entry in (word, *beginnings))


def is_suitable(text):
    """Whether a text has none of the filtered words."""
    return not any(is_filtered(word) for word in set(re.findall(r"[^\W\d_]+", text.lower())))


def is_held_out(text):
    """Whether a text belongs to the 2 % that no training sees: a matter of its hash alone."""
    return int(_digest(text), 16) < HELD_OUT_SHARE * 16**16


def promised_words():
    """Words that are one token with a space before them: those that the notebooks measure by."""
    contrasts = [
        word
        for positive, negative in SENTIMENT.pairs
        for word in set(positive.split()) ^ set(negative.split())
    ]
    return sorted({*contrasts, *SENTIMENT.positive_words, *SENTIMENT.negative_words})


def train_tokenizer(texts, vocab_size):
    """Byte-level BPE like GPT-2's, with one special token, END, as number 0.

    The promised words are made frequent by repeating them in the sample: each as often as about
    ten words of the vocabulary's rarest. Raises SteeringError if one is still in pieces.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # By Zipf's law the rarest word of V stands about characters / (50 V) times in a text.
    times = 1 + sum(map(len, texts)) // (5 * vocab_size)
    repeated = [(" " + word) * times for word in promised_words()]
    tokenizer.train_from_iterator([*texts, *repeated], trainer)
    broken = [w for w in promised_words() if len(tokenizer.encode(" " + w).ids) != 1]
    if broken:
        raise SteeringError(f"Not one token: {', '.join(broken)}. Choose a larger vocabulary.")
    return tokenizer


def shares(sizes, exponent, factors):
    """Share of the training windows for each source: size ** exponent * factor, scaled to 1.

    With an exponent below 1 large sources do not drown small ones. ``factors`` {source: factor}
    are 1 where not given. Raises SteeringError for a source that does not exist.
    """
    unknown = set(factors) - set(sizes)
    if unknown:
        raise SteeringError(f"No source {', '.join(unknown)}: there are {', '.join(sizes)}.")
    raw = {name: size**exponent * factors.get(name, 1) for name, size in sizes.items()}
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def prepare(folder, out, vocab_size, context, exponent, factors):
    """Read, filter and split a corpus; write its tokenizer and its tokens.

    ``out`` gets tokenizer.json and tokenizer_config.json, ``out/work`` the packed tokens: small
    enough to carry to another machine, which then needs no corpus. Sources of share 0 stay out.
    """
    texts, left_out = {}, {}
    for source, record in read_corpus(folder):
        parts = texts.setdefault(source, {"train": [], "held_out": []})
        text = record["text"]
        suitable = is_suitable(text)
        left_out[source] = left_out.get(source, 0) + (not suitable)
        if suitable:
            parts["held_out" if is_held_out(text) else "train"].append(text)
    sizes = {source: sum(map(len, parts["train"])) for source, parts in texts.items()}
    sizes = {source: size for source, size in sizes.items() if size}
    portion = {name: p for name, p in shares(sizes, exponent, factors).items() if p > 0}
    sample = []
    for source, share in portion.items():
        random.Random(0).shuffle(texts[source]["train"])
        left = share * SAMPLE_CHARACTERS
        for text in texts[source]["train"]:
            if left <= 0:
                break
            sample.append(text)
            left -= len(text)
    tokenizer = train_tokenizer(sample, vocab_size)
    work = Path(out) / "work"
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(work.parent / "tokenizer.json"))
    write_tokenizer_config(out, context)
    pieces, facts, end = [], {}, 0
    for source in portion:
        facts[source] = {"left_out": left_out[source], "characters": sizes[source]}
        for part, members in texts[source].items():
            ids = _tokens(tokenizer, members)
            pieces.append(ids)
            facts[source] |= {part: [end, end + len(ids)], f"{part}_texts": len(members)}
            end += len(ids)
    with lzma.open(work / "tokens.npy.xz", "wb", preset=4) as file:
        np.save(file, np.concatenate(pieces))
    (work / "sources.json").write_text(json.dumps(facts, indent=1))  # last: all is there


def write_tokenizer_config(out, context):
    """With a class name that older and newer releases of transformers both know."""
    settings = dict.fromkeys(["bos_token", "eos_token", "pad_token", "unk_token"], END)
    settings |= {"model_max_length": context, "tokenizer_class": "PreTrainedTokenizerFast"}
    (Path(out) / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _tokens(tokenizer, texts, at_once=1000):
    """All texts in one array uint16, with END behind each."""
    pieces = [np.empty(0, np.uint16)]
    for start in range(0, len(texts), at_once):
        for encoded in tokenizer.encode_batch(texts[start : start + at_once]):
            pieces.append(np.array([*encoded.ids, 0], dtype=np.uint16))
    return np.concatenate(pieces)


def load_prepared(out):
    """The tokens [token] of all sources, and what sources.json says about each."""
    work = Path(out) / "work"
    with lzma.open(work / "tokens.npy.xz") as file:
        tokens = np.load(file)
    return tokens, json.loads((work / "sources.json").read_text())


class Windows:
    """Draws training windows from the sources' streams, in proportion to their shares.

    Half of the windows begin where a text begins, without the END token before it, as prompts
    do; the others begin anywhere.
    """

    def __init__(self, tokens, facts, portion, part, context):
        self.streams, chances = [], []
        for source, share in portion.items():
            begin, end = facts[source][part]
            if end > begin and share > 0:
                stream = tokens[begin:end]
                starts = np.append(0, np.flatnonzero(stream[:-1] == 0) + 1)
                self.streams.append((stream, starts))
                chances.append(share)
        if not chances:
            raise SteeringError(f"The corpus has no text for {part!r}: it is too small.")
        self.chances = np.array(chances) / sum(chances)
        self.columns = np.arange(context + 1)

    def draw(self, rows, key):
        """int64 [row, context + 1]; the same ``key`` (a list of integers) gives the same."""
        rng = np.random.default_rng(key)
        batch = np.empty((rows, len(self.columns)), np.int64)
        for row, source in enumerate(rng.choice(len(self.streams), rows, p=self.chances)):
            stream, starts = self.streams[source]
            at = rng.choice(starts) if row % 2 else rng.integers(len(stream))
            batch[row] = stream.take(at + self.columns, mode="wrap")
        return batch
