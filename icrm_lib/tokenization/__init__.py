"""From conversations to token ids, in the one way that training, scoring and evaluation share.

A reward is read at the *closing token*: the end-of-turn token that the chat template writes after the last
reply, or the EOS token where it writes none. Everything before the final reply is the prompt; the reply with
its closing token is the response. `prepare_tokenizer` stores these conventions inside the tokenizer itself,
so that tools which know nothing of this package read the reward at the same position.
"""

from icrm_lib.tokenization.encoder import (
    Encoded,
    ResponseTooLong,
    TemplateProblem,
    Tokenized,
    closing_token_ids,
    cut_prompt,
    encoder_for,
    tokenize_conversation,
    tokenize_conversations,
)
from icrm_lib.tokenization.loading import load_tokenizer
from icrm_lib.tokenization.template import Conversation, Message, prepare_tokenizer

__all__ = [
    "Conversation",
    "Encoded",
    "Message",
    "ResponseTooLong",
    "TemplateProblem",
    "Tokenized",
    "closing_token_ids",
    "cut_prompt",
    "encoder_for",
    "load_tokenizer",
    "prepare_tokenizer",
    "tokenize_conversation",
    "tokenize_conversations",
]
