"""Languages of the testbed with every knob away from its default at least once, and their texts as token ids."""

from icrm_lib.testbed import Language

PAPER_PROMPT = "What is an effective way to deal with people who disagree with me?"
PAPER_OPENER = "An effective way to deal with people who disagree with you is to "
PLAIN = Language()
SUBWORD = Language(subword=True)
# Every knob that bears on probabilities or values, away from its default at least once.
VARIED = {
    "default": PLAIN,
    "subword": SUBWORD,
    "subword, few clauses": Language(subword=True, idiosyncratic_words=0, clauses=(1, 2), threshold=1, seed=5),
    "one name": Language(idiosyncratic_words=1, n_idiosyncratic=20, threshold=-1, seed=3),
    "long": Language(clauses=(8, 12), threshold=5, persistence=0.4),
    "always persistent": Language(persistence=1.0, clauses=(2, 2), threshold=2),
    "never persistent": Language(persistence=0.0, subword=True),
    "without held-out verbs": Language(held_out_verbs=0.5, seed=2),
    "held-out verbs": Language(held_out_verbs=0.25, only_held_out_verbs=True, subword=True),
    "few verbs, good ones likelier": Language(verbs_per_class=5, coupling=0.6, held_out_verbs=0.2),
    "few sure words": Language(alternative_probability=0.5, linking_words=False, coupling=-0.6, subword=True),
    "one verb, one form": Language(verbs_per_class=1, alternative_probability=0.0, linking_words=False, clauses=(1, 3)),
}


def prompt_ids(language, prompt):
    chat = [{"role": "user", "content": prompt}]
    return language.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def full_ids(language, prompt, response):
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return language.tokenizer.apply_chat_template(chat, return_dict=False)


def gold(language, response):
    return language.gold_score([{"role": "assistant", "content": response}])


def draw(language, rng, n, prompt=None):
    """n responses as (prompt ids, all ids, text)."""
    prompt = prompt or language.prompts[0]
    responses = language.sample_responses(prompt, n, rng)
    return [(prompt_ids(language, prompt), full_ids(language, prompt, text), text) for text in responses]
