"""Chat templates: what a tokenizer needs so that every tool reads a reward at the same token."""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from icrm_lib.tokenization.wrapping import DATE, dated, wrapped

logger = logging.getLogger(__name__)

Message = dict[str, Any]  # "role" and "content" (str), and what else the chat templates of `transformers` write
Conversation = list[Message]

_WRAPPED = "{#- icrm_lib: a finished assistant turn ends at its closing token -#}\n"
_ADOPTED = "{#- icrm_lib: the reward is read at the last token that is not padding -#}\n"
SENTINEL = "icrmFinalReply"
PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": SENTINEL}]
_PAD_CANDIDATES = (
    "<|finetune_right_pad_id|>",
    "<pad>",
    "[PAD]",
    "<|endoftext|>",
    "<|reserved_special_token_0|>",
    "<unk>",
)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make a tokenizer fit for reward models, in place; doing it twice changes nothing.

    - Chat template: what it renders ends exactly at the closing token when the last turn is the assistant's
      (many templates write a line break after it), and begins with BOS if the tokenizer adds one to plain
      text.
    - Pad token: never the closing token. Sequence-classification models read the reward at the last token
      that is not pad, so with pad == closing token they would read one token too early.
    - Padding on the right; truncation on the left, so that a tool that truncates still keeps the closing
      token.
    - A template that writes today's date writes `wrapping.DATE` on every day: one conversation has one score.

    All of this is saved by `save_pretrained`.

    Args:
        tokenizer: a fast tokenizer with a chat template (a string, or named templates with one called
            "default").

    Returns:
        The same object.

    Raises:
        ValueError: no chat template, no closing token, no spare token to pad with, or a template that cannot
            be wrapped.
    """
    _check_templates(tokenizer)
    before = tokenizer.chat_template
    try:
        _rewrite(tokenizer, functools.partial(_dated, tokenizer.name_or_path))
        if not is_wrapped(tokenizer):
            _wrap_template(tokenizer)
    except ValueError:
        tokenizer.chat_template = before
        raise
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    # save_pretrained writes only what is in here, and would lose both sides.
    tokenizer.init_kwargs.update(padding_side="right", truncation_side="left")
    _choose_pad(tokenizer)
    return tokenizer


def adopt_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Take a tokenizer as the tool that trained its reward model left it, in place.

    The chat template goes on writing what it writes, but for today's date (see `prepare_tokenizer`), and gets a mark
    by which `reads` knows it. What `prepare_tokenizer` has seen stays as it is.

    Args:
        tokenizer: a fast tokenizer with a chat template.

    Returns:
        The same object.

    Raises:
        ValueError: no chat template.
    """
    _check_templates(tokenizer)
    _rewrite(tokenizer, functools.partial(_dated, tokenizer.name_or_path))
    if reads(tokenizer) is None:
        _rewrite(tokenizer, lambda source: _ADOPTED + source)
    return tokenizer


def reads(tokenizer: PreTrainedTokenizerBase) -> Literal["closing", "last"] | None:
    """Say where the reward of a finished conversation stands.

    Returns:
        "closing": at the closing token, with which what `prepare_tokenizer` made ends; "last": at the last token that
        is not padding of what the template writes, which may be a line break behind the closing token (see
        `adopt_tokenizer`); None where neither has been here.
    """
    if not tokenizer.chat_template:
        return None
    source = tokenizer.get_chat_template()
    return "closing" if source.startswith(_WRAPPED) else "last" if source.startswith(_ADOPTED) else None


def _check_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, so nothing says where a reply "
            "begins and ends; set tokenizer.chat_template to the format the model was trained with"
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise ValueError(f'the tokenizer names the chat templates {names} but no "default"; set the one to use')


def _rewrite(tokenizer: PreTrainedTokenizerBase, change: Callable[[str], str]) -> None:
    templates = tokenizer.chat_template
    named = isinstance(templates, dict)
    tokenizer.chat_template = {name: change(t) for name, t in templates.items()} if named else change(templates)


def _dated(name: str, source: str) -> str:
    mark = next((mark for mark in (_WRAPPED, _ADOPTED) if source.startswith(mark)), "")
    fixed = mark + dated(source.removeprefix(mark))
    if fixed != source:
        logger.warning(
            "the chat template of %r writes today's date; it is told %s on every day, so that scores last",
            name,
            DATE,
        )
    return fixed


def is_wrapped(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether `prepare_tokenizer` has been here."""
    return reads(tokenizer) == "closing"


def closing_token(tokenizer: PreTrainedTokenizerBase, rendered_probe: str) -> str:
    """Return the added token that ends the rendering, or "" if it ends in plain text."""
    end = rendered_probe.rpartition(SENTINEL)[2].rstrip()
    tokens = [t.content for t in tokenizer.added_tokens_decoder.values() if not t.content.isspace()]
    return max((token for token in tokens if token and end.endswith(token)), key=len, default="")


def _wrap_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make finished assistant turns end at the closing token; see `prepare_tokenizer`."""
    _rewrite(tokenizer, lambda source: source.removeprefix(_ADOPTED))
    try:
        before = tokenizer.apply_chat_template(PROBE, tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"the chat template fails on a plain question and answer: {error}; repair the template"
        ) from error
    if SENTINEL not in before:
        raise ValueError(
            f"the chat template renders a question and answer as {before!r}, without the answer; use one for "
            "text messages"
        )
    closing = closing_token(tokenizer, before)
    if not closing and not tokenizer.eos_token:
        raise ValueError(
            "the chat template writes no end-of-turn token and the tokenizer has no EOS token, so there is "
            "no closing token to read a reward at; set tokenizer.eos_token"
        )
    bos = tokenizer.bos_token
    lacks_bos = (
        bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and not before.startswith(bos)
    )
    blank = len(before) - len(before.rstrip())
    wrap = functools.partial(wrapped, has_closing=bool(closing), blank=blank, lacks_bos=lacks_bos)
    _rewrite(tokenizer, lambda source: _WRAPPED + wrap(source))
    expected = (bos if lacks_bos else "") + before.rstrip() + ("" if closing else tokenizer.eos_token)
    if (after := tokenizer.apply_chat_template(PROBE, tokenize=False)) != expected:
        raise ValueError(f"wrapping the chat template gives {after!r} instead of {expected!r}; simplify the template")


def _choose_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = tokenizer.apply_chat_template(PROBE, tokenize=False)
    closing = closing_token(tokenizer, rendered)
    if tokenizer.pad_token is not None and tokenizer.pad_token not in (closing, tokenizer.eos_token):
        return
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for candidate in _PAD_CANDIDATES:
        if candidate in special and candidate not in rendered and candidate != tokenizer.bos_token:
            tokenizer.pad_token = candidate
            return
    raise ValueError(
        f"the pad token is {tokenizer.pad_token!r} and the closing token {closing!r}: they must differ, as "
        "the reward is read at the last token that is not pad, but no spare special token was found; call "
        'tokenizer.add_special_tokens({"pad_token": "<pad>"}) and '
        "model.resize_token_embeddings(len(tokenizer))"
    )
