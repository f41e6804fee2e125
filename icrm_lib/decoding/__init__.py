"""Decoding that another model guides, token by token."""

from icrm_lib.decoding.children import BestChildren, ChildScorer, TreeScorer, scored_by_rows
from icrm_lib.decoding.guided import Guide, Step
from icrm_lib.decoding.second_model import SecondModel

__all__ = ["BestChildren", "ChildScorer", "Guide", "SecondModel", "Step", "TreeScorer", "scored_by_rows"]
