"""Exercises of notebook 05, a number for steering."""

from math import e

import torch

from ..evaluation import word_sides
from .exercise import Exercise, Explanation

# -- 5.1 · The log-odds, from raw scores

leaning = Exercise(
    "5.1",
    "write",
    minutes=5,
    difficulty=1,
    given=("model", "tokenizer", "concept"),
    why="one number for two lists of words, needs no sampling, and one step means one ratio.",
    hints=(
        "First make chances of the scores. A list's chance is the chance that any of its words "
        "comes.",
        "`logits.softmax(-1)[good].sum()` is the chance of the one list.",
    ),
)


@leaning.tried_by
def _lean(my_log_odds, model, tokenizer, concept):
    batch = tokenizer(concept.dev_prompts[0], return_tensors="pt").to(model.device)
    good, bad = word_sides(tokenizer, concept)
    # Lists of two lengths, so that a sum and a mean differ.
    return my_log_odds(model(**batch).logits[0, -1].float().cpu(), good, bad[:-1])


@leaning.solution
def my_log_odds(logits, good, bad):
    chances = logits.softmax(-1)
    return (chances[good].sum() / chances[bad].sum()).log()


@leaning.mistake(
    "that is the difference of the two chances: a step from 0.001 to 0.01 hardly shows in it."
)
def _difference(logits, good, bad):
    chances = logits.softmax(-1)
    return chances[good].sum() - chances[bad].sum()


@leaning.mistake(
    "the logarithm comes too early: a mean of logarithms, or of raw scores, lets a word that "
    "hardly ever comes weigh as much as the likeliest."
)
def _mean_of_logs(logits, good, bad):
    return logits[good].mean() - logits[bad].mean()


@leaning.mistake("that is the ratio of the two chances: its logarithm is missing.")
def _ratio(logits, good, bad):
    return my_log_odds(logits, good, bad).exp()


@leaning.mistake(
    "logarithms are added up: that is as if all words of a list had to come at once. Any of them "
    "is enough, so add the chances."
)
def _sum_of_logs(logits, good, bad):
    logs = logits.log_softmax(-1)
    return logs[good].sum() - logs[bad].sum()


@leaning.mistake("the good words are held against all other words: hold them against the bad.")
def _against_all_others(logits, good, bad):
    chance = logits.softmax(-1)[good].sum()
    return (chance / (1 - chance)).log()


@leaning.mistake("only the likeliest word of each list is counted: all of them are meant.")
def _the_likeliest(logits, good, bad):
    return logits[good].max() - logits[bad].max()


@leaning.mistake("that is in bits, by log2: log-odds are in nats, by the natural logarithm.")
def _in_bits(logits, good, bad):
    return my_log_odds(logits, good, bad) / torch.tensor(2.0).log()


@leaning.mistake("the sign is turned: it is above 0 where the bad words lead.")
def _turned(logits, good, bad):
    return -my_log_odds(logits, good, bad)


@leaning.mistake(
    "that is a mean of chances: the two lists may have different lengths, and the chance of a "
    "list grows with each of its words."
)
def _mean_of_chances(logits, good, bad):
    chances = logits.softmax(-1)
    return (chances[good].mean() / chances[bad].mean()).log()


# -- 5.2 · Bits that are too few

surprised = Exercise(
    "5.2",
    "find the bug",
    minutes=5,
    difficulty=2,
    given=("model", "tokenizer", "prompt"),
    why="row i of the logits is about token i + 1; one row off, and any text gets a number.",
    hints=(
        "The chances in row i were computed when the model had read the tokens up to number i. "
        "Which token are they about?",
        "To judge token i the model must not have read it: which row is the last such one?",
    ),
)


def _read(model, tokenizer, text):
    """Logits [token, vocabulary] and tokens [token] of a text."""
    batch = tokenizer(text, return_tensors="pt").to(model.device)
    return model(**batch).logits[0].double().cpu(), batch["input_ids"][0].cpu()


