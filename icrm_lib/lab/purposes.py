"""What the cells of a study are for, asked here alone.

A purpose is a module with `constants(profile, cell)`, what of its code decides the numbers and so stands in a record;
`prepare(profile)`, which makes what its cells share before several processes want it; and
`measure(profile, cell, rewards, folder)`, the metrics of a record.
"""

from icrm_lib.lab import evidence, picks, policies

PURPOSES = {"evidence": evidence, "best_of_n": picks, "policy": policies}
