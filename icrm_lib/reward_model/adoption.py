"""What a model of another tool needs so that its scores stay those of its own directory."""

import logging

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from icrm_lib.tokenization import tokenize_conversation

logger = logging.getLogger(__name__)

_TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]


def adopt_padding(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Make configuration and tokenizer name one padding token, the configuration's: it decides where the score stands.

    A model without one is read at the very last token, alone; it gets a padding token that its conversations never end
    with, so that it is read there in a batch as well. Where conversations end with the padding token, the model is read
    before it, as in the training that chose so; a warning says so.

    Args:
        config: of the model; changed where it names no padding token.
        rows: number of the model's embeddings.
        tokenizer: an adopted one; its padding token is changed where it is another one.
    """
    text_config = config.get_text_config()
    end = tokenize_conversation(tokenizer, _TALK).input_ids[-1]
    given = text_config.pad_token_id
    if given is None or not 0 <= given < rows:  # -1, as conversions of Llama 1 have it, is none
        candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *range(len(tokenizer)))
        text_config.pad_token_id = next(i for i in candidates if i not in (None, end))
    pad = text_config.pad_token_id
    if pad == end:
        logger.warning(
            "%r is the padding token of the reward model and the end of its conversations, so its reward is read at "
            "the token before, as in the training that chose so",
            tokenizer.convert_ids_to_tokens(pad),
        )
    if tokenizer.pad_token_id != pad and 0 <= pad < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