@surprised.tried_by
def _bits(answer, model, tokenizer, prompt):
    logits, ids = _read(model, tokenizer, f"{prompt} {prompt}")
    return answer(logits, ids, len(ids) // 2)


@surprised.begins_with
def mean_bits(logits, ids, start):
    """Mean surprisal, in bits, of a text's tokens from number start on."""
    chances = logits.softmax(-1)  # [token, vocabulary]
    bits = [-chances[i, ids[i]].log2() for i in range(start, len(ids))]
    return sum(bits) / len(bits)


@surprised.solution
def mended_bits(logits, ids, start):
    chances = logits.softmax(-1)
    bits = [-chances[i - 1, ids[i]].log2() for i in range(start, len(ids))]
    return sum(bits) / len(bits)


@surprised.mistake("row and token fit now, but the first token that was written is left out.")
def _late(logits, ids, start):
    return mended_bits(logits, ids, start + 1)


@surprised.mistake("row and token fit now, but that is in nats: bits were asked for.")
def _nats(logits, ids, start):
    return mended_bits(logits, ids, start) / torch.tensor(e).log2()


@surprised.mistake(
    "row and token have moved together: token i is still looked up in row i, where the model has "
    "read it. Only one of the two may move."
)
def _both_moved(logits, ids, start):
    chances = logits.softmax(-1)
    bits = [-chances[i, ids[i]].log2() for i in range(start - 1, len(ids) - 1)]
    return sum(bits) / len(bits)


@surprised.mistake("row and token fit now, but the last token of the prompt is counted, too.")
def _early(logits, ids, start):
    return mended_bits(logits, ids, start - 1)


@surprised.mistake(
    "row and token fit now, but the sum is divided by the tokens of the whole text: divide by the "
    "number of those that are summed."
)
def _divided_by_all(logits, ids, start):
    return mended_bits(logits, ids, start) * (len(ids) - start) / len(ids)


@surprised.mistake("row and token fit now, but that is the sum: divide it by how many there are.")
def _not_divided_bits(logits, ids, start):
    return mended_bits(logits, ids, start) * (len(ids) - start)


@surprised.mistake("row and token fit now, but a surprisal is not negative: the minus is gone.")
def _negative(logits, ids, start):
    return -mended_bits(logits, ids, start)


@surprised.mistake("the tokens of the prompt are counted too, which nobody wrote for us to price.")
def _all_tokens(logits, ids, start):
    return mended_bits(logits, ids, 1)


@surprised.mistake(
    "now the row is a later one than the token's own: there the model has read even more of the "
    "text. Go the other way."
)
def _other_way(logits, ids, start):
    chances = logits.softmax(-1)
    bits = [-chances[i + 1, ids[i]].log2() for i in range(start, len(ids) - 1)]
    return sum(bits) / len(bits)


# -- 5.3 · Perplexity

perplexed = Exercise(
    "5.3",
    "write",
    minutes=5,
    difficulty=2,
    given=("model", "tokenizer", "prompt"),
    why="perplexity is as unsure as a fair die with so many faces.",
    hints=(
        "Try it on paper: the chances 0.5, 0.25 and 0.125 cost 1, 2 and 3 bits. The mean is 2 "
        "bits, and two bits are a choice among four.",
        "First the bits of each token, then their mean, then 2 to the power of it.",
    ),
)


@perplexed.tried_by
def _of_chances(answer, model, tokenizer, prompt):
    logits, ids = _read(model, tokenizer, f"{prompt} {prompt}")
    return answer(logits.softmax(-1)[range(len(ids) - 1), ids[1:]])


@perplexed.solution
def my_perplexity(chances):
    bits = [-chance.log2() for chance in chances]
    return 2 ** (sum(bits) / len(bits))


@perplexed.mistake(
    "that is made of the mean of the chances, in which one sure token hides an impossible one: "
    "surprises are to be averaged, not chances."
)
def _mean_chance(chances):
    return 1 / chances.mean()


@perplexed.mistake(
    "that is the number for the three chances on paper: let the function work it out from any."
)
def _on_paper(chances):
    return 4


@perplexed.mistake(
    "it divides by 3, as many as there are on paper: take the number of chances that it is given."
)
def _three(chances):
    return 2 ** (-chances.log2().sum() / 3)


@perplexed.mistake(
    "that is the mean of 1 / p, in which a single rare token outweighs all others: take the mean "
    "of the bits first."
)
def _mean_of_inverses(chances):
    return (1 / chances).mean()


@perplexed.mistake("it is below 1, and a die has one face at least: the minus is missing.")
def _no_minus(chances):
    return 1 / my_perplexity(chances)


@perplexed.mistake("two bases are mixed: 2 to the power of nats. Keep one base throughout.")
def _two_to_the_nats(chances):
    return 2 ** -chances.log().mean()


@perplexed.mistake("two bases are mixed: e to the power of bits. Keep one base throughout.")
def _e_to_the_bits(chances):
    return e ** -chances.log2().mean()


@perplexed.mistake("those are the bits per token: one step is left, from bits to faces of a die.")
def _bits_only(chances):
    return -chances.log2().mean()


@perplexed.mistake(
    "that is the surprise of the whole text, which grows with its length: the mean over its "
    "tokens is wanted."
)
def _not_divided(chances):
    return 1 / chances.prod()


# -- 5.4 · A rule as a function

ruled = Exercise(
    "5.4",
    "write",
    minutes=8,
    difficulty=3,
    why="a rule that is a function cannot be bent after the numbers were seen.",
    hints=(
        "Make the settings that pull too little impossible to win, but leave every setting in its "
        "place.",
        "`dearer.where(pull >= least, torch.inf)` has the shape of the table. `divmod(k, columns)` "
        "turns a place in the flattened table into row and column.",
    ),
)

_PULL = torch.tensor([[0.5, 1.0, 2.6], [1.5, 2.5, 4.0], [0.3, 2.1, 3.0], [0.1, 2.0, 2.4]])
_DEARER = torch.tensor([[-0.9, 0.4, 2.0], [0.3, 3.5, 3.0], [0.1, -0.7, 0.8], [0.0, 0.6, 0.5]])


@ruled.tried_by
def _places(answer):
    """Row and column in two tables, made so that every mistake ends elsewhere."""
    found = {least: answer(_PULL.clone(), _DEARER.clone(), least) for least in (2.0, 3.0, 4.0)}
    return {
        f"least = {least}": place.tolist() if hasattr(place, "tolist") else place
        for least, place in found.items()
    }


@ruled.solution
def my_rule(pull, dearer, least):
    cheapest = dearer.where(pull >= least, torch.inf).argmin().item()
    return divmod(cheapest, dearer.shape[1])


@ruled.mistake("that is the least damage of all settings: it pulls less than was asked for.")
def _cheapest(pull, dearer, least):
    return divmod(dearer.argmin().item(), dearer.shape[1])


@ruled.mistake("that is the largest pull, whatever it costs: the least damage is wanted.")
def _largest(pull, dearer, least):
    return divmod(pull.argmax().item(), pull.shape[1])


@ruled.mistake(
    "that is a place among the settings that were left, not in the table: what was filtered has "
    "lost its rows and columns."
)
def _place_in_the_rest(pull, dearer, least):
    return divmod(dearer[pull >= least].argmin().item(), dearer.shape[1])


@ruled.mistake("that setting just reaches the pull; another one reaches it, too, with less damage.")
def _smallest_pull(pull, dearer, least):
    return divmod(pull.where(pull >= least, torch.inf).argmin().item(), pull.shape[1])


@ruled.mistake("a setting that pulls just `least` is left out: at least that much was asked for.")
def _more_than(pull, dearer, least):
    cheapest = dearer.where(pull > least, torch.inf).argmin().item()
    return divmod(cheapest, dearer.shape[1])


@ruled.mistake("a setting that pulls too little is given the damage 0, and wins by it.")
def _zeros(pull, dearer, least):
    return divmod((dearer * (pull >= least)).argmin().item(), dearer.shape[1])


@ruled.mistake("the minus of a damage is ignored: a push that helps to read is the cheapest.")
def _whatever_the_sign(pull, dearer, least):
    return my_rule(pull, dearer.abs(), least)


@ruled.mistake("divided by the number of rows: a row is as long as there are columns.")
def _by_rows(pull, dearer, least):
    cheapest = dearer.where(pull >= least, torch.inf).argmin().item()
    return divmod(cheapest, dearer.shape[0])


@ruled.mistake("that is the place in the flattened table: the places of layer and size are wanted.")
def _flattened(pull, dearer, least):
    return dearer.where(pull >= least, torch.inf).argmin().item()


@ruled.mistake("that is the most damage among those that pull enough: the least is wanted.")
def _dearest(pull, dearer, least):
    return divmod(dearer.where(pull >= least, -torch.inf).argmax().item(), dearer.shape[1])


@ruled.mistake("row and column are swapped: the layer comes first.")
def _swapped(pull, dearer, least):
    return my_rule(pull, dearer, least)[::-1]


# -- 5.5 · The winner's luck

lucky = Explanation(
    "5.5",
    minutes=5,
    difficulty=2,
    why="a number that was picked for being good is too good, even if nobody cheats.",
    hints=(
        "Each pull is a mean over a few prompts: what it would be over all such prompts, plus "
        "some luck. Of layers that are equally good, which does the rule prefer?",
        "Thirty people toss a coin ten times. What do you expect of the best one next time?",
    ),
    answer="Each measured pull is what the layer does in general, plus the luck of these prompts. "
    "The rule takes the best of many, so it prefers layers with good luck. On other prompts the "
    "luck is drawn anew, and on average it is gone; so the pull gets smaller, though the prompts "
    "are no harder and nobody cheated.",
    points={
        "a": "a measured pull is partly luck: that of these prompts",
        "b": "picking the best of many layers prefers those with good luck",
        "c": "luck is drawn anew on other prompts; these need not be harder",
    },
)
