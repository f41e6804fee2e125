"""Conversations to token ids: the end of the prompt that fits, and the response."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from icrm_lib.tokenization.template import PROBE, SENTINEL, Conversation, Message, closing_token, is_wrapped

_PLAIN = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
# SentencePiece-like tokenizers put a space before a text. A piece from the middle of a conversation must not get one:
# it is encoded behind an anchor, whose ids are then removed. There are several, as the text may merge with one of them.
_ANCHORS = ("\n", "a", "!")


class ResponseTooLong(ValueError):
    """The response alone leaves no room for a single prompt token (the BOS token where there is one)."""


class TemplateProblem(ValueError):
    """The chat template refuses a conversation, or hides where the final reply begins."""


class Tokenized(NamedTuple):
    """One tokenised conversation.

    Attributes:
        input_ids: prompt and response; the last one is the closing token.
        prompt_length: number of prompt tokens; the response is `input_ids[prompt_length:]`.
        offsets: (start, end) of each response token in the reply string, `(len, len)` for the closing token;
            empty unless asked for.
    """

    input_ids: list[int]
    prompt_length: int
    offsets: list[tuple[int, int]]


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    *,
    max_length: int | None = None,
    offsets: bool = False,
) -> Tokenized:
    """Tokenise one conversation whose last turn is the assistant's.

    The ids are those of `tokenizer.apply_chat_template(conversation)`, with two exceptions: a token never
    reaches across the border of prompt and response, and the text of a special token inside a message
    (`"<|im_end|>"` typed by a user) stays text.

    Args:
        tokenizer: as returned by `prepare_tokenizer`.
        conversation: messages with "role" and "content" (both str).
        max_length: most tokens, 2 or more. A longer prompt loses its beginning, except BOS; the response is
            never cut.
        offsets: also return where each response token lies in the reply.

    Raises:
        ResponseTooLong: the response fills `max_length`.
        TemplateProblem: the chat template refuses the conversation, hides where the reply begins, or (with
            `offsets`) rewrites it.
        ValueError: an unprepared tokenizer, or a conversation that does not end with an assistant turn.
    """
    return tokenize_conversations(tokenizer, [conversation], max_length=max_length, offsets=offsets)[0]


def tokenize_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    max_length: int | None = None,
    offsets: bool = False,
) -> list[Tokenized]:
    """Tokenise many conversations at once, a prompt that several share only once; see `tokenize_conversation`."""
    rows = []
    for conversation in conversations:
        if not conversation or conversation[-1]["role"] != "assistant":
            last = conversation[-1]["role"] if conversation else None
            raise ValueError(f"the last turn is {last!r}, but a reward needs a reply; end with an assistant turn")
        rows.append((list(conversation[:-1]), [conversation[-1]["content"]]))
    encoder, results = encoder_for(tokenizer), []
    for encoded, (_, (reply,)) in zip(encoder.encode(rows), rows, strict=True):
        if isinstance(encoded, TemplateProblem):
            raise encoded
        (response,) = encoded.responses
        kept = cut_prompt(encoded.prompt, len(response), max_length, tokenizer.bos_token_id)
        spans = encoder.reply_offsets(encoded, reply) if offsets else []
        results.append(Tokenized(kept + response, len(kept), spans))
    return results


def cut_prompt(prompt: list[int], response_length: int, max_length: int | None, bos: int | None) -> list[int]:
    """Return the end of the prompt that fits before `response_length` tokens, with BOS kept in front.

    One prompt token always stays, because a response token's probability is conditioned on what precedes it.
    """
    if max_length is None or len(prompt) + response_length <= max_length:
        return prompt
    room = max_length - response_length
    if room < 1:
        raise ResponseTooLong(
            f"the response has {response_length} tokens and needs one more in front, but max_length is "
            f"{max_length}; raise max_length or drop the row"
        )
    if prompt[0] == bos:
        return prompt[:1] + prompt[len(prompt) - room + 1 :]
    return prompt[-room:]


def closing_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids at which a response ends: the closing token of the chat template, and EOS where it is another."""
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    found = {tokenize_conversation(tokenizer, probe).input_ids[-1], tokenizer.eos_token_id}
    return sorted(found - {None})


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

    def encode(self, rows: Sequence[tuple[list[Message], list[str]]]) -> list[Encoded | TemplateProblem]:
        """Tokenise prompts with their replies; all replies of a row get the same prompt ids.

        Returns:
            For each row its encoding, or what the chat template made impossible.
        """
        results: list[Encoded | TemplateProblem | None] = [None] * len(rows)
        layouts = {}
        for i, (prompt, replies) in enumerate(rows):
            try:
                if any(map(self.controls.search, [m["content"] for m in prompt] + replies)):
                    results[i] = self._encode_guarded(prompt, replies)
                else:
                    layouts[i] = self.layout(prompt, replies)
            except TemplateProblem as error:
                results[i] = error
            except TemplateError as error:
                results[i] = TemplateProblem(f"the chat template refuses the conversation: {error}")
        prompts = self.pieces.prompts(list({head: None for head, _ in layouts.values()}))
        wholes = iter(self.pieces.ids([text for _, texts in layouts.values() for text in texts]))
        for i, (head, texts) in layouts.items():
            results[i] = self._join(head, texts, prompts[head], [next(wholes) for _ in texts])
        return results

    def layout(self, prompt: list[Message], replies: list[str]) -> tuple[str, list[str]]:
        """Return the text before the reply, and the rendered conversation for each reply."""
        head, tail = self.frame(tuple((m["role"], m["content"]) for m in prompt))
        texts = [self.render([*prompt, {"role": "assistant", "content": reply}]) for reply in replies]
        if all(map(functools.partial(_is_framed, head, tail), texts, replies)):
            return head, texts
        # Templates of reasoning models write an empty thought before a reply without one, and move a given
        # thought. Then the response begins where the model would have begun to write.
        head = self.render(prompt, generation_prompt=True)
        for text in texts:
            if not text.startswith(head):
                raise TemplateProblem(
                    f"the chat template renders the conversation as {text[:80]!r}..., which neither holds "
                    f"the reply verbatim nor begins with the generation prompt {head[-40:]!r}; use a "
                    "template that does one of the two"
                )
        return head, texts

    def reply_offsets(self, encoded: Encoded, reply: str) -> list[tuple[int, int]]:
        """Return (start, end) in `reply` of each token of the first response, (len, len) behind it."""
        text, head = encoded.text, len(encoded.head)
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

    def _frame(self, prompt: tuple[tuple[str, str], ...]) -> tuple[str, str]:
        messages = [{"role": role, "content": content} for role, content in prompt]
        text = self.render([*messages, {"role": "assistant", "content": SENTINEL}])
        head, found, tail = text.rpartition(SENTINEL)
        if not found:
            raise TemplateProblem("the chat template leaves out the final reply; use one that writes assistant turns")
        return head, tail

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

    def _encode_guarded(self, prompt: list[Message], replies: list[str]) -> Encoded:
        # A mark after the first character of each special token in a message; the texts are tokenised in
        # pieces, cut at the marks, so that the tokenizer never sees those special tokens whole.
        said = "".join(m["content"] for m in prompt) + "".join(replies)
        mark = next(chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in said)
        marked_prompt = [{**m, "content": self._mark(m["content"], mark)} for m in prompt]
        head, texts = self.layout(marked_prompt, [self._mark(reply, mark) for reply in replies])
        for text, reply in zip(texts, replies, strict=True):
            if text.replace(mark, "") != self.render([*prompt, {"role": "assistant", "content": reply}]):
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

    def _mark(self, text: str, mark: str) -> str:
        return self.controls.sub(lambda match: match[0][0] + mark + match[0][1:], text)


