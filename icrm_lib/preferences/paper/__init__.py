"""The data of the paper's settings as recipes: published files to training, validation and test pairs."""

from icrm_lib.preferences.paper.prm800k import SHARES, Draw
from icrm_lib.preferences.paper.recipes import load_recipe, recipe_key
from icrm_lib.preferences.paper.sources import PRM800K, RECIPES, SKYWORK, SPLITS, UNIFIED_FEEDBACK

__all__ = ["PRM800K", "RECIPES", "SHARES", "SKYWORK", "SPLITS", "UNIFIED_FEEDBACK", "Draw", "load_recipe", "recipe_key"]
