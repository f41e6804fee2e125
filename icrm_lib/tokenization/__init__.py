"""From conversations to token ids, in the one way that training, scoring and evaluation share.

A reward is read at the *closing token*: the end-of-turn token that the chat template writes after the last
reply, or the EOS token where it writes none. Everything before the final reply is the prompt; the reply with
its closing token is the response. `prepare_tokenizer` stores these conventions inside the tokenizer itself,
so that tools which know nothing of this package read the reward at the same position.

A reward model that another tool trained is read where that tool read it: `adopt_tokenizer` leaves its
template as it is, and the reward stands at the last token that is not padding.
"""

from icrm_lib.tokenization.conversations import (
    ResponseTooLong,
    Tokenized,
    closing_token_ids,
    cut_prompt,
    tokenize_conversation,
    tokenize_conversations,
)
from icrm_lib.tokenization.cuts import Lost, lost_by_cut
from icrm_lib.tokenization.encoder import Encoded, TemplateProblem, encoder_for
from icrm_lib.tokenization.loading import check_saved_tokenizer, load_tokenizer, misread_by_auto
from icrm_lib.tokenization.messages import checked_conversation, checked_conversations
from icrm_lib.tokenization.template import Conversation, Message, adopt_tokenizer, prepare_tokenizer, reads

__all__ = [
    "Conversation",
    "Encoded",
    "Lost",
    "Message",
    "ResponseTooLong",
    "TemplateProblem",
    "Tokenized",
    "adopt_tokenizer",
    "check_saved_tokenizer",
    "checked_conversation",
    "checked_conversations",
    "closing_token_ids",
    "cut_prompt",
    "encoder_for",
    "load_tokenizer",
    "lost_by_cut",
    "misread_by_auto",
    "prepare_tokenizer",
    "reads",
    "tokenize_conversation",
    "tokenize_conversations",
]
