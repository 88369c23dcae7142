"""Train a pocket-sized GPT-2 on a folder of texts, in a time that you choose.

    python -m helpers.training.train --corpus my_texts --out build/pocket --minutes 150

``my_texts`` holds JSON-lines files (see ``corpus.py``); afterwards ``load_model("build/pocket")``
opens the result, an unmodified ``GPT2LMHeadModel``. The same command, given again after a crash
or a break, goes on from the last checkpoint; what is needed for that lies in ``build/pocket/work``
and can be deleted at the end. ``--minutes`` counts training over all sittings, since the learning
rate falls with the time used; ``--sitting`` ends this one earlier. One seed gives the same
windows in the same order; how many steps fit into the time depends on the machine.

To train on another machine, prepare the data here (``--prepare-only``) and carry the folder.
"""

import argparse
import ctypes
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from helpers.models import SteeringError, context_length, load_model
from helpers.training.corpus import Windows, load_prepared, prepare, shares, write_tokenizer_config
from helpers.training.optimiser import MasterCopy

LARGEST_FILE = "15MB"  # so that every file stays under 16 MiB
HELD_OUT_WINDOWS = 32  # for the loss shown at each checkpoint
FINAL_CHARACTERS = 50_000  # of each source, for the bits per character at the end
PROGRESS_SECONDS = 10


def parse(argv=None):
    """The settings, from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.training.train",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", help="folder of JSON-lines files; not needed once the data are prepared")
    add("--out", required=True, help="folder for the finished model, and for work in progress")
    add("--prepare-only", action="store_true", help="make tokenizer and tokens, do not train")
    add("--minutes", type=float, default=150, help="of training, all sittings together")
    add("--sitting", type=float, default=math.inf, help="end this sitting after so many minutes")
    add("--checkpoint-minutes", type=float, default=3, help="between two checkpoints")
    add("--vocab", type=int, default=8192, help="entries of the tokenizer")
    add("--width", type=int, default=192, help="d_model")
    add("--heads", type=int, help="of attention (default: one for each 32 of the width)")
    add("--layers", type=int, default=12)
    add("--context", type=int, default=256, help="tokens the model can read at once")
    add("--batch", type=int, default=32, help="windows in one step of the optimiser")
    add("--micro", type=int, help="windows at a time, if memory is short (default: all)")
    add("--muon-lr", type=float, default=0.02, help="for the matrices inside the blocks")
    add("--adam-lr", type=float, default=0.003, help="for everything else")
    add("--weight-decay", type=float, default=0.0, help="of those matrices, times --muon-lr")
    add("--dropout", type=float, default=0.0, help="useful from about ten passes on")
    add("--exponent", type=float, default=0.6, help="a source's share grows as size ** this")
    add("--weight", action="append", default=[], metavar="SOURCE=FACTOR", help="times its share")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=["float32", "bfloat16"], help="default: the faster one here")
    add("--compile", action="store_true", help="use torch.compile: faster, but needs a compiler")
    args = parser.parse_args(argv)
    try:
        pairs = [item.split("=") for item in args.weight]
        args.weight = {source: float(factor) for source, factor in pairs}
    except ValueError:
        parser.error("--weight takes SOURCE=FACTOR, such as films=0.5")
    args.heads = args.heads or max(1, args.width // 32)
    if args.width % args.heads:
        parser.error("--width must be a multiple of --heads")
    args.micro = min(args.micro or args.batch, args.batch)
    if args.batch % args.micro:
        parser.error("--batch must be a multiple of --micro")
    return args


def causal_attention(module, query, key, value, attention_mask, dropout=0.0, **options):
    """Attention [row, head, token, d_head] without padding, the fastest way for each device."""
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        # The fused function is slow backward here: two products and a softmax are faster.
        n = query.shape[-2]
        future = torch.full((n, n), -torch.inf, dtype=query.dtype).triu(1)
        q, k, v = (each.flatten(0, 1) for each in (query, key, value))
        scores = torch.baddbmm(future.expand(len(q), n, n), q, k.mT, alpha=q.shape[-1] ** -0.5)
        mixed = (F.dropout(scores.softmax(-1), dropout) @ v).view_as(query)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    return mixed.transpose(1, 2), None


AttentionInterface.register("causal", causal_attention)


def keep_memory():
    """Have glibc keep what a step frees: fetching zeroed pages anew took a third of each step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # no Linux with glibc
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as in malloc.h
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def faster_dtype(device):
    """bfloat16 where this machine multiplies it faster than float32: GPUs, some processors."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype, device=device)
        for _ in range(2):  # the first time is a warm-up
            began = time.perf_counter()
            (matrix @ matrix).sum().item()
            seconds[dtype] = time.perf_counter() - began
    return "bfloat16" if seconds[torch.bfloat16] < seconds[torch.float32] else "float32"


def new_config(args, vocab_size):
    """GPT-2's own, at this size."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=args.context,
        n_embd=args.width,
        n_head=args.heads,
        n_layer=args.layers,
        **dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], args.dropout),
        **dict.fromkeys(["bos_token_id", "eos_token_id"], 0),
    )


