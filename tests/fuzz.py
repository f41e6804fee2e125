"""What hypothesis tries in several test files."""

from hypothesis import HealthCheck
from hypothesis import strategies as st

FUZZ = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}
ODD_TEXTS = [
    "",
    " ",
    "\u200b",
    "\ufeff",
    "\0",
    "\ud800",
    "\u2028",
    "e\u0301",
    "\u00e9",
    "ﬁ",
    "<eos>",
    "<|im_end|>",
    "\r\n",
]
TEXTS = st.text(max_size=8) | st.text(st.characters(), max_size=4) | st.sampled_from(ODD_TEXTS)
