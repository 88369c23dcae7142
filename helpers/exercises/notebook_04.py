"""Exercises of notebook 04, steering with hooks."""

import torch

from ..models import blocks, hidden_state, with_hidden_state
from ..steering import steer
from .exercise import Exercise, Explanation

# -- 4.1 · A hook that does nothing

silent = Exercise(
    "4.1",
    "find the bug",
    minutes=4,
    difficulty=1,
    given=("model", "tokenizer"),
    why="a hook that returns nothing leaves the output as it is, and no message says so.",
    hints=(
        "Run the function by hand: what does it return?",
        "PyTorch replaces the output by what the hook returns. `hidden + …` makes a new tensor.",
    ),
)


@silent.tried_by
def _change(hook, model, tokenizer):
    """What the hook adds to a block's output, and whether it leaves the tensor there alone."""
    batch = tokenizer("The food was", return_tensors="pt").to(model.device)
    ids = batch["input_ids"].repeat(2, 1)
    layer, seen, tensors = len(blocks(model)) // 2, [], []

    def listen(module, args, output):
        tensors.append(hidden_state(output))
        seen.append(tensors[-1].clone())

    def push(module, args, output):
        result = hook(module, args, output)
        if result is not None and _form(result) != _form(output):
            raise _AnotherForm
        return result

    before = blocks(model)[layer].register_forward_hook(listen)
    between = blocks(model)[layer].register_forward_hook(push)
    after = blocks(model)[layer].register_forward_hook(listen)
    try:
        model(ids)
    except _AnotherForm:
        return "another form"
    finally:
        for handle in (before, between, after):
            handle.remove()
    return [(seen[1] - seen[0]).float(), tensors[0].equal(seen[0])]


class _AnotherForm(Exception):
    """What a hook returned has not the form of the block's output."""


def _form(output):
    """Tuple or not, and the shape of the hidden state."""
    hidden = output[0] if isinstance(output, tuple) else output
    return isinstance(output, tuple), getattr(hidden, "shape", None)


@silent.begins_with
def broken_hook(module, args, output):
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden + 1.0


@silent.solution
def mended_hook(module, args, output):
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden + 1.0
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@silent.mistake("the force was not too small: nothing was added at all. What does it return?")
def _larger(module, args, output):
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden + 100.0


@silent.mistake(
    "it writes into the tensor that was there, which other code may hold: add out of place, and "
    "return the new one."
)
def _in_place(module, args, output):
    hidden = output[0] if isinstance(output, tuple) else output
    hidden += 1.0


@silent.mistake(
    "what it returns has another form than the block's output, which is a tuple or a bare tensor "
    "(whose `output[0]` is its first row alone): take both forms in, and give the same one back."
)
def _first_row(module, args, output):
    return output[0] + 1.0


@silent.mistake("it adds 2 to every number: 1 was added before the return already.")
def _twice(module, args, output):
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = hidden + 2.0
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@silent.mistake("your hook returns only what it adds: return the hidden state plus it.")
def _returns_the_step(module, args, output):
    hidden = output[0] if isinstance(output, tuple) else output
    step = torch.ones_like(hidden)
    return (step, *output[1:]) if isinstance(output, tuple) else step


# -- 4.2 · Alike at first

alike = Explanation(
    "4.2",
    minutes=4,
    difficulty=2,
    why="equal words hide different chances, so an early likeness does not mean a weak push.",
    hints=(
        "At each token both texts make the same draw. When does the same draw give two words?",
        "Compare the chances of the next word in the two runs, not the words.",
    ),
    answer="Both runs draw with the same random numbers, so as long as the push has not moved the "
    "chances of the next token across the number drawn, the same token comes out. Chances move at "
    "every token, from the first on; the texts part at the first token where the move is large "
    "enough to tip the draw. From there on the two runs read different texts, and differ even "
    "where the push does little.",
    points={
        "a": "the random numbers are shared, so an equal choice is no sign that nothing was pushed",
        "b": "the chances differ from the first token on, though the words do not yet",
        "c": "after the first different token the two runs read different texts",
    },
)


# -- 4.3 · The smallest push that shows

smallest = Exercise(
    "4.3",
    "write",
    minutes=8,
    difficulty=2,
    given=("model", "tokenizer", "prompt", "vector", "norm"),
    within=0.01,
    why="a threshold of the greedy word needs no seed: another reader can check your number.",
    hints=(
        "Greedy means the likeliest next word; next_words(1) is that word and its chance. Print it "
        "without and inside `with steer(model, vector, share * scale[layer].item())`.",
        "Try the shares 0.05, 0.10, 0.15, … one by one, and stop at the first whose word differs.",
    ),
)


@smallest.solution
def smallest_share(model, tokenizer, prompt, vector, norm):
    shares = [step / 20 for step in range(41)]  # 0, 0.05, … 2
    batch = tokenizer([prompt] * len(shares), return_tensors="pt").to(model.device)
    with steer(model, vector, [share * norm for share in shares]):  # a force for each row
        words = model(**batch).logits[:, -1].argmax(-1).tolist()
    return next(
        (share for share, word in zip(shares, words, strict=True) if word != words[0]), 2.05
    )


