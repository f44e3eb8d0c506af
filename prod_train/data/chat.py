"""Chats: which text a model sees of a list of messages, and which of it are the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prod_decode.errors import ProdError, brief, reason

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a chat, as the model's template writes it.

    Attributes:
        number: of the message, from 1.
        prompt: all that stands before the answer, the names of special tokens among it.
        completion: the answer.
        end: id of the token that ends it.
    """

    number: int
    prompt: str
    completion: str
    end: int


def is_chat(record: Mapping[str, Any]) -> bool:
    """Whether a raw row has messages, or a prompt and completion that are such lists, as TRL takes them."""
    return record.get("messages") is not None or isinstance(record.get("prompt"), (list, tuple))


def turns(record: Mapping[str, Any], place: str, tokenizer: Any) -> Iterator[Turn]:
    """Every answer of the assistant, with what stands before it.

    Args:
        record: `messages`, a list of `role` and `content`; or `prompt` and `completion`, both such lists, of which the
            answers in the second count.
        place: for messages.
        tokenizer: with a chat template.

    Raises:
        ProdError: no template, no messages, none of the assistant, or a template that does not write an answer as it is
            given behind its own prompt.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ProdError(
            f"{place}: messages need a chat template, this model's tokenizer has none: take an instruct model, or give "
            "'prompt' and 'completion' as text"
        )
    messages, first = _messages(record, place)
    answers = [i for i in range(first, len(messages)) if messages[i]["role"] == "assistant"]
    if not answers:
        raise ProdError(f"{place}: expected a message of the assistant, got none: add one or drop the row")
    if answers[0] == 0:
        raise ProdError(
            f"{place}: expected a message of the user before the assistant's first, got none: add it or drop the row"
        )
    for at in answers:
        before = _rendered(messages[:at], place, tokenizer, prompt=True)
        through = _rendered(messages[: at + 1], place, tokenizer, prompt=False)
        rest = through.removeprefix(before)
        # A template may strip what it is given, and may put something before it.
        answer = messages[at]["content"] if messages[at]["content"] in rest else messages[at]["content"].strip()
        start = rest.find(answer)
        if not through.startswith(before) or start < 0:
            raise ProdError(
                f"{place}: message {at + 1}: the model's chat template does not write this answer behind its own "
                "prompt: give 'prompt' and 'completion' as text, with --special-tokens"
            )
        yield Turn(at + 1, before + rest[:start], answer, _end(rest[start + len(answer) :], tokenizer))


def _end(tail: str, tokenizer: Any) -> int:
    """The token of the model's own that a template puts behind an answer, such as `<|im_end|>`, or the EOS."""
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    return int(ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else tokenizer.eos_token_id)


def _rendered(messages: Sequence[Mapping[str, Any]], place: str, tokenizer: Any, *, prompt: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # noqa: BLE001 (templates are programs, and raise what they like)
        raise ProdError(
            f"{place}: the model's chat template refuses the messages ({reason(error)}): leave out what it does not "
            "know, or give 'prompt' and 'completion' as text"
        ) from None
    return text


def _messages(record: Mapping[str, Any], place: str) -> tuple[list[dict[str, str]], int]:
    """The messages, and where those begin that may be answers to train on."""
    prompt, messages = record.get("prompt"), record.get("messages")
    if messages is None:
        completion = record.get("completion")
        if not isinstance(completion, (list, tuple)):
            raise ProdError(f"{place}: expected 'completion' to be a list of messages, as 'prompt' is")
        return _checked([*(prompt or ()), *completion], place), len(prompt or ())
    if not isinstance(messages, (list, tuple)):
        raise ProdError(f"{place}: expected 'messages' to be a list, got {type(messages).__name__}")
    if prompt is not None or record.get("completion") is not None:
        raise ProdError(f"{place}: expected 'messages', or 'prompt' and 'completion', got both: drop one")
    return _checked(messages, place), 0


def _checked(messages: Sequence[Any], place: str) -> list[dict[str, str]]:
    found = []
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, Mapping) else None
        content = _text_of(message.get("content")) if isinstance(message, Mapping) else None
        if role not in _ROLES or content is None:
            raise ProdError(
                f"{place}: message {number}: expected 'role' ({', '.join(_ROLES)}) and 'content', a text, got "
                f"{brief(repr(message), 80)}"
            )
        if role == "assistant" and not content.strip():
            raise ProdError(f"{place}: message {number}: expected an answer that holds text, it is empty: drop the row")
        found.append({"role": role, "content": content})
    return found


def _text_of(content: Any) -> str | None:
    """A text, or the parts of one as in OpenAI's requests; None for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    return None
