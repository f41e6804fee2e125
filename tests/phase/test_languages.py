"""The languages of the study are a full factorial with names."""

from icrm_lib.phase import phase_languages
from icrm_lib.testbed import Language


def test_54_languages_that_differ_and_the_default_one_among_them():
    languages = phase_languages()
    assert len(languages) == len(set(languages.values())) == 54
    assert languages["even-40_verbs-sure-persist"] == Language()
    one = languages["bad_likely-5_verbs-bare-drift"]
    assert (one.coupling, one.verbs_per_class, one.idiosyncratic_words, one.persistence) == (-0.6, 5, 0, 1 / 3)
    assert len({one.tokenizer.vocab_size for one in languages.values()}) == 1
