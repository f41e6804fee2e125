"""Small language models made here: a tokenizer trained on given texts, and a Llama with random weights."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

SCRATCH_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def scratch_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template on the given texts.

    Args:
        texts: prompts and responses.
        vocabulary: number of tokens, at least 300 (256 bytes and the special tokens).

    Raises:
        ValueError: `vocabulary` is too small.
    """
    if vocabulary < 300:
        raise ValueError(f"vocabulary must be at least 300 (256 bytes and the special tokens), got {vocabulary}")
    special = ["<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=special[3:],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = SCRATCH_TEMPLATE
    return fast


def small_llama(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, layers: int, heads: int, max_length: int, seed: int
) -> LlamaForCausalLM:
    """Return a randomly initialised Llama of the given size with tied embeddings.

    Args:
        tokenizer: decides the vocabulary and the special ids.
        hidden_size: width, a multiple of `heads`.
        layers: decoder layers.
        heads: attention heads.
        max_length: longest sequence in tokens.
        seed: of the initialisation.
    """
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
