"""What things cost on this machine, beside what they are compared with; all from one run.

    python tests/benchmark.py            everything
    python tests/benchmark.py explorer   some parts, by the names of their functions

Not a test: seconds differ from machine to machine. Ratios differ less, so read those. Torch
gets two threads; set OMP_NUM_THREADS for another number.
"""

import os
import statistics
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "2")

import conftest  # noqa: E402, F401  sets the rest of a test run's environment
from helpers.directions import find_vectors  # noqa: E402
from helpers.evaluation import DEV_PROMPTS  # noqa: E402
from helpers.explorer import Explorer  # noqa: E402
from helpers.models import encode, load_model  # noqa: E402
from helpers.pairs import SENTIMENT_PAIRS  # noqa: E402
from helpers.steering import generate  # noqa: E402

NEW_TOKENS = 24


def explorer(model, tokenizer):
    """From a new setting of the panel to its finished view, over layers and forces."""
    vectors = find_vectors(model, tokenizer, SENTIMENT_PAIRS)
    prompt = DEV_PROMPTS[0]
    batch = encode(model, tokenizer, [prompt] * 2)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    panel = Explorer(model, tokenizer, {"sentiment": vectors}, prompt=prompt)
    panel.length.value = NEW_TOKENS

    def plain():
        model.generate(**batch, **length, do_sample=False, pad_token_id=tokenizer.pad_token_id)

    def texts():
        layer, force = panel.layer.value, panel.force.value
        generate(model, tokenizer, [prompt], vectors[layer], force, max_new_tokens=NEW_TOKENS)

    def move(share):
        panel.force_slider.value = share

    rows = {
        f"model.generate of two rows, {NEW_TOKENS} tokens, greedy": [],
        "generate of the same two texts": [],
        "the panel, a new setting": [],
        "the panel, a cached setting": [],
    }
    for layer in range(0, len(vectors), 2):
        panel.layer.value = layer
        for share in (-0.4, -0.2, 0.1, 0.2, 0.3):
            new = seconds(lambda s=share: move(s))
            calls = [seconds(plain), seconds(texts), new]
            move(0)
            calls.append(seconds(lambda s=share: move(s)))
            for row, call in zip(rows.values(), calls, strict=True):
                row.append(call)
            move(0)
    return rows


PARTS = [explorer]


def seconds(call):
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(names):
    model, tokenizer = load_model("pocket")
    print(f"{'median of the calls':<50} {'calls':>5} {'ms':>8} {'ratio':>7}")
    for part in PARTS:
        if names and part.__name__ not in names:
            continue
        print(f"-- {part.__name__}: {part.__doc__}")
        rows = part(model, tokenizer)
        # Within a part each line is compared with the first.
        reference = statistics.median(next(iter(rows.values())))
        for name, times in rows.items():
            median = statistics.median(times)
            print(f"{name:<50} {len(times):>5} {1000 * median:>8.1f} {median / reference:>7.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
