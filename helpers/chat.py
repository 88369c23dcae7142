"""Dialogues in the form in which a model was trained on them, its chat template (notebook 09).

A dialogue is a list of messages, such as ``[{"role": "user", "content": "How was it?"}]``, and
may stand wherever a prompt may. If its last message is the assistant's, that answer has begun and
the model goes on with it.
"""

from .checks import Dialogue, SteeringError, checked


@checked
def template_text(tokenizer, prompt) -> str:
    """A prompt as the model reads it: of a dialogue the template's text, special tokens included.

    It ends where the model goes on: with the header of an answer, or what there is of the answer.
    Raises SteeringError for a tokenizer without a template, or one that refuses the dialogue.
    """
    if not isinstance(prompt, Dialogue):
        return prompt
    if not getattr(tokenizer, "chat_template", None):
        raise SteeringError(
            "This tokenizer has no chat template: take a model that was trained on dialogues, or "
            "write the prompt as a text."
        )
    begun = prompt.answer is not None
    options = {"add_generation_prompt": not begun, "continue_final_message": begun}
    try:
        return tokenizer.apply_chat_template(prompt.dicts, tokenize=False, **options)
    except Exception as error:  # a template raises whatever it likes
        message = f"The chat template refuses the dialogue {prompt[:60]!r}…: {error}"
        raise SteeringError(message) from error


def tokens_of(tokenizer, texts, **options) -> list[list[int]]:
    """The tokens of each text, with ``options`` of the tokenizer, and of each dialogue.

    What begins with the text of the tokenizer's first token (BOS) gets no second one.
    """
    plain = [text for text in texts if not isinstance(text, Dialogue)]
    rows = tokenizer(plain, **options)["input_ids"] if plain else []
    bos = getattr(tokenizer, "bos_token", None)
    if bos and any(text.startswith(bos) for text in plain):  # written by hand in a template's form
        doubled = tokenizer("", **options)["input_ids"][:1] == [tokenizer.bos_token_id]
        pairs = zip(plain, rows, strict=True)
        rows = [row[doubled and text.startswith(bos) :] for text, row in pairs]
    rows = iter(rows)
    return [
        _read(tokenizer, template_text(tokenizer, text))["input_ids"]
        if isinstance(text, Dialogue)
        else next(rows)
        for text in texts
    ]


def _read(tokenizer, text):
    """What a tokenizer makes of a text that has all of its special tokens."""
    return tokenizer(text, add_special_tokens=False)


@checked
def answer_starts(tokenizer, prompts) -> list[int]:
    """How many tokens stand before the answer with which each dialogue ends.

    They are the ``prompt_lengths`` of ``steer``. The answer starts with the token that holds its
    first character but spaces. Raises SteeringError for a prompt whose last message is not the
    assistant's, and for a tokenizer that does not know which characters its tokens hold.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise SteeringError("Only a fast tokenizer tells where an answer starts: load that one.")
    starts = []
    for prompt in prompts:
        if getattr(prompt, "answer", None) is None:
            raise SteeringError(
                f"The prompt {prompt[:60]!r}… has no answer: give a list of messages whose last "
                "one is the assistant's."
            )
        text, answer = template_text(tokenizer, prompt), prompt.answer.strip()
        first = len(text.rstrip()) - len(answer)  # it ends with the answer, but for spaces
        if text[first:].rstrip() != answer:
            raise SteeringError(f"The chat template changes the answer {answer[:60]!r}….")
        tokens = map(_read(tokenizer, text).char_to_token, range(first, len(text)))
        starts.append(next(token for token in tokens if token is not None))
    return starts
