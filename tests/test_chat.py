"""Dialogues as prompts: on tokenizers with and without BOS, and templates of several kinds."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from helpers.activations import residual_stream, typical_norm
from helpers.chat import answer_starts, template_text
from helpers.checks import Dialogue
from helpers.concepts import SENTIMENT
from helpers.directions import find_vectors
from helpers.evaluation import (
    balanced_prompts,
    judge,
    log_odds,
    next_token_logits,
    perplexity,
    price,
)
from helpers.explorer import Explorer
from helpers.generation import SteeredText, generate
from helpers.models import POCKET, SteeringError, encode, load_model
from helpers.pairs import check_pairs
from helpers.steering import steer
from helpers.sweeps import sweep, sweep_damage, sweep_texts
from helpers.views import Setting, completions, compute, write_code, write_texts
from real_model import LACKING
from tiny_models import (
    block_list,
    logits_of,
    make_vector,
    new_model,
    plain_push,
    tiny_model,
)

BOS = "<|endoftext|>"
CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + BOS + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
).replace("BOS", f"'{BOS}'")
TEMPLATES = {
    "as it is": CHATML,
    # Llama 3 trims contents, and an empty line stands before them.
    "trimmed": CHATML.replace("'|>\n' + m['content']", "'|>\n\n' + (m['content'] | trim)"),
    # Llama 2 has no header before an answer, only a space, which its first token takes in.
    "space": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ ' ' + m['content'] + ' ' + eos_token }}{% else %}{{ '[INST] ' + m['content'] + "
        "' [/INST]' }}{% endif %}{% endfor %}"
    ),
    # Thoughts stand in the last answer alone, and in no header.
    "thinking": CHATML.replace("m['content']", "('<t>\n\n' if loop.last else '') + m['content']"),
}
FAMILIES = ["gpt2", "llama"]
FORCE, V = 3.0, make_vector()


def user(content):
    return {"role": "user", "content": content}


def answer(content):
    return {"role": "assistant", "content": content}


OPEN = [
    [user("How was it?")],
    [{"role": "system", "content": "Be kind."}, user("Now?"), answer("No."), user("Why?")],
]
BEGUN = [
    [user("How was the long film?"), answer("The film was")],
    [user("Hi"), answer("🙂 We liked it a lot and")],
    [user("It was"), answer("It was"), user("It was"), answer("It was")],
    [user("A list:"), answer("\n- one\n- ")],
    [user("Say it."), answer("  two spaces first")],
]
MIXED = [*OPEN, "The soup was", *BEGUN]
ASKED = [(BEGUN[0], OPEN[0]), ([user("Love?")], [user("Hate?")]), ("So warm", OPEN[1])]


@pytest.fixture(params=["without BOS", "with BOS"])
def tok(request):
    """A tokenizer of its own, which has the template ``as it is``."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    if request.param == "with BOS":
        own = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
        tokenizer.backend_tokenizer.post_processor = own
    assert (tokenizer("a")["input_ids"][0] == 0) == (request.param == "with BOS")
    tokenizer.chat_template = CHATML
    return tokenizer


def template_ids(tokenizer, messages):
    """The tokens of a dialogue, asked for in the plainest way."""
    begun = messages[-1]["role"] == "assistant"
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=not begun, continue_final_message=begun
    )["input_ids"]


def plain_ids(tokenizer, prompt):
    return (
        tokenizer(prompt)["input_ids"]
        if isinstance(prompt, str)
        else template_ids(tokenizer, prompt)
    )


def start_of(tokenizer, messages):
    """The last place from which the tokens still hold the whole answer."""
    ids, end = template_ids(tokenizer, messages), messages[-1]["content"].strip()
    return max(i for i in range(len(ids)) if end in tokenizer.decode(ids[i:]))


