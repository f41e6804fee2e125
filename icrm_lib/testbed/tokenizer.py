"""The tokenizer of the generated language, with its chat template."""

import itertools

from icrm_lib.testbed.words import CONNECTORS, NAMES, OPENERS, PHRASE_QUALITY, PLACES, PROMPTS, WORD_OR_MARK

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ '<user>' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('role ' + message['role'] + ': not system, user, assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer(subword: bool = False):
    """Build the language's tokenizer, with a chat template; the vocabulary depends on nothing but `subword`.

    Args:
        subword: False: one token a word. True: words of more than 4 letters are cut into pieces of 3 letters,
            many of them shared between words; single letters are pieces too, so no English word is unknown.

    Returns:
        `transformers.PreTrainedTokenizerFast`. Encoding adds no special tokens: the chat template writes
        them. A system message is plain text between ``<bos>`` and the first turn, closed by ``<eos>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # here, so that importing stays light
    from transformers import PreTrainedTokenizerFast

    texts = [*PROMPTS, *OPENERS, *(connector for connector, _ in CONNECTORS), "with in ."]
    spelled = {word for text in texts for word in WORD_OR_MARK.findall(text)}
    spelled = spelled.union(itertools.chain.from_iterable(PHRASE_QUALITY), NAMES, PLACES)
    if subword:
        letters = [chr(first + i) for first in (ord("A"), ord("a")) for i in range(26)]
        pieces = {piece for word in spelled for piece in _pieces(word)}
        spelled = pieces.union(letters, ("##" + letter for letter in letters))
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *sorted(spelled)])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=100))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # splits at white space and around punctuation
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # writes "words, then" and "words."
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")},
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def _pieces(word: str) -> list[str]:
    if len(word) <= 4:
        return [word]
    return [("##" if i else "") + word[i : i + 3] for i in range(0, len(word), 3)]
