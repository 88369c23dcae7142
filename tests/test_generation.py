import math

import pytest
import torch

from helpers.generation import SteeredText, SteeredTexts, generate
from helpers.models import SteeringError, blocks
from tiny_models import (
    FAMILIES,
    PROMPTS,
    logits_of,
    make_vector,
    new_model,
    no_hook_left,
    plain_push,
    tiny_model,
    token_ids,
    tokenizer,
)

FORCE = 3.0


def texts(prompts, force=FORCE, vector=None, **kwargs):
    vector = make_vector() if vector is None else vector
    kwargs = {"max_new_tokens": 8, **kwargs}
    with no_hook_left(tiny_model()):
        return generate(tiny_model(), tokenizer(), prompts, vector, force, **kwargs)


def test_same_seed_same_text_and_another_seed_another():
    first, again, other = (texts(PROMPTS, seed=seed) for seed in (1, 1, 2))
    assert first == again
    for mine, others in zip(first, other, strict=True):
        assert mine.base != others.base and mine.steered != others.steered
        assert mine.base != mine.steered
    assert [text.prompt for text in first] == PROMPTS


def test_generating_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    texts(PROMPTS)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_force_zero_gives_the_same_text_twice(positions):
    for text in texts(PROMPTS, 0.0, positions=positions):
        assert text.base == text.steered


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_mistake_08_a_text_does_not_depend_on_the_rest_of_the_batch(positions, temperature):
    kwargs = {"positions": positions, "temperature": temperature, "seed": 3}
    together = texts(PROMPTS, **kwargs)
    assert list(reversed(texts(PROMPTS[::-1], **kwargs))) == together
    assert [texts([prompt], **kwargs)[0] for prompt in PROMPTS] == together


def test_temperature_zero_is_greedy_and_ignores_the_seed():
    first, second = (texts(PROMPTS, temperature=0, seed=seed) for seed in (1, 2))
    assert first == second
    for text in first:
        ids = token_ids(text.prompt)
        for push in (0, FORCE):
            for _ in range(8):
                with plain_push(tiny_model(), 1, push * make_vector().direction):
                    logits = logits_of(tiny_model(), ids)
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            new = tokenizer().decode(ids[0, -8:], skip_special_tokens=True)
            assert new == (text.steered if push else text.base)
            ids = token_ids(text.prompt)


def test_top_k_of_one_is_greedy():
    assert texts(PROMPTS, top_k=1, seed=5) == texts(PROMPTS, temperature=0)