def learning_rate(progress, step):
    """Share of the peak: full in the first half, linearly to 0 in the second; a short warm-up."""
    return max(0.0, min(1.0, 2 * (1 - progress), (step + 1) / 20))


class Run:
    """One sitting of a training: data, model and optimiser, from the last checkpoint if any."""

    def __init__(self, args):
        self.args, self.out = args, Path(args.out)
        args.dtype = args.dtype or faster_dtype(args.device)
        tokens, self.sources = load_prepared(self.out)
        sizes = {source: facts["characters"] for source, facts in self.sources.items()}
        # Sources that were given no share at all are not among the prepared ones.
        factors = {source: args.weight.get(source, 1) for source in sizes}
        self.shares = shares(sizes, args.exponent, factors)
        self.training, self.held_out = (
            Windows(tokens, self.sources, self.shares, part, args.context)
            for part in ("train", "held_out")
        )
        spans = [facts["train"] for facts in self.sources.values()]
        self.n_tokens = sum(end - begin for begin, end in spans)
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        tokenizer = json.loads((self.out / "tokenizer.json").read_text(encoding="utf-8"))
        self.config = new_config(args, len(tokenizer["model"]["vocab"]))
        self.model = GPT2LMHeadModel._from_config(self.config, attn_implementation="causal")
        self.model.to(args.device, getattr(torch, args.dtype)).train()
        self.master = MasterCopy(self.model, args.muon_lr, args.adam_lr, args.weight_decay)
        self.train_loss = torch.compile(self.loss) if args.compile else self.loss
        self.record = {"step": 0, "seconds": 0.0, "held_out_curve": []}
        self.checkpoint = self.out / "work" / "checkpoint.pt"
        if self.checkpoint.exists():
            self._resume()

    def _shape(self):
        names = ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer")
        return {name: getattr(self.config, name) for name in names}

    def _resume(self):
        state = torch.load(self.checkpoint, map_location=self.args.device, weights_only=True)
        if state["shape"] != self._shape():
            raise SteeringError(
                f"{self.checkpoint} belongs to another model, {state['shape']}: give the settings "
                "it was made with, or delete it."
            )
        self.master.load(state["weights"])
        self.record = state["record"]
        step, minutes = self.record["step"], self.record["seconds"] / 60
        print(f"going on from step {step}, after {minutes:.1f} minutes of training", flush=True)

    def save(self):
        """Measure the held-out loss, then write a checkpoint: a kill leaves it whole."""
        loss = self.held_out_loss()
        self.record["held_out_curve"].append([self.record["step"], round(loss, 4)])
        state = {"shape": self._shape(), "record": self.record, "weights": self.master.state()}
        new = self.checkpoint.with_suffix(".new")
        torch.save(state, new)
        os.replace(new, self.checkpoint)
        print(f"step {self.record['step']:>6}  held-out {loss:.3f}  checkpoint saved", flush=True)

    def loss(self, ids):
        """Mean negative log-likelihood, in nats a token, of windows [row, context + 1]."""
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    def backward(self):
        """Gradients of the step that is next; returns its loss, still on the device."""
        batch = self.training.draw(self.args.batch, [self.args.seed, self.record["step"]])
        total = 0
        for ids in torch.from_numpy(batch).split(self.args.micro):
            loss = self.train_loss(ids.to(self.args.device)) * (len(ids) / self.args.batch)
            loss.backward()
            total = total + loss.detach()
        return total

    @torch.no_grad()
    def held_out_loss(self):
        """On the same windows each time."""
        self.model.eval()
        windows = torch.from_numpy(self.held_out.draw(HELD_OUT_WINDOWS, [0])).split(16)
        losses = [self.loss(ids.to(self.args.device)).item() for ids in windows]
        self.model.train()
        return sum(losses) / len(losses)

    def train(self):
        """Until the time, or this sitting, is over. Returns whether the training is complete."""
        args, record = self.args, self.record
        per_step = args.batch * args.context
        size = self.model.num_parameters() / 1e6
        print(
            f"{size:.1f} million parameters, {self.n_tokens:,} tokens to train on, "
            f"{per_step:,} a step, {args.dtype} on {args.device}",
            flush=True,
        )
        self.backward()  # compiles and warms up, off the clock
        self.model.zero_grad(set_to_none=True)
        limit, before = 60 * args.minutes, record["seconds"]
        began = shown = saved = time.monotonic()
        losses = []  # kept on the device: fetching each would make a GPU wait
        while record["seconds"] < limit and time.monotonic() < args.sitting_ends:
            losses.append(self.backward())
            self.master.step(learning_rate(record["seconds"] / limit, record["step"]))
            record["step"] += 1
            now = time.monotonic()
            record["seconds"] = before + now - began
            done = record["seconds"] >= limit
            if done or now - shown > PROGRESS_SECONDS:
                record["loss"] = torch.stack(losses).mean().item()
                if not math.isfinite(record["loss"]):
                    raise SteeringError("The loss is no number any more: lower --muon-lr.")
                speed = len(losses) * per_step / (time.monotonic() - shown)
                print(
                    f"step {record['step']:>6}  loss {record['loss']:.3f}  "
                    f"{speed:,.0f} tokens/s  {max(0, limit - record['seconds']) / 60:.1f} min left",
                    flush=True,
                )
                shown, losses = time.monotonic(), []
            if not done and now - saved > 60 * args.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
                shown += saved - now  # the speed that is shown is that of the training
        self.save()
        return record["seconds"] >= limit