def encoder_for(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return the encoder of a prepared tokenizer; raises ValueError for one that is not."""
    if not is_wrapped(tokenizer):
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} was not prepared for reward models; pass it through "
            "prepare_tokenizer"
        )
    return _encoder(tokenizer, tokenizer.get_chat_template(), len(tokenizer))


@functools.lru_cache(maxsize=8)
def _encoder(tokenizer: PreTrainedTokenizerBase, template: str, size: int) -> Encoder:
    # Template and size are in the key because a tokenizer can change under its own name.
    return Encoder(tokenizer)


def _is_framed(head: str, tail: str, text: str, reply: str) -> bool:
    if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
        return False
    return text[len(head) : len(text) - len(tail)].strip() == reply.strip()  # some templates trim


class Pieces:
    """How one tokenizer turns pieces of a text into ids, as if each stood in the middle of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.anchors = list(zip(_ANCHORS, self.ids(list(_ANCHORS)), strict=True))
        (alone,) = self.ids(["a"])
        self.adds_space = self._behind("a", *self.anchors[0]) != alone

    def prompts(self, heads: list[str]) -> dict[str, list[int]]:
        """Return the ids of each prompt."""
        # The prompt is tokenised with a letter behind it, as some tokenizers treat white space at the end of
        # a text differently from the same white space before a word. If a token takes up that letter, the
        # prompt stands alone.
        if not heads:
            return {}
        coded = self.tokenizer([head + "a" for head in heads], **_PLAIN, return_offsets_mapping=True)
        prompts = {}
        for head, ids, offsets in zip(heads, coded["input_ids"], coded["offset_mapping"], strict=True):
            size = len(ids)
            while size and offsets[size - 1][0] >= len(head):
                size -= 1
            whole = size == 0 or offsets[size - 1][1] <= len(head)
            prompts[head] = ids[:size] if whole else self.ids([head])[0]
        return prompts

    def piece(self, text: str, inside: bool, offsets: bool = False) -> list:
        """Ids (or offsets) of a piece of a text; `inside` says that something stands before it."""
        for anchor, skip in self.anchors if inside and self.adds_space else ():
            ids = self._behind(text, anchor, skip)
            if ids is not None:
                spans = self.offsets(anchor + text)[len(skip) :] if offsets else ()
                return [(start - 1, end - 1) for start, end in spans] if offsets else ids
        return self.offsets(text) if offsets else self.ids([text])[0]

    def _behind(self, text: str, anchor: str, skip: list[int]) -> list[int] | None:
        (ids,) = self.ids([anchor + text])
        return ids[len(skip) :] if ids[: len(skip)] == skip else None

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each whole text."""
        if not texts:
            return []
        return self.tokenizer(texts, **_PLAIN)["input_ids"]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return (start, end) of each token of a whole text."""
        return self.tokenizer(text, **_PLAIN, return_offsets_mapping=True)["offset_mapping"]