def test_samples_follow_the_model_s_probabilities():
    model, prompt, n = tiny_model(), PROMPTS[0], 400
    logits = logits_of(model, token_ids(prompt))[0, -1]
    likeliest = logits.topk(3)
    expected = likeliest.values.softmax(0)
    drawn = generate(
        model, tokenizer(), [prompt] * n, make_vector(), 0.0,
        max_new_tokens=1, temperature=1.0, top_k=3, seed=list(range(n)),
    )  # fmt: skip
    words = [tokenizer().decode([token]) for token in likeliest.indices]
    assert {text.base for text in drawn} <= set(words)
    for word, share in zip(words, expected.tolist(), strict=True):
        found = sum(text.base == word for text in drawn) / n
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_one_seed_for_each_prompt():
    same_prompt = [PROMPTS[0]] * 3
    several = texts(same_prompt, seed=[1, 2, 1])
    assert several[0] == several[2] != several[1]
    assert several[1] == texts([PROMPTS[0]], seed=2)[0]
    with pytest.raises(SteeringError, match="2 seeds were given for 3 prompts"):
        texts(PROMPTS, seed=[1, 2])


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_rows_of_one_prompt_and_seed_share_their_base(positions, temperature):
    model, sizes = new_model(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    soup, film, _ = PROMPTS
    prompts, seeds = [soup, film, soup, soup, film], [1, 1, 1, 2, 1]
    forces = [5 * FORCE, -FORCE, -5 * FORCE, FORCE, 0.0]
    kwargs = {"positions": positions, "temperature": temperature}
    found = generate(
        model, tokenizer(), prompts, make_vector(), forces, seed=seeds, max_new_tokens=8, **kwargs
    )
    assert set(sizes) == {3 + 4}  # soup with either seed, film, and every text that is pushed
    alone = [
        texts([prompt], force, seed=seed, **kwargs)[0]
        for prompt, force, seed in zip(prompts, forces, seeds, strict=True)
    ]
    assert found == alone
    assert found[0].base == found[2].base != found[0].steered != found[2].steered
    assert found[1].base == found[4].base == found[4].steered
    if temperature:
        assert found[3].base != found[0].base


def test_one_force_for_each_prompt():
    forces = [0.0, FORCE, -FORCE]
    together = texts(PROMPTS, torch.tensor(forces))
    assert together[0].base == together[0].steered
    assert [texts([p], f)[0] for p, f in zip(PROMPTS, forces, strict=True)] == together
    with pytest.raises(SteeringError, match=r"shape \[2\] do not fit 1 vector\(s\) and 3 prompts"):
        texts(PROMPTS, [1.0, 2.0])


def test_several_vectors_push_together():
    v, w = make_vector(layer=0), make_vector(layer=0, seed=1)
    both = v.direction + w.direction
    combined = type(v).from_raw(both, layer=0, method="", model_name="", n_pairs=0)
    assert texts(PROMPTS, FORCE, [v, w]) == texts(PROMPTS, FORCE * combined.raw_norm, combined)
    assert texts(PROMPTS, [FORCE, 0.0], [v, w]) == texts(PROMPTS, FORCE, v)


def test_negative_force_is_the_opposite_vector():
    assert texts(PROMPTS, -FORCE) == texts(PROMPTS, FORCE, -make_vector())
    assert texts(PROMPTS, -FORCE) != texts(PROMPTS, FORCE)


def test_a_text_ends_where_the_model_ends_it(monkeypatch):
    greedy = texts(PROMPTS, temperature=0)
    first, second = (tokenizer()(text.base)["input_ids"] for text in greedy[:2])
    end = next(i for i, token in enumerate(first) if i > 0 and token not in second)
    monkeypatch.setattr(tiny_model().generation_config, "eos_token_id", first[end])
    ended = texts(PROMPTS, temperature=0)
    assert ended[0].base == tokenizer().decode(first[: end + 1])  # and no padding behind
    assert ended[1].base == greedy[1].base


def test_the_list_shows_base_and_steered_as_text_and_as_a_table():
    shown = SteeredTexts([SteeredText("1 < 2 and\n2", " is so.", " is <b>.")] * 2)
    lines = ["1 < 2 and 2", "   unsteered  is so.", "   steered    is <b>."]
    assert str(shown).splitlines() == lines * 2
    html = shown._repr_html_()
    assert html.count("<tr>") == 3 and "<b>" not in html
    places = [html.index(entry) for entry in ("1 &lt; 2", " is so.", " is &lt;b&gt;.")]
    assert places == sorted(places)
    assert type(texts(PROMPTS[:1])) is SteeredTexts


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_mistake_06_no_hook_survives_an_interrupted_generation(error):
    model, calls = new_model(), []

    def interrupt(module, args, output):
        calls.append(1)
        if len(calls) == 3:
            raise error

    blocks(model)[-1].register_forward_hook(interrupt)
    with no_hook_left(model), pytest.raises(error):
        generate(model, tokenizer(), PROMPTS, make_vector(), FORCE)
    assert len(calls) == 3


class Stop(Exception):
    pass


@pytest.mark.parametrize("seed", [3, [1, 1, 2]])
def test_a_watcher_sees_the_texts_grow_to_the_result(seed):
    seen = []
    prompts = [PROMPTS[0], *PROMPTS[:2]]
    result = texts(prompts, seed=seed, watch=seen.append)
    assert result == texts(prompts, seed=seed)
    assert len(seen) == 8 and seen[-1] == result and type(seen[0]) is SteeredTexts
    for shorter, longer in zip(seen, seen[1:], strict=False):
        for before, after in zip(shorter, longer, strict=True):
            assert before.prompt == after.prompt and before != after
            assert after.base.startswith(before.base)
            assert after.steered.startswith(before.steered)


def test_an_ended_text_no_longer_grows_before_a_watcher(monkeypatch):
    full = texts(PROMPTS, temperature=0)[0].base
    end = tokenizer()(full)["input_ids"][3]
    monkeypatch.setattr(tiny_model().generation_config, "eos_token_id", end)
    seen = []
    assert texts(PROMPTS, temperature=0, watch=seen.append) == seen[-1]
    assert len(tokenizer()(seen[-1][0].base)["input_ids"]) <= 4


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("last", [1, 4])
def test_a_watcher_s_error_ends_the_generation_after_the_token(error, last):
    model, passes, seen = new_model(), [], []
    model.register_forward_pre_hook(lambda module, args: passes.append(1))

    def watch(texts):
        seen.append(texts)
        if len(seen) == last:
            raise error

    with no_hook_left(model), pytest.raises(error):
        generate(model, tokenizer(), PROMPTS, make_vector(), FORCE, watch=watch)
    assert len(passes) == len(seen) == last


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ("one string", {}, r"got one string: use \['one string'\]"),
        ([], {}, "list of prompts is empty"),
        (["The soup", ""], {}, "Prompt 2 of 2 is empty"),
        (["word " * 60], {}, "tokens plus 8 new ones, but tiny-gpt2 reads at most 64"),
        (PROMPTS, {"force": math.nan}, "force must be a finite number"),
        (PROMPTS, {"positions": "last"}, "Unknown positions 'last'"),
        (PROMPTS, {"watch": 3}, "watch must be a function, got 3"),
        (PROMPTS, {"vector": []}, "No vector"),
        (PROMPTS, {"layer": 3}, "has 3 layers"),
        (PROMPTS, {"vector": make_vector(width=16)}, r"made on 'tiny-gpt2' \(width 16\)"),
    ],
)
def test_unusable_input_of_generate(prompts, change, message):
    with pytest.raises(SteeringError, match=message):
        texts(prompts, **change)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_generates(family):
    model = tiny_model(family)
    kwargs = {"max_new_tokens": 4, "temperature": 0}
    with no_hook_left(model):
        together = generate(model, tokenizer(), PROMPTS, make_vector(), 30.0, **kwargs)
    for text in together:
        alone = generate(model, tokenizer(), [text.prompt], make_vector(), 30.0, **kwargs)
        assert alone[0] == text and text.base != text.steered
