"""Conversations to token ids: the end of the prompt that fits, and the response."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from icrm_lib.tokenization.encoder import TemplateProblem, encoder_for
from icrm_lib.tokenization.messages import checked_conversations
from icrm_lib.tokenization.template import PROBE, Conversation, closing_token


class ResponseTooLong(ValueError):
    """The response alone leaves no room for a single prompt token (the BOS token where there is one)."""


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
    reaches across the border of prompt and response (where `reads(tokenizer)` is "last" it may, and counts as part of
    the response), and the text of a special token inside a message (`"<|im_end|>"` typed by a user) stays text.

    Args:
        tokenizer: as returned by `prepare_tokenizer` or `adopt_tokenizer`.
        conversation: messages with "role" and "content" (str, or text parts); what else they hold (`tool_calls`,
            `reasoning_content`) the chat template writes as it does.
        max_length: most tokens, 2 or more. A longer prompt loses its beginning, except BOS; the response is
            never cut.
        offsets: also return where each response token lies in the reply.

    Raises:
        ResponseTooLong: the response fills `max_length`.
        TemplateProblem: the chat template refuses the conversation, hides where the reply begins, or (with
            `offsets`) rewrites it.
        ValueError: an unprepared tokenizer, or no conversation that ends with an assistant turn (see `messages`).
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
    if max_length is not None and not (isinstance(max_length, int) and max_length >= 2):
        raise ValueError(
            f"max_length is {max_length!r}; at least 2 tokens are needed, one of the prompt and one of the reply"
        )
    encoder, results = encoder_for(tokenizer), []
    talks = checked_conversations(conversations, tokenizer.get_chat_template())
    rows = [(talk[:-1], talk[-1:]) for talk in talks]
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
    closing = closing_token(tokenizer, tokenizer.apply_chat_template(PROBE, tokenize=False))
    ids = {tokenizer.convert_tokens_to_ids(closing) if closing else None, tokenizer.eos_token_id}
    return sorted(ids - {None})
