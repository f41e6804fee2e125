"""What a prompt loses when its beginning is cut to make room for the response."""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from icrm_lib.tokenization.encoder import Encoded, Encoder, encoder_for
from icrm_lib.tokenization.template import SENTINEL, Message

_INSTRUCTIONS = ("system", "developer")


class Lost(NamedTuple):
    """Whose text a cut prompt has no longer as a whole.

    Attributes:
        question: that of the last user turn.
        system: that of a system (or developer) turn.
    """

    question: bool = False
    system: bool = False


def lost_by_cut(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], encoded: Encoded, kept: list[int]) -> Lost:
    """Say what a prompt lost.

    Args:
        tokenizer: as returned by `prepare_tokenizer` or `adopt_tokenizer`.
        prompt: the messages before the reply.
        encoded: the prompt as the tokenizer's encoder gave it.
        kept: what `cut_prompt` left of its ids, BOS included where it stands in front.
    """
    gone = len(encoded.prompt) - len(kept)
    if not gone:
        return Lost()
    encoder = encoder_for(tokenizer)
    first = _first_character(tokenizer, encoded, gone + (encoded.prompt[0] == tokenizer.bos_token_id))
    spoken = [i for i, message in enumerate(prompt) if message["content"].strip()]
    users = [i for i in spoken if prompt[i]["role"] == "user"][-1:]
    systems = [i for i in spoken if prompt[i]["role"] in _INSTRUCTIONS]
    return Lost(*(any(first > _begin(encoder, prompt, i, encoded.head) for i in turns) for turns in (users, systems)))


def _first_character(tokenizer: PreTrainedTokenizerBase, encoded: Encoded, token: int) -> int:
    """Return the place in the prompt's text where what is cut ends, with the token at `token` as the first to stay."""
    # With a letter behind it, as `Pieces.prompts` reads a prompt.
    coded = tokenizer(encoded.head + "a", add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if coded["input_ids"][: len(encoded.prompt)] == encoded.prompt:
        return coded["offset_mapping"][token - 1][1]
    # Special tokens written out in a message are tokenised in pieces, which have no place in one text.
    rest = tokenizer.decode(encoded.prompt[token:], clean_up_tokenization_spaces=False)
    return max(len(encoded.head) - len(rest), 0)


def _begin(encoder: Encoder, prompt: list[Message], index: int, head: str) -> int:
    """Return the place in the prompt's text where a message's own text begins."""
    marked = [{**message, "content": SENTINEL} if i == index else message for i, message in enumerate(prompt)]
    front = encoder.render([*marked, {"role": "assistant", "content": "a"}]).partition(SENTINEL)[0]
    # A template that writes something else in front for another text: where the text stands, or all is lost.
    return len(front) if head.startswith(front) else max(head.rfind(prompt[index]["content"].strip()), 0)