def finish(run):
    """Write the weights as float16 in files of under 16 MiB, open them again, and measure."""
    args, out = run.args, run.out
    for old in out.glob("model*.safetensors*"):
        old.unlink()
    for settings in (run.model.config, run.model.generation_config):
        settings.pad_token_id = 0
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(run.model.config, name, 0.0)
    run.model.half()
    run.master.to_model()  # from float32 straight to float16
    logging.disable_progress_bar()
    run.model.save_pretrained(out, max_shard_size=LARGEST_FILE)
    for path in out.glob("model*.safetensors*"):
        path.chmod(0o644)
    write_tokenizer_config(out, args.context)
    model, tokenizer = load_model(out, device=args.device, dtype=torch.float32)
    tokens, _ = load_prepared(out)
    bits = {}
    for source, facts in run.sources.items():
        begin, end = facts["held_out"]
        texts = tokenizer.decode(tokens[begin:end].tolist()).split(tokenizer.eos_token)
        if any(texts):
            bits[source] = round(bits_per_character(model, tokenizer, texts, FINAL_CHARACTERS), 4)
            print(f"{source:<24} {bits[source]:.3f} bits per character", flush=True)
    cuda = args.device.startswith("cuda")
    seen = run.record["step"] * args.batch * args.context
    here = ("corpus", "out", "prepare_only", "sitting", "sitting_ends")  # of no use elsewhere
    report = {
        "settings": {name: value for name, value in vars(args).items() if name not in here},
        "hardware": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "parameters": model.num_parameters(),
        "tokens_seen": seen,
        "passes": seen / run.n_tokens,
        **run.record,
        "bits_per_character": bits,
        "shares": run.shares,
        "sources": run.sources,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"finished: {out}", flush=True)


@torch.no_grad()
def bits_per_character(model, tokenizer, texts, characters=100_000, batch_size=16):
    """How many bits the model needs for each character of texts, on average.

    Texts are read from their start, without anything before it, up to ``characters`` in all. A
    long one goes through in overlapping windows, so that every token but the first of a text is
    scored once, with at least half a context before it where there is so much. The first token
    has nothing to be predicted from, and its characters do not count.
    """
    context = context_length(model) or 1024
    windows, counted = [], 0  # (ids, from which token on they are scored)
    for text in texts:
        if counted >= characters:
            break
        ids = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) < 2:
            continue
        counted += len(text) - len(tokenizer.decode(ids[:1], skip_special_tokens=True))
        windows.append((ids[:context], 1))
        done = context
        while done < len(ids):
            end = min(done + context // 2, len(ids))
            windows.append((ids[end - context : end], context - (end - done)))
            done = end
    if not windows:
        raise SteeringError("There is no text of two tokens to measure on.")
    windows.sort(key=lambda window: len(window[0]))
    nats = 0.0
    for start in range(0, len(windows), batch_size):
        rows = windows[start : start + batch_size]
        ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (row, first) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            targets[i, first : len(row)] = ids[i, first : len(row)]
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        goal = targets[:, 1:].flatten().to(model.device)
        nats += F.cross_entropy(logits.flatten(0, 1).float(), goal, reduction="sum").item()
    return nats / math.log(2) / counted


def main(argv=None):
    args = parse(argv)
    args.sitting_ends = time.monotonic() + 60 * args.sitting
    if not (Path(args.out) / "work" / "sources.json").exists():
        if args.corpus is None:
            raise SteeringError(f"{args.out} holds no prepared data: give --corpus.")
        print("preparing the corpus", flush=True)
        prepare(args.corpus, args.out, args.vocab, args.context, args.exponent, args.weight)
    if not args.prepare_only:
        if args.device == "cpu":
            keep_memory()
        run = Run(args)
        if run.train():
            finish(run)


if __name__ == "__main__":
    main()
