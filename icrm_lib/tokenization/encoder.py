"""How one tokenizer and its chat template turn prompts and replies into ids."""

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from icrm_lib.tokenization.pieces import Pieces
from icrm_lib.tokenization.template import PROBE, SENTINEL, Conversation, Message, closing_token, reads


class TemplateProblem(ValueError):
    """The chat template refuses a conversation, or hides where the final reply begins."""


class Encoded(NamedTuple):
    """A prompt with its responses as token ids.

    `head` is the prompt's text; `pieces` is the text of the first response as it was cut for tokenisation, or
    None if prompt and response went through the tokenizer together (the ordinary case); `text` is both texts.
    """

    prompt: list[int]
    responses: list[list[int]]
    head: str
    pieces: list[str] | None
    text: str


class Encoder:
    """How one prepared tokenizer turns conversations into ids; get it from `encoder_for`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.whole = reads(tokenizer) == "last"  # the ids are exactly those of the rendered conversation
        self.frame = functools.lru_cache(maxsize=1024)(self._frame)
        turn = self.render(PROBE[:1]) + closing_token(tokenizer, self.render(PROBE))
        controls = [
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if len(token.content) > 1 and (token.special or (not token.content.isspace() and token.content in turn))
        ]
        self.pieces = Pieces(tokenizer)
        self.controls = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)")

    def render(self, messages: Conversation, generation_prompt: bool = False) -> str:
        """Return the conversation as text."""
        return self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt
        )

    def encode(
        self, rows: Sequence[tuple[list[Message], list[Message] | list[str]]]
    ) -> list[Encoded | TemplateProblem]:
        """Tokenise prompts with their replies; all replies of a row get the same prompt ids.

        Args:
            rows: prompt, and replies to it, each a text or an assistant's message.

        Returns:
            For each row its encoding, or what the chat template made impossible.
        """
        results: list[Encoded | TemplateProblem | None] = [None] * len(rows)
        layouts = {}
        for i, (prompt, replies) in enumerate(rows):
            replies = [{"role": "assistant", "content": r} if isinstance(r, str) else r for r in replies]
            try:
                if any(map(self.controls.search, _texts([*prompt, *replies]))):
                    results[i] = self._encode_guarded(prompt, replies)
                else:
                    layouts[i] = self.layout(prompt, replies)
            except TemplateProblem as error:
                results[i] = error
            except TemplateError as error:
                results[i] = TemplateProblem(f"the chat template refuses the conversation: {error}")
            except (TypeError, ValueError, KeyError) as error:  # a template that expects another shape of a tool call
                results[i] = TemplateProblem(f"the chat template fails on the conversation: {error}")
        prompts = {} if self.whole else self.pieces.prompts(list({head: None for head, _ in layouts.values()}))
        wholes = iter(self.pieces.ids([text for _, texts in layouts.values() for text in texts]))
        for i, (head, texts) in layouts.items():
            mine = [next(wholes) for _ in texts]
            results[i] = self._split(head, texts, mine) if self.whole else self._join(head, texts, prompts[head], mine)
        return results

    def layout(self, prompt: list[Message], replies: list[Message]) -> tuple[str, list[str]]:
        """Return the text before the reply, and the rendered conversation for each reply."""
        head, tail = self.frame(json.dumps(prompt))
        texts = [self.render([*prompt, reply]) for reply in replies]
        if all(_is_framed(head, tail, text, reply) for text, reply in zip(texts, replies, strict=True)):
            return head, texts
        # Templates of reasoning models write an empty thought before a reply without one, and move a given
        # thought. Then the response begins where the model would have begun to write.
        head = self.render(prompt, generation_prompt=True)
        if self.whole:
            return os.path.commonprefix([head, *texts]), texts
        for text in texts:
            if not text.startswith(head):
                raise TemplateProblem(
                    f"the chat template renders the conversation as {text[:80]!r}..., which neither holds "
                    f"the reply verbatim nor begins with the generation prompt {head[-40:]!r}; use a "
                    "template that does one of the two"
                )
        return head, texts

    def reply_offsets(self, encoded: Encoded, message: Message) -> list[tuple[int, int]]:
        """Return (start, end) in the reply's text of each token of the first response, (len, len) behind it."""
        if beside := sorted(key for key in message.keys() - {"role", "content"} if message[key]):
            raise TemplateProblem(
                f"the reply has {beside[0]!r} beside its content, so its tokens have no place in one text; score it as "
                "a whole, or write everything into 'content'"
            )
        reply, text, head = message["content"], encoded.text, len(encoded.head)
        core = reply if reply in text[head:] else reply.strip()
        begin = text.find(core, head)
        if begin < 0:
            raise TemplateProblem(
                f"the chat template rewrites the reply {reply[:60]!r}, so its tokens have no place in it; "
                "do without offsets"
            )
        if encoded.pieces is None:
            spans = self.pieces.offsets(text)[len(encoded.prompt) :]
        else:
            spans, position = [], head
            for piece in encoded.pieces:
                spans += [(start + position, end + position) for start, end in self.pieces.piece(piece, True, True)]
                position += len(piece)
        shift, stop, size = begin - reply.index(core), begin + len(core), len(reply)
        return [
            (size, size) if start >= stop else (max(start - shift, 0), min(max(end - shift, 0), size))
            for start, end in spans
        ]

    def _frame(self, prompt: str) -> tuple[str, str]:
        text = self.render([*json.loads(prompt), {"role": "assistant", "content": SENTINEL}])
        head, found, tail = text.rpartition(SENTINEL)
        if not found:
            raise TemplateProblem("the chat template leaves out the final reply; use one that writes assistant turns")
        return head, tail

    def _split(self, head: str, texts: list[str], wholes: list[list[int]]) -> Encoded:
        """Cut the ids of whole conversations where the first token reaches beyond the prompt, or differs."""
        spans = self.pieces.offsets(texts[0])
        within = sum(end <= len(head) for _, end in spans)
        size = len(os.path.commonprefix([wholes[0][:within], *wholes[1:]]))
        return Encoded(wholes[0][:size], [whole[size:] for whole in wholes], head, None, texts[0])

    def _join(self, head: str, texts: list[str], prompt: list[int], wholes: list[list[int]]) -> Encoded:
        size = len(prompt)
        # Where a token reaches across the border (a reply that begins with a line break, say), the sides are
        # tokenised separately, as they are when the model writes the reply itself.
        responses = [
            whole[size:] if whole[:size] == prompt else self.pieces.piece(text[len(head) :], True)
            for text, whole in zip(texts, wholes, strict=True)
        ]
        together = wholes[0][:size] == prompt
        pieces = None if together else [texts[0][len(head) :]]
        return Encoded(prompt, responses, head, pieces, texts[0])

    def _encode_guarded(self, prompt: list[Message], replies: list[Message]) -> Encoded:
        # A mark after the first character of each special token in a message; the texts are tokenised in
        # pieces, cut at the marks, so that the tokenizer never sees those special tokens whole.
        said = "".join(_texts([*prompt, *replies]))
        mark = next(chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in said)
        head, texts = self.layout(self._marked(prompt, mark), self._marked(replies, mark))
        for text, reply in zip(texts, replies, strict=True):
            if text.replace(mark, "") != self.render([*prompt, reply]):
                raise TemplateProblem(
                    f"the chat template interprets a special token inside a message of {said[:60]!r}...; "
                    "remove it from the text"
                )
        front = head.split(mark)
        rests = [text[len(head) :].split(mark) for text in texts]
        responses = [[i for piece in rest for i in self.pieces.piece(piece, True)] for rest in rests]
        prompt_ids = [i for k, piece in enumerate(front[:-1]) for i in self.pieces.piece(piece, k > 0)]
        inside = len(front) > 1 and self.pieces.adds_space
        prompt_ids += self.pieces.piece(front[-1], True) if inside else self.pieces.prompts(front[-1:])[front[-1]]
        return Encoded(prompt_ids, responses, head.replace(mark, ""), rests[0], texts[0].replace(mark, ""))

    def _marked(self, messages: list[Message], mark: str) -> list[Message]:
        return _changed(messages, lambda text: self.controls.sub(lambda found: found[0][0] + mark + found[0][1:], text))


def encoder_for(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return the encoder of a prepared or adopted tokenizer; raises ValueError for one that is neither."""
    if reads(tokenizer) is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} was not prepared for reward models; pass it through "
            "prepare_tokenizer"
        )
    return _encoder(tokenizer, tokenizer.get_chat_template(), len(tokenizer))


@functools.lru_cache(maxsize=8)
def _encoder(tokenizer: PreTrainedTokenizerBase, template: str, size: int) -> Encoder:
    # Template and size are in the key because a tokenizer can change under its own name.
    return Encoder(tokenizer)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value of messages, nested ones and keys included: a template may write any of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.items() if isinstance(value, dict) else value:
            yield from _texts(list(item) if isinstance(item, tuple) else item)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _changed(item, change) for key, item in value.items()}
    return value


def _is_framed(head: str, tail: str, text: str, message: Message) -> bool:
    if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
        return False
    reply = message["content"] or ""
    return text[len(head) : len(text) - len(tail)].strip() == reply.strip()  # some templates trim
