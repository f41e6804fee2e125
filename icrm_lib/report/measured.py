"""What is reported of a cell: where each measure stands in its record, and which difference counts as none."""

# Measure -> where it stands in a record. Two names: numerator and denominator by test prompt. Accuracies count by the
# gold score, pairs of equal score left out, except the two that say otherwise.
MEASURES: dict[str, tuple[str, ...]] = {
    "accuracy on labels": ("accuracy.in_distribution.right", "accuracy.in_distribution.count"),
    "accuracy on noisier labels": ("accuracy.noisier.right", "accuracy.noisier.count"),
    "accuracy": ("accuracy.in_distribution.gold_right", "accuracy.in_distribution.gold_count"),
    "longer": ("accuracy.longer.gold_right", "accuracy.longer.gold_count"),
    "length reversed": ("accuracy.length_reversed.gold_right", "accuracy.length_reversed.gold_count"),
    "unseen verbs": ("accuracy.unseen_verbs.gold_right", "accuracy.unseen_verbs.gold_count"),
    "token agreement": ("agreement_by_prompt.sum", "agreement_by_prompt.count"),
    "agreement overall": ("tokens.agreement.overall",),
    "agreement, longer": ("longer_tokens.within",),
    "partial agreement": ("tokens.partial.within",),
    "calibration skill": ("tokens.calibration.skill",),
    "change at quality": ("tokens.quality.correlation",),
    "change ratio": ("tokens.quality.ratio",),
    "early": ("tokens.localisation.early",),
    "middle": ("tokens.localisation.middle",),
    "late": ("tokens.localisation.late",),
    "smoothness": ("tokens.smoothness.within",),
    "train seconds": ("seconds.train",),
}
# The same for cells of the other purposes: gold scores by test prompt, in points; tokens of a response; nats.
BUDGETS = ("40%", "50%", "60%", "70%", "80%")
POLICIES = ("reference", "dpo", "grpo_outcome", "grpo_tokens")
MEASURES |= {f"best of {n}": (f"gold.{n}",) for n in (1, 2, 4, 8, 16, 32, 64)}
MEASURES |= {f"tokens, best of {n}": (f"tokens.{n}",) for n in (1, 2, 4, 8, 16, 32, 64)}
EARLY = ("share", "gold", "full", "loss", "same_tokens")
MEASURES |= {f"early {budget}, {what}": (f"early.{budget}.{what}",) for budget in BUDGETS for what in EARLY}
JUDGED = ("greedy", "sampled", "tokens", "kl", "seconds", "pairs_right")
MEASURES |= {f"{policy}, {what}": (f"{policy}.{what}",) for policy in POLICIES for what in JUDGED}
# A difference whose whole interval is nearer to 0 than this counts as none: a point of accuracy, 0.03 of a correlation,
# a tenth of a point of the gold score.
ACCURACIES = (
    "accuracy on labels",
    "accuracy on noisier labels",
    "accuracy",
    "longer",
    "length reversed",
    "unseen verbs",
)
MARGINS = {measure: 0.01 if measure in ACCURACIES else 0.03 for measure in MEASURES}
IN_POINTS = (", gold", ", full", ", loss", ", same_tokens", ", greedy", ", sampled")
MARGINS |= {m: 0.1 for m in MEASURES if m.startswith("best of") or m.endswith(IN_POINTS)}
