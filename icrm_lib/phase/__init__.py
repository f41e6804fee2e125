"""When a generator's probabilities help: languages, what can be measured before training, a tabular prediction."""

from icrm_lib.phase.controls import known_controls, measurable_controls
from icrm_lib.phase.languages import phase_languages
from icrm_lib.phase.measured import MEASURES, measure
from icrm_lib.phase.prediction import predict
from icrm_lib.phase.responses import Responses, draw_responses
from icrm_lib.phase.study import Sizes, study_config, study_language
from icrm_lib.phase.tabular import WEIGHTINGS, Batch, fit_table
from icrm_lib.phase.theory import compare_shift, first_order_shift

__all__ = [
    "MEASURES",
    "WEIGHTINGS",
    "Batch",
    "Responses",
    "Sizes",
    "compare_shift",
    "draw_responses",
    "first_order_shift",
    "fit_table",
    "known_controls",
    "measurable_controls",
    "measure",
    "phase_languages",
    "predict",
    "study_config",
    "study_language",
]