@smallest.mistake("that is a force: divide it by the typical norm, so that it travels.")
def _a_force(model, tokenizer, prompt, vector, norm):
    return norm * smallest_share(model, tokenizer, prompt, vector, norm)


@smallest.mistake(
    "some share up to 2 does change it: the force that steer wants is a share times the typical "
    "norm of the layer."
)
def _none_found(model, tokenizer, prompt, vector, norm):
    return 2.05


@smallest.mistake("that is the last share that changes nothing: the next one is asked for.")
def _one_too_few(model, tokenizer, prompt, vector, norm):
    return smallest_share(model, tokenizer, prompt, vector, norm) - 0.05


@smallest.mistake("that is the smallest push the other way: the sign is turned.")
def _other_way(model, tokenizer, prompt, vector, norm):
    return smallest_share(model, tokenizer, prompt, -vector, norm)


# -- 4.4 · A hook for what is generated

generated_only = Exercise(
    "4.4",
    "write",
    minutes=10,
    difficulty=3,
    given=("model", "tokenizer"),
    why="counted from the start of the text, a push is the same with and without the cache.",
    hints=(
        "How many tokens does the hook see in the first pass, and how many in each later one, "
        "with the cache? And without it?",
        "A pass of a single token is a generated one: all of it is pushed. A longer pass begins "
        "with the prompt: only what lies behind it is pushed.",
    ),
)


@generated_only.tried_by
def _texts_and_logits(make_hook, model, tokenizer):
    """Logits of two new tokens: with the cache, pass by pass, and without it in one pass."""
    layer = len(blocks(model)) // 2
    prompt = tokenizer("The food at this place was", return_tensors="pt")["input_ids"]
    prompt = prompt.to(model.device)
    delta = torch.zeros(model.get_input_embeddings().weight.shape[1])
    delta[::2] = 3.0  # any direction will do
    whole = torch.cat([prompt, prompt[:, :2]], dim=1)
    hook = make_hook(delta, prompt.shape[1])
    if not callable(hook):
        return "no hook"
    handle = blocks(model)[layer].register_forward_hook(hook)
    try:
        once = model(whole, use_cache=False).logits[0, -3:]
        first = model(prompt, use_cache=True)
        passes, cache = [first.logits[0, -1:]], first.past_key_values
        for i in range(2):
            token = whole[:, prompt.shape[1] + i][:, None]
            passes.append(model(token, past_key_values=cache, use_cache=True).logits[0])
    finally:
        handle.remove()
    return {"a text without the cache": once.float(), "one with it": torch.cat(passes).float()}


@generated_only.solution
def make_hook(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output).clone()
        # With the cache a pass after the prompt holds one token, which is a new one.
        start = 0 if hidden.shape[1] == 1 else prompt_length
        hidden[:, start:] += delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake(
    "counting inside one pass: under the cache each pass after the prompt sees one token, so "
    "[:, prompt_length:] is empty there and nothing is pushed."
)
def _counts_in_the_pass(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output).clone()
        hidden[:, prompt_length:] += delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake(
    "`shape[1] > prompt_length` is never true under the cache, where a pass has one token; and "
    "without it the prompt is pushed as well."
)
def _guards_by_length(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output)
        if hidden.shape[1] > prompt_length:
            hidden = hidden + delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake(
    "with the cache it is right; without it a pass that is longer than the prompt holds the "
    "prompt, too, and yours pushes all of it."
)
def _pushes_long_passes(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output)
        if hidden.shape[1] != prompt_length:
            hidden = hidden + delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake(
    "with the cache it is right; without it only the newest token is pushed, and not those "
    "generated before."
)
def _only_the_newest(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output).clone()
        if hidden.shape[1] != prompt_length:
            hidden[:, -1] += delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake(
    "one token too early: counted from 0, the prompt's last token stands at prompt_length - 1."
)
def _one_early(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output).clone()
        start = 0 if hidden.shape[1] == 1 else prompt_length - 1
        hidden[:, start:] += delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake(
    "it counts on from one text to the next: the second text begins with a prompt again."
)
def _counts_on(delta, prompt_length):
    seen = [0]

    def hook(module, args, output):
        hidden = hidden_state(output).clone()
        start = max(prompt_length - seen[0], 0)
        seen[0] += hidden.shape[1]
        hidden[:, start:] += delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake(
    "make_hook has to return a hook: the inner function, by its name and without brackets."
)
def _no_hook(delta, prompt_length):
    make_hook(delta, prompt_length)


@generated_only.mistake("the prompt is pushed as well: only what is generated was asked for.")
def _pushes_all(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output)
        return with_hidden_state(output, hidden + delta.to(hidden))

    return hook


@generated_only.mistake(
    "with the cache it is right; without it the one pass holds prompt and new tokens together, "
    "and yours pushes none of them."
)
def _only_single_tokens(delta, prompt_length):
    def hook(module, args, output):
        hidden = hidden_state(output)
        if hidden.shape[1] == 1:
            hidden = hidden + delta.to(hidden)
        return with_hidden_state(output, hidden)

    return hook


@generated_only.mistake("nothing is pushed: does the inner function return the new hidden state?")
def _returns_nothing(delta, prompt_length):
    def hook(module, args, output):
        hidden_state(output) + delta.to(hidden_state(output))

    return hook