# -- Tokens and logits


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dialogue_has_the_tokens_and_logits_of_its_template(tok, family, template):
    tok.chat_template, model = TEMPLATES[template], tiny_model(family)
    batch = encode(model, tok, MIXED)
    logits = next_token_logits(model, batch)
    for row, prompt in enumerate(MIXED):
        own = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        assert own == plain_ids(tok, prompt)
        if not isinstance(prompt, str):
            assert own[0] == 0 and own[1] != 0  # one BOS, which the template writes
        expected = logits_of(model, torch.tensor([own]))[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=0)
        alone = encode(model, tok, [prompt])["input_ids"]
        assert alone.tolist() == [own]


def test_a_text_in_the_form_of_a_template_gets_no_second_bos(tok):
    model = tiny_model("llama")
    for messages in OPEN:
        text = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert template_text(tok, messages) == template_text(tok, text) == text
        batch = encode(model, tok, [text, messages, "The soup was", f"The {BOS}", text[:-1]])
        rows = [
            row[mask.bool()].tolist()
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert rows[0] == rows[1]
        assert rows[2:4] == tok(["The soup was", f"The {BOS}"])["input_ids"]  # as ever
        assert rows[4][0] == 0 and rows[4][1] != 0
    twice = f"{BOS}{BOS}We"
    [ids] = encode(model, tok, [twice])["input_ids"].tolist()
    assert ids == tok(twice, add_special_tokens=False)["input_ids"]
    bits = perplexity(model, tok, ["We"], [f"{BOS} it"]).log2()
    whole = torch.tensor(
        [tok("We")["input_ids"] + [0] + tok(" it", add_special_tokens=False)["input_ids"]]
    )
    start, surprise = len(tok("We")["input_ids"]), -logits_of(model, whole)[0].log_softmax(1)
    expected = [surprise[i - 1, whole[0, i]] for i in range(start, whole.shape[1])]
    torch.testing.assert_close(bits[0], torch.stack(expected).mean() / torch.tensor(2.0).log())


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_starts_at_its_first_token(tok, template):
    tok.chat_template = TEMPLATES[template]
    starts = answer_starts(tok, BEGUN)
    assert starts == [start_of(tok, messages) for messages in BEGUN]
    assert [answer_starts(tok, [messages])[0] for messages in BEGUN] == starts
    for start, messages in zip(starts, BEGUN, strict=True):
        ids = template_ids(tok, messages)
        assert tok.decode(ids[start:]).strip() == messages[-1]["content"].strip()


# -- Reading and pushing the answer


def into_next_block(model, run):
    """What block 2 is given while something runs, with the tokens of each pass: behind block 1."""
    seen, tokens = [], []
    handles = [
        block_list(model)[2].register_forward_pre_hook(
            lambda module, args: seen.append(args[0].clone())
        ),
        model.register_forward_pre_hook(
            lambda module, args, kwargs: tokens.append(kwargs["input_ids"]), with_kwargs=True
        ),
    ]
    result = run()
    for handle in handles:
        handle.remove()
    return seen, tokens, result


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_push_reaches_the_answer_and_nothing_else(tok, family, template, side):
    tok.chat_template, model = TEMPLATES[template], new_model(family)
    batch, starts = encode(model, tok, BEGUN, padding_side=side), answer_starts(tok, BEGUN)
    [before], _, _ = into_next_block(model, lambda: model(**batch))
    with steer(model, V, FORCE, positions="generated", prompt_lengths=starts):
        [after], _, _ = into_next_block(model, lambda: model(**batch))
    for row, start in enumerate(starts):
        real = batch["attention_mask"][row].bool()
        one, other = before[row, real], after[row, real]
        assert 0 < start < len(one)
        assert other[:start].equal(one[:start])
        assert other[start:].equal(one[start:] + FORCE * V.direction)
        assert after[row, ~real].equal(before[row, ~real])


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_pushes_the_answer_from_its_first_token(tok, family, cache, positions):
    model, prompts = new_model(family), [*BEGUN, OPEN[1], "The soup was"]
    model.generation_config.use_cache = cache
    width, n = encode(model, tok, prompts)["input_ids"].shape[1], len(prompts)
    options = {"positions": positions, "max_new_tokens": 5, "temperature": 0}
    seen, tokens, texts = into_next_block(
        model, lambda: generate(model, tok, prompts, V, FORCE, **options)
    )
    seen, tokens = (torch.cat(x, 1) if cache else x[-1] for x in (seen, tokens))
    assert tokens.shape == (2 * n, width + 4)
    for row, prompt in enumerate(prompts):
        own = plain_ids(tok, prompt)
        begun = prompt in BEGUN
        start = start_of(tok, prompt) if begun else len(own)
        columns = {"all": slice(None), "prompt": slice(start), "generated": slice(start, None)}
        [base] = [i for i in range(n) if tokens[i, width - len(own) : width].tolist() == own]
        for place, force in [(base, 0.0), (n + row, FORCE)]:
            ids = tokens[place, width - len(own) :]
            assert ids[: len(own)].tolist() == own
            delta = force * V.direction
            with plain_push(model, V.layer, delta, columns[positions]):
                [stream], _, logits = into_next_block(model, lambda: logits_of(model, ids[None]))  # noqa: B023
            real = seen[place, width - len(own) :]
            torch.testing.assert_close(real, stream[0], atol=1e-4, rtol=0)
            assert logits[0, len(own) - 1 : -1].argmax(-1).equal(ids[len(own) :])
        changed = (seen[n + row] - seen[base])[width - len(own) : width]
        expected = torch.zeros_like(changed)
        expected[columns[positions]] = FORCE * V.direction
        torch.testing.assert_close(changed, expected, atol=1e-4, rtol=0)
    for prompt, text in zip(prompts, texts, strict=True):
        assert generate(model, tok, [prompt], V, FORCE, **options)[0] == text


def test_the_stream_of_an_answer(tok):
    model = tiny_model("llama")
    mean = residual_stream(model, tok, BEGUN, "answer")
    last = residual_stream(model, tok, BEGUN)
    assert residual_stream(model, tok, BEGUN, "answer", batch_tokens=1).allclose(mean, atol=1e-5)
    for row, messages in enumerate(BEGUN):
        ids = torch.tensor([template_ids(tok, messages)])
        with torch.no_grad():
            stream = model(ids, output_hidden_states=True).hidden_states[1:-1]
        for layer, hidden in enumerate(stream):
            own = hidden[0, start_of(tok, messages) :]
            torch.testing.assert_close(mean[layer, row], own.mean(0), atol=1e-5, rtol=0)
            torch.testing.assert_close(last[layer, row], own[-1], atol=1e-5, rtol=0)
    pairs = list(zip(BEGUN[:2], BEGUN[2:4], strict=True))
    found = find_vectors(model, tok, pairs, position="answer")
    raw = mean[1, :2].mean(0) - mean[1, 2:4].mean(0)
    torch.testing.assert_close(found[1].raw, raw, atol=1e-5, rtol=0)


# -- What else takes prompts


def test_numbers_of_dialogues_are_those_of_their_texts_templated_by_hand(tok):
    model, by_hand = tiny_model(), []
    for prompt in MIXED:
        begun = not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"
        options = {"add_generation_prompt": not begun, "continue_final_message": begun}
        hand = (
            prompt
            if isinstance(prompt, str)
            else tok.apply_chat_template(prompt, tokenize=False, **options)
        )
        by_hand.append(hand)
    for function in (
        lambda x: log_odds(model, tok, x, V, FORCE),
        lambda x: sweep(model, tok, x, V, [1.0]).effect,
        lambda x: sweep_damage(model, tok, x, V, [1.0]),
        lambda x: typical_norm(model, tok, prompts=x),
        lambda x: perplexity(model, tok, x, [" it is so"] * len(x)),
        lambda x: residual_stream(model, tok, x, "mean"),
        lambda x: find_vectors(model, tok, list(zip(x[:3], x[3:6], strict=True)))[1].raw,
    ):
        torch.testing.assert_close(function(MIXED), function(by_hand), atol=1e-4, rtol=1e-5)


def test_pairs_of_dialogues(tok):
    report = check_pairs(tok, ASKED)
    assert report[0].positive_tokens == [tok.decode([i]) for i in template_ids(tok, BEGUN[0])]
    assert report[2].positive_tokens == [tok.decode([i]) for i in tok("So warm")["input_ids"]]
    assert "user: Love?" in str(report) and "user: Hate?" in report._repr_html_()
    same = [user("We like it")]
    for function in (check_pairs, lambda tok, pairs: find_vectors(tiny_model(), tok, pairs)):
        with pytest.raises(SteeringError, match="there is no contrast"):
            function(tok, [(same, list(same))])
        with pytest.raises(SteeringError, match="is a chat message .*list of dialogues"):
            function(tok, [(user("a"), user("b"))])


def test_texts_prices_and_tables_of_dialogues(tok):
    model, prompts = tiny_model(), [OPEN[0], BEGUN[0], "The soup was"]
    options = {"max_new_tokens": 6, "seed": 3}
    written = generate(model, tok, prompts, V, FORCE, **options)
    assert [text.prompt for text in written] == [Dialogue(OPEN[0]), Dialogue(BEGUN[0]), prompts[2]]
    assert written[1].prompt.messages == (
        ("user", "How was the long film?"),
        ("assistant", "The film was"),
    )
    assert (
        "user: How was it?" in str(written) and "assistant: The film was" in written._repr_html_()
    )
    bits = price(model, tok, written)
    by_hand = [
        perplexity(model, tok, prompts, [text[i] for text in written]).log2() for i in (1, 2)
    ]
    torch.testing.assert_close(bits, by_hand[1] - by_hand[0], atol=1e-5, rtol=0)
    raw = [SteeredText(p, *text[1:]) for p, text in zip(prompts, written, strict=True)]
    assert price(model, tok, raw).equal(bits)
    swept = sweep_texts(model, tok, prompts, [V, -V], [FORCE], **options)
    assert swept.texts[0][0] == written
    torch.testing.assert_close(swept.price[0, 0], bits, atol=1e-5, rtol=0)
    table = completions(model, tok, OPEN[0], [V] * 3, [1], [0.1], [5.0] * 3)
    assert "user: How was it? …" in str(table)


def test_a_dialogue_and_the_text_that_it_shows_are_two_prompts(tok):
    model, shown = tiny_model(), str(Dialogue(OPEN[0]))
    assert shown == "user: How was it?" and type(shown) is str
    both = [OPEN[0], shown]
    written = generate(model, tok, both, V, FORCE, temperature=0)
    assert written[0].base != written[1].base
    for prompt, text in zip(both, written, strict=True):
        assert generate(model, tok, [prompt], V, FORCE, temperature=0)[0] == text
    same = [SteeredText(prompt, " it", " so bad") for prompt in both]
    one, other = price(model, tok, same)
    assert one != other


def test_a_concept_of_dialogues(tok):
    pairs, prompts = [*ASKED[:2]], [[user(f"How is {x}?")] for x in "abcdef"]
    concept = replace(SENTIMENT, pairs=pairs, dev_prompts=prompts[:3], test_prompts=prompts[3:])
    assert all(isinstance(x, Dialogue) for x in concept.dev_prompts + concept.pair_prompts)
    assert balanced_prompts(tiny_model(), tok, concept, 1)[0] in concept.dev_prompts
    assert typical_norm(tiny_model(), tok, concept).equal(
        typical_norm(tiny_model(), tok, prompts=concept.pair_prompts)
    )
    with pytest.raises(SteeringError, match="both to choose and to report"):
        replace(concept, test_prompts=prompts[:1])
    with pytest.raises(SteeringError, match="questions of 'sentiment': The question is no text"):
        replace(concept, test_questions=[prompts[0]])
    with pytest.raises(SteeringError, match="cannot be joined to a text"):
        concept.positive_requests[0] + concept.dev_prompts[0]
    explorer = Explorer(tiny_model(), tok, {"a": [V] * 3}, concept)
    for shown in ("user: How is b?", "The soup was"):
        explorer.prompt.value = shown  # as the browser sends it
        assert isinstance(explorer.setting.prompt, Dialogue) == (shown != "The soup was")
        assert explorer.setting.prompt in [*concept.dev_prompts, shown]


def test_a_setting_of_a_dialogue_and_its_code(tok):
    model, setting = tiny_model(), Setting(OPEN[0], "a", 1, FORCE, 4, 0)
    result = compute(model, tok, V, [5.0] * 3, setting)
    [text] = generate(model, tok, [OPEN[0]], V, FORCE, max_new_tokens=4)
    assert result.texts == text[1:] and "user: How was it?" in write_texts(result)
    given = {"generate": generate, "model": model, "tokenizer": tok, "vectors": {"a": V}}
    assert eval(write_code(result.setting, by_layer=False), given) == [text]


# -- The class


def test_a_dialogue_is_a_frozen_text():
    messages = copy.deepcopy(OPEN[1])
    one, other = Dialogue(messages), Dialogue(tuple(OPEN[1]))
    assert one == other and not one != other and len({one, other}) == 1
    assert one != str(one) and str(one) != one and not one == str(one)
    joined = [user("a / assistant: b")], [user("a"), answer("b")]
    assert len({*map(Dialogue, joined)}) == 2 and len({*map(str, map(Dialogue, joined))}) == 1
    messages[1]["content"] = "changed"
    assert one == other and copy.deepcopy(one) == one and eval(repr(one)) == OPEN[1]
    assert one.answer is None and Dialogue(BEGUN[0]).answer == "The film was"
    for join in (lambda: one + "a", lambda: "a" + one, lambda: one + one):
        with pytest.raises(SteeringError, match="change one of its messages"):
            join()


# -- What is refused

WRONG = [
    ([], "is no dialogue .*give a message of the user"),
    ([{"role": "user"}], "message 1 must have a role, a content and nothing else"),
    ([user("a"), {"content": "b"}], "message 2 must have a role, a content and nothing else"),
    ([{**user("a"), "name": "b"}], "a content and nothing else"),
    ([user("a"), "b"], "message 2 must have"),
    ([{"role": "usr", "content": "a"}], "role of message 1 must be one of system, user, assistant"),
    ([{"role": ["user"], "content": "a"}], "role of message 1 must be one of"),
    ([{"role": "user", "content": None}], "content of message 1 must be a text"),
    ([user([{"type": "text", "text": "a"}])], "content of message 1 must be a text"),
    ([user("a"), answer(" ")], "last message is empty"),
    ([user("")], "last message is empty"),
    ([answer("a")], "give a message of the user"),
    ([{"role": "system", "content": "a"}], "give a message of the user"),
    ([user("\ud800")], "holds half a character"),
]


@pytest.mark.parametrize(("messages", "message"), WRONG)
def test_messages_out_of_order_are_named(tok, messages, message):
    model = tiny_model()
    for function in (
        lambda x: encode(model, tok, [OPEN[0], x]),
        lambda x: generate(model, tok, [x], V, FORCE),
        lambda x: log_odds(model, tok, [x]),
        lambda x: check_pairs(tok, [(x, "We")]),
        lambda x: completions(model, tok, x, [V] * 3, [1], [0.1], [5.0] * 3),
        lambda x: replace(SENTIMENT, dev_prompts=[x]),
        lambda x: price(model, tok, [SteeredText(x, "a", "b")]),
    ):
        with pytest.raises(SteeringError, match=message):
            function(messages)
    with pytest.raises(SteeringError, match="Prompt 2 of 2"):
        encode(model, tok, [OPEN[0], messages])
    if "half a character" not in message:
        with pytest.raises(SteeringError, match=message):
            Dialogue(messages)


def test_where_no_dialogue_belongs(tok):
    model = tiny_model()
    for given in (OPEN[0], tuple(BEGUN[0])):  # one dialogue instead of a list
        for function in (encode, residual_stream, log_odds):
            with pytest.raises(SteeringError, match=r"is a chat message .*list of dialogues, \[\["):
                function(model, tok, given)
    with pytest.raises(SteeringError, match=r"one string: use \[\[\{'role': 'us"):
        encode(model, tok, Dialogue(OPEN[0]))
    for given in (OPEN[0], Dialogue(OPEN[0])):
        with pytest.raises(SteeringError, match="Text 2 of 2 is (no text|a dialogue)"):
            judge(["a", given])
        with pytest.raises(SteeringError, match="The continuation is (no text|a dialogue)"):
            perplexity(model, tok, ["a"], [given])


def test_a_text_or_an_open_dialogue_has_no_answer(tok):
    model = tiny_model()
    for given in ("The soup was", OPEN[0]):
        for function in (
            lambda x: answer_starts(tok, x),
            lambda x: residual_stream(model, tok, x, "answer"),
            lambda x: find_vectors(model, tok, [x, ("a", "b")], position="answer"),
        ):
            with pytest.raises(SteeringError, match="has no answer: .*last one is the assistant's"):
                function([BEGUN[0], given])


def test_templates_that_cannot_be_used_say_why(tok):
    model = tiny_model()
    tok.chat_template = CHATML.replace(
        "{{ bos", "{{ raise_exception('roles must alternate') }}{{ bos"
    )
    with pytest.raises(
        SteeringError, match="refuses the dialogue 'user: How .*: roles must alternate"
    ):
        encode(model, tok, OPEN)
    tok.chat_template = CHATML.replace("+ m['content'] +", "+ (m['content'] | upper) +")
    for function in (answer_starts, lambda tok, x: encode(model, tok, x)):
        with pytest.raises(SteeringError, match="refuses .*final message does not appear"):
            function(tok, [BEGUN[0]])
    tok.chat_template = CHATML.replace("m['content']", "(m['content'] | replace('x', 'y'))")
    tok.chat_template = tok.chat_template.replace(
        "m['role'] +", "m['role'] + messages[0]['content'] +"
    )
    with pytest.raises(SteeringError, match="template changes the answer 'x'"):
        answer_starts(tok, [[user("x"), answer("x")]])
    tok.chat_template = None
    for function in (answer_starts, lambda tok, x: encode(model, tok, x)):
        with pytest.raises(SteeringError, match="has no chat template: take a model that was"):
            function(tok, BEGUN)
    assert encode(model, tok, ["The soup was"])["input_ids"].tolist() == [
        tok("The soup was")["input_ids"]
    ]


def test_a_slow_tokenizer_cannot_tell_where_an_answer_starts(tok, monkeypatch):
    monkeypatch.setattr(type(tok), "is_fast", False)
    with pytest.raises(SteeringError, match="Only a fast tokenizer"):
        answer_starts(tok, BEGUN)


def test_a_dialogue_longer_than_the_context(tok):
    model, long = tiny_model(), [user("word " * 60)]
    n = len(template_ids(tok, long))
    with pytest.raises(SteeringError, match=f"'user: word .* has {n} tokens, but .* at most 64"):
        encode(model, tok, [OPEN[0], long])
    with pytest.raises(
        SteeringError, match="tokens plus 60 new ones, but tiny-gpt2 reads at most 64"
    ):
        generate(model, tok, [OPEN[0]], V, FORCE, max_new_tokens=60)
    with pytest.raises(SteeringError, match="characters, but tiny-gpt2 reads at most 64"):
        encode(model, tok, [[user("word " * 4000)]])


# -- The real model


@pytest.mark.skipif(bool(LACKING), reason=LACKING)
def test_the_real_model_reads_and_answers_dialogues():
    model, tokenizer = load_model("smollm2")
    prompts = [[user("How was your day?")], [user("How was your day?"), answer("My day was")]]
    batch = encode(model, tokenizer, prompts)
    logits = next_token_logits(model, batch)
    for row, messages in enumerate(prompts):
        ids = template_ids(tokenizer, messages)
        torch.testing.assert_close(
            logits[row], logits_of(model, torch.tensor([ids]))[0, -1], atol=1e-3, rtol=0
        )
    [start] = answer_starts(tokenizer, prompts[1:])
    assert start == len(template_ids(tokenizer, prompts[0]))
    texts = generate(model, tokenizer, prompts, make_vector(width=576), 0.0, temperature=0)
    assert all(text.base == text.steered and text.base.strip() for text in texts)
