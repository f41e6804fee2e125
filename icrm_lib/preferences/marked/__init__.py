"""Public data in which people marked places: translations of MQM, answers of qa-feedback, solutions of ProcessBench."""

from icrm_lib.preferences.marked.mqm import load_mqm
from icrm_lib.preferences.marked.process_bench import load_process_bench
from icrm_lib.preferences.marked.qa_feedback import load_qa_feedback
from icrm_lib.preferences.marked.sources import MQM_TED_ZHEN, PROCESS_BENCH, QA_FEEDBACK, Marked

__all__ = [
    "MQM_TED_ZHEN",
    "PROCESS_BENCH",
    "QA_FEEDBACK",
    "Marked",
    "load_mqm",
    "load_process_bench",
    "load_qa_feedback",
]
