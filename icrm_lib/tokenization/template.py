"""Chat templates: what a tokenizer needs so that every tool reads a reward at the same token."""

import functools
import re

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # "role" and "content", as in the chat templates of `transformers`
Conversation = list[Message]

_WRAPPED = "{#- icrm_lib: a finished assistant turn ends at its closing token -#}\n"
SENTINEL = "icrmFinalReply"
PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": SENTINEL}]
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
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
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, so nothing says where a reply "
            "begins and ends; set tokenizer.chat_template to the format the model was trained with"
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise ValueError(f'the tokenizer names the chat templates {names} but no "default"; set the one to use')
    if not is_wrapped(tokenizer):
        _wrap_template(tokenizer)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    # save_pretrained writes only what is in here, and would lose both sides.
    tokenizer.init_kwargs.update(padding_side="right", truncation_side="left")
    _choose_pad(tokenizer)
    return tokenizer


def is_wrapped(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether `prepare_tokenizer` has been here."""
    return bool(tokenizer.chat_template) and tokenizer.get_chat_template().startswith(_WRAPPED)


def closing_token(tokenizer: PreTrainedTokenizerBase, rendered_probe: str) -> str:
    """Return the added token that ends the rendering, or "" if it ends in plain text."""
    end = rendered_probe.rpartition(SENTINEL)[2].rstrip()
    tokens = [t.content for t in tokenizer.added_tokens_decoder.values() if not t.content.isspace()]
    return max((token for token in tokens if token and end.endswith(token)), key=len, default="")


def _wrap_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make finished assistant turns end at the closing token; see `prepare_tokenizer`."""
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
    templates = tokenizer.chat_template
    wrap = functools.partial(_wrapped, has_closing=bool(closing), blank=blank, lacks_bos=lacks_bos)
    tokenizer.chat_template = (
        {name: wrap(t) for name, t in templates.items()} if isinstance(templates, dict) else wrap(templates)
    )
    expected = (bos if lacks_bos else "") + before.rstrip() + ("" if closing else tokenizer.eos_token)
    if (after := tokenizer.apply_chat_template(PROBE, tokenize=False)) != expected:
        tokenizer.chat_template = templates
        raise ValueError(f"wrapping the chat template gives {after!r} instead of {expected!r}; simplify the template")


def _wrapped(source: str, *, has_closing: bool, blank: int, lacks_bos: bool) -> str:
    # Jinja drops one line break at the end of a template and, as transformers configures it, one after each
    # tag. The line break behind the first tag and the plus sign in the last one keep the source's own white
    # space as it was.
    source = re.sub(r"(\r\n|\r|\n)\Z", "", source)
    # `{% generation %}` measures positions while text is written, which a set block delays: mark the places,
    # tag them below.
    tagged = _GENERATION_TAG.sub(
        lambda tag: f"{{%{tag[1]} if true -%}}{{{{- '\\ufdd{1 if tag[2] else 0}' -}}}}{{%- endif {tag[3]}%}}", source
    )
    # Without a closing token the reply itself may end in white space: remove only what the template added.
    end = "icrm_text.rstrip()" if has_closing else f"icrm_text[:icrm_text | length - {blank}] + eos_token"
    if tagged != source and has_closing:  # the last mark may stand behind the white space
        end = f"({end}[:-1].rstrip() + '\\ufdd1') if {end}.endswith('\\ufdd1') else {end}"
    return (
        f"{_WRAPPED}{{% set icrm_text %}}\n{tagged}{{%+ endset -%}}\n"
        "{%- if not add_generation_prompt and messages and messages[-1]['role'] == 'assistant' -%}\n"
        f"{{%- set icrm_text = {end} -%}}\n"
        "{%- endif -%}\n" + ("{{- bos_token -}}\n" if lacks_bos else "") + _printed(tagged != source)
    )


def _printed(has_generation_tags: bool) -> str:
    if not has_generation_tags:
        return "{{- icrm_text -}}\n"
    return (
        "{%- for icrm_part in icrm_text.split('\\ufdd0') -%}\n"
        "{%- if loop.first -%}{{- icrm_part -}}{%- else -%}\n"
        "{%- set icrm_turn = icrm_part.split('\\ufdd1') -%}\n"
        "{%- generation -%}{{- icrm_turn[0] -}}{%- endgeneration -%}{{- icrm_turn[1:] | join -}}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
    )


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
