"""Exercises of notebook 02, caching activations."""

import torch

from ..activations import capture
from ..models import blocks, encode, last_token
from .exercise import Exercise, Explanation

# Two prompts of one length in most tokenizers, and one that is longer.
SAME, LONGER = ["The weather is good", "The weather is bad"], "I think that the soup here was cold"
TODAY = ["I am feeling very happy today", "I am feeling very sad today"]

# -- 2.1 · A hook that records

recording = Exercise(
    "2.1",
    "write",
    minutes=8,
    difficulty=2,
    given=("model", "tokenizer"),
    why="register, run, remove: whatever reads a model by hooks does these three.",
    hints=(
        "An inner function may put what it gets into a dictionary of the outer one.",
        "Register on blocks(model)[layer], call model(**batch), remove the handle, return what "
        "the hook kept. Take a tuple's first entry only if the output is a tuple.",
    ),
)


@recording.tried_by
def _early_and_late(output_of, model, tokenizer):
    """The outputs of a block below and of the last one, for two prompts."""
    batch = encode(model, tokenizer, SAME)
    last = len(blocks(model)) - 1
    cases = {"a block in the middle": last // 2, "the last block": last}
    return {case: output_of(model, batch, layer) for case, layer in cases.items()}


@recording.solution
def output_of(model, batch, layer):
    kept = {}

    def keep(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        kept["hidden"] = hidden.detach().clone()

    handle = blocks(model)[layer].register_forward_hook(keep)
    try:
        model(**batch)
    finally:
        handle.remove()
    return kept["hidden"]


@recording.mistake(
    "only the first prompt is there: `output[0]` of a bare tensor drops the batch. Look whether "
    "it is a tuple."
)
def _first_prompt(model, batch, layer):
    return output_of(model, batch, layer)[0]


@recording.mistake("that is what goes into the block: its output is what a hook gets third.")
def _input(model, batch, layer):
    kept = []
    handle = blocks(model)[layer].register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    model(**batch)
    handle.remove()
    return kept[0]


@recording.mistake("it reads one block, whatever `layer` says: hang the hook on that block.")
def _always_the_middle(model, batch, layer):
    return output_of(model, batch, len(blocks(model)) // 2)


@recording.mistake("only the last token of each prompt is there: keep all of them.")
def _last_tokens(model, batch, layer):
    return output_of(model, batch, layer)[:, -1]


@recording.mistake(
    "right for the middle block, not for the last one: the last of hidden_states has passed the "
    "final norm. Use a hook."
)
def _from_hidden_states(model, batch, layer):
    return model(**batch, output_hidden_states=True).hidden_states[layer + 1]


# -- 2.2 · All layers at once

one_off = Exercise(
    "2.2",
    "find the bug",
    minutes=5,
    difficulty=2,
    given=("model", "tokenizer"),
    why="one layer off looks right in every plot: only a comparison bit by bit shows it.",
    hints=(
        "What is states[0]? How many entries does states have, and how many blocks are there?",
        "For one block no entry is right. Which tool of this notebook gives its output?",
    ),
)


@one_off.tried_by
def _of_two_prompts(stream_of, model, tokenizer):
    return stream_of(model, encode(model, tokenizer, SAME))


@one_off.begins_with
def stream_of(model, batch):
    """The output of every block, [layer, prompt, token, d_model]."""
    states = model(**batch, output_hidden_states=True).hidden_states
    n_layer = len(blocks(model))
    return torch.stack([states[layer] for layer in range(n_layer)])


@one_off.solution
def captured_stream(model, batch):
    with capture(model) as stream:
        model(**batch)
    return torch.stack([stream[layer] for layer in range(len(blocks(model)))])


@one_off.mistake(
    "right but for the last layer: the last entry has passed the final norm, so the last block's "
    "output is in no entry."
)
def _one_further(model, batch):
    return torch.stack(model(**batch, output_hidden_states=True).hidden_states[1:])


@one_off.mistake(
    "there is one entry more than there are blocks: the embedding is among yours, and it is no "
    "block's output."
)
def _all_entries(model, batch):
    return torch.stack(model(**batch, output_hidden_states=True).hidden_states)


@one_off.mistake("that is one further off: entry 0 is the embedding, so the others come later.")
def _other_direction(model, batch):
    states = model(**batch, output_hidden_states=True).hidden_states
    return torch.stack([states[layer - 1] for layer in range(len(blocks(model)))])


# -- 2.3 · What arrives

arriving = Exercise(
    "2.3",
    "write",
    minutes=8,
    difficulty=2,
    given=("model", "tokenizer"),
    why="the last token is the same word in both prompts: what differs there was carried to it.",
    hints=(
        "The cell that made `share` does it for one pair. Which column of `share` is wanted?",
        "Subtract first, then take the norm; divide by the mean of the two streams' norms.",
    ),
)


@arriving.tried_by
def _at_today(arrival, model, tokenizer):
    found = arrival(model, tokenizer, TODAY)
    return torch.tensor(found) if isinstance(found, list) else found


@arriving.solution
def arrival(model, tokenizer, pair):
    with capture(model) as stream:
        model(**encode(model, tokenizer, pair))
    last = torch.stack([stream[layer][:, -1] for layer in range(len(blocks(model)))]).float()
    difference = last[:, 0] - last[:, 1]  # [layer, d_model]
    return difference.norm(dim=-1) / last.norm(dim=-1).mean(1)


def _streams(model, tokenizer, pair):
    """[layer, prompt, token, d_model]"""
    return captured_stream(model, encode(model, tokenizer, pair)).float()


@arriving.mistake(
    "the norms are subtracted: two vectors of one norm may still point in different directions. "
    "Subtract the vectors, then take the norm."
)
def _difference_of_norms(model, tokenizer, pair):
    norms = _streams(model, tokenizer, pair)[:, :, -1].norm(dim=-1)
    return (norms[:, 0] - norms[:, 1]) / norms.mean(1)


@arriving.mistake(
    "the norms are subtracted, whatever the sign: subtract the vectors, then take the norm."
)
def _distance_of_norms(model, tokenizer, pair):
    return _difference_of_norms(model, tokenizer, pair).abs()


@arriving.mistake("that is the norm of the difference: divide it by the stream's own.")
def _no_share(model, tokenizer, pair):
    both = _streams(model, tokenizer, pair)[:, :, -1]
    return (both[:, 0] - both[:, 1]).norm(dim=-1)


@arriving.mistake("that is the share at the exchanged word: the last token is asked for.")
def _at_the_word(model, tokenizer, pair):
    both = _streams(model, tokenizer, pair)[:, :, -2]
    return (both[:, 0] - both[:, 1]).norm(dim=-1) / both.norm(dim=-1).mean(1)


@arriving.mistake("divide by the mean of both prompts' norms: yours takes one of the two.")
def _of_the_first(model, tokenizer, pair):
    both = _streams(model, tokenizer, pair)[:, :, -1]
    return (both[:, 0] - both[:, 1]).norm(dim=-1) / both[:, 0].norm(dim=-1)


@arriving.mistake(
    "divide by the mean of the two norms: yours takes the norm of the mean, which is smaller."
)
def _of_the_mean(model, tokenizer, pair):
    both = _streams(model, tokenizer, pair)[:, :, -1]
    return (both[:, 0] - both[:, 1]).norm(dim=-1) / both.mean(1).norm(dim=-1)


@arriving.mistake(
    "that is the pair of the map above: the function is given a pair of its own, and has to run "
    "the model on it."
)
def _of_the_map(model, tokenizer, pair):
    return arrival(model, tokenizer, ["He is a very kind person", "He is a very mean person"])


@arriving.mistake("that is for every token: only the column of the last one is asked for.")
def _every_token(model, tokenizer, pair):
    both = _streams(model, tokenizer, pair)
    return (both[:, 0] - both[:, 1]).norm(dim=-1) / both.norm(dim=-1).mean(1)


# -- 2.4 · The last token of each

padded_ends = Exercise(
    "2.4",
    "find the bug",
    minutes=6,
    difficulty=2,
    given=("model", "tokenizer"),
    why="a vector read at a pad looks like any other vector, and no message says so.",
    hints=(
        "Where does the last real token of each prompt stand? Print the attention mask.",
        "last_token gives a column for each row. To pick one column a row, index with two lists: "
        "the numbers of the rows, and their columns.",
    ),
)


@padded_ends.tried_by
def _of_three_lengths(last_vectors, model, tokenizer):
    prompts = [SAME[0], LONGER, "We liked the house."]
    return last_vectors(model, tokenizer, prompts, len(blocks(model)) // 2)


@padded_ends.begins_with
def last_vectors(model, tokenizer, prompts, layer):
    """The vector at the last token of each prompt, [prompt, d_model]."""
    batch = encode(model, tokenizer, prompts)
    with capture(model, layers=[layer]) as stream:
        model(**batch)
    return stream[layer][:, -1]


@padded_ends.solution
def last_real_vectors(model, tokenizer, prompts, layer):
    batch = encode(model, tokenizer, prompts)
    with capture(model, layers=[layer]) as stream:
        model(**batch)
    ends = last_token(batch["attention_mask"])
    return stream[layer][torch.arange(len(prompts)), ends]


def _padded_stream(model, tokenizer, prompts, layer):
    """The stream [prompt, token, d_model], and the mask."""
    batch = encode(model, tokenizer, prompts)
    with capture(model, layers=[layer]) as stream:
        model(**batch)
    return stream[layer], batch["attention_mask"]


@padded_ends.mistake(
    "one column serves all prompts, where the first of them ends: each ends at a place of its own."
)
def _first_end(model, tokenizer, prompts, layer):
    stream, mask = _padded_stream(model, tokenizer, prompts, layer)
    return stream[:, last_token(mask)[0]]


@padded_ends.mistake("all the vectors come from the first prompt: index the rows, too.")
def _first_row(model, tokenizer, prompts, layer):
    stream, mask = _padded_stream(model, tokenizer, prompts, layer)
    return stream[0, last_token(mask)]


@padded_ends.mistake(
    "the mask is used as an index: it holds 0 and 1, so you read the first tokens. Its sum tells "
    "how many are real."
)
def _mask_as_index(model, tokenizer, prompts, layer):
    stream, mask = _padded_stream(model, tokenizer, prompts, layer)
    return stream[torch.arange(len(prompts)), mask[:, -1]]


@padded_ends.mistake(
    "words are counted: a full stop is a token, too. The attention mask counts tokens."
)
def _by_words(model, tokenizer, prompts, layer):
    stream, _ = _padded_stream(model, tokenizer, prompts, layer)
    return stream[torch.arange(len(prompts)), [len(prompt.split()) - 1 for prompt in prompts]]


@padded_ends.mistake("one token too early: a prompt of n tokens ends in column n - 1.")
def _one_early(model, tokenizer, prompts, layer):
    stream, mask = _padded_stream(model, tokenizer, prompts, layer)
    return stream[torch.arange(len(prompts)), last_token(mask) - 1]


# -- 2.5 · Harmless pads

harmless = Explanation(
    "2.5",
    minutes=5,
    difficulty=3,
    why="what a token may look at, and where it stands, decide what its vector can hold.",
    hints=(
        "Which tokens can a token take something in from? On which side of it do the pads stand?",
        "GPT-2 adds a vector for the position to each token. Which position does the first real "
        "token have if two pads stand before it?",
    ),
    answer="A token takes in only what stands before it. Pads on the right stand behind every "
    "real token, so none of them can be seen. And each real token keeps its number of position, "
    "counted from the left. With pads on the left both change: the pads stand before the text, so "
    "the attention mask has to hide them, and the text begins at a later position, unless the "
    "position ids are put right.",
    points={
        "a": "a token sees only those before it, and pads on the right come after all real ones",
        "b": "on the right, the positions of the real tokens stay the same; on the left they shift",
        "c": "on the left the attention mask has to hide the pads",
    },
)
