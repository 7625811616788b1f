"""What a reader of a report must know, by what stands in it."""

from __future__ import annotations

from typing import Any

from eval.arms import EARLY_EXIT, GUARANTEE, PRUNED

ORACLE_CAVEAT = (
    "The oracle is an upper bound that has seen the answer: for each test sample it takes the shortest chain that the "
    "search found to be right. With few choices many tries hit the right one by luck, so part of it is no skill that "
    "a router could learn"
)
LUCK_UNKNOWN = "; how much is not measured in this report (wrong_records)."
LUCK_KNOWN = "; the controls say how much."
ALWAYS = (
    "flops_ratio counts matrix products of one pass over prompt and choices, the output head for one token and the "
    "router; it is not time.",
    "Intervals and p-values speak of other samples of this task, for this one trained router; they do not cover "
    "another training seed. mcnemar_p_holm is corrected for the number of comparisons, intervals are not.",
    "A bootstrap interval of a difference has no width where both arms answer every sample alike.",
    "Groups (task, difficulty, subject) are small and many: their intervals are not corrected for their number.",
)
DEPTH_CAVEAT = "Depth counts layers executed, not time; latency was not measured (python -m eval latency)."
JUDGED_CAVEAT = (
    "Every arm's answers are judged in mode {judged_mode}; the search looked for right chains in mode {mode}, in which "
    "the static chain was chosen too. A chain that is right in the first mode only is unknown to the oracle."
)
BY_ARM = {
    GUARANTEE: "The guarantee holds for samples drawn like the calibration split, with the stated probability over "
    "calibration draws.",
    EARLY_EXIT: "Early exit decides by the model's own confidence after one layer, chosen with its threshold on "
    "validation; deciding costs one more pass of the output head, which flops_ratio leaves out.",
    PRUNED: "The pruned chain leaves out the layers that change the states least (ShortGPT); nothing is healed by "
    "training afterwards.",
}


def caveats_of(
    mode: str, judged_mode: str, arms: set[str], controls: dict[str, Any] | None, latency: dict[str, Any] | None
) -> list[str]:
    """Return the caveats of a report, a sentence or two each."""
    known = controls is not None and controls.get("luck") is not None
    caveats = [ORACLE_CAVEAT + (LUCK_KNOWN if known else LUCK_UNKNOWN)]
    if latency is None:
        caveats.append(DEPTH_CAVEAT)
    caveats += [*ALWAYS, *(text for name, text in BY_ARM.items() if name in arms)]
    if mode != judged_mode:
        caveats.append(JUDGED_CAVEAT.format(mode=mode, judged_mode=judged_mode))
    return caveats
