"""`report.json`: every measure of an evaluation, rebuilt from its files alone, without the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.groups import groups_of
from eval.metrics import arm_of, chance_accuracy, collapse_of, paired
from eval.policies import ARMS, FULL, ORACLE, RANDOM, ROUTER, STATIC
from eval.results import RESULTS_FILE, PolicyResult, read_results, read_run
from eval.static import STATIC_FILE, read_static
from router.command import InputError, plain_values
from router.durable import read_json, require_file, sha256_file, write_json

SCHEMA = 2
"""Version of the report's format."""
REPORT_FILE = "report.json"
SAMPLE_FIELDS = ("task", "difficulty", "subject", "choices")
"""Fields of a result that are the sample's, whatever the arm."""

CAVEATS = (
    "The oracle is an upper bound that has seen the answer: for each test sample it takes the shortest chain that the "
    "search found to be right. With few choices many tries hit the right one by luck, so part of it is no skill that "
    "a router could learn; the controls that measure this part (a search told a wrong answer) are not in this report.",
    "Depth counts layers executed, not time; what the router itself costs is not in it.",
    "Intervals and p-values speak of other samples of this task, for this one trained router; they do not cover "
    "another training seed, and p-values are not corrected for the number of arms.",
    "A bootstrap interval of a difference has no width where both arms answer every sample alike.",
    "Groups (task, difficulty, subject) are small and many: their intervals are not corrected for their number.",
)
JUDGED_CAVEAT = (
    "Every arm's answers are judged in mode {judged_mode}; the search looked for right chains in mode {mode}, in which "
    "the static chain was chosen too. A chain that is right in the first mode only is unknown to the oracle."
)
"""Added where the two modes differ."""


def write_report(out: Path) -> dict[str, Any]:
    """Rebuild `report.json` from `run.json`, `static.json` and the per-sample results.

    Returns:
        The report.

    Raises:
        InputError: where a file is missing or corrupt, or an arm's results are not complete.
    """
    report = build_report(out)
    write_json(out / REPORT_FILE, report)
    return report


def build_report(out: Path) -> dict[str, Any]:
    """Return the report's content; see `write_report`."""
    run = read_run(out)
    path = require_file(out / RESULTS_FILE, "out")
    try:
        num_layers, seed, n = run["model"]["num_layers"], run["identity"]["seed"], run["n"]
        keys = ("provenance", "task", "mode", "judged_mode", "split", "model", "fingerprints")
        described = {key: run[key] for key in keys}
        inputs, notes, oracle_found = run["identity"]["inputs"], run["notes"], run["oracle_found"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{out}: expected a complete run.json, got one without {error}") from error
    by_arm = arms_of(read_results(path, num_layers), n, path)
    read_static(out / STATIC_FILE, num_layers)  # refuses a file without a chain
    static = read_json(out / STATIC_FILE)
    full = by_arm[FULL]
    budget = run["identity"].get("budget")
    labels = ARMS if budget is None else ARMS | {ROUTER: f"{ARMS[ROUTER]}, budget {budget:g} layers"}
    arms = [
        {"name": name, "label": label, **asdict(arm_of(by_arm[name], full, seed))} for name, label in labels.items()
    ]
    caveats = list(CAVEATS)
    if run["mode"] != run["judged_mode"]:
        caveats.append(JUDGED_CAVEAT.format(mode=run["mode"], judged_mode=run["judged_mode"]))
    report: dict[str, Any] = {
        "schema": SCHEMA,
        **described,
        "inputs": inputs,
        "results_sha256": sha256_file(path),
        "n": n,
        "chance_accuracy": chance_accuracy(full),
        "arms": arms,
        "groups": [asdict(group) for group in groups_of(by_arm, seed)],
        "router_against": {name: asdict(paired(by_arm[ROUTER], by_arm[name], seed)) for name in (STATIC, RANDOM)},
        "router_collapse": asdict(collapse_of(by_arm[ROUTER])),
        "oracle": {
            "label": ARMS[ORACLE],
            "right_chain_in_records": oracle_found,
            "right_when_run_again": sum(result.correct for result in by_arm[ORACLE]),
        },
        "static": static,
        "caveats": caveats,
        "notes": notes,
    }
    plain: dict[str, Any] = plain_values(report)  # tuples as lists: the same as what is read back
    return plain


def arms_of(results: list[PolicyResult], n: int, path: Path) -> dict[str, list[PolicyResult]]:
    """Return each arm's results by sample id, complete and on the same samples.

    Raises:
        InputError: where results are missing, or belong to no arm.
    """
    by_arm: dict[str, list[PolicyResult]] = {name: [] for name in ARMS}
    for result in results:
        if result.policy not in by_arm:
            raise InputError(f"{path}: expected the policies {', '.join(ARMS)}, got {result.policy!r}")
        by_arm[result.policy].append(result)
    for name, of_arm in by_arm.items():
        of_arm.sort(key=lambda result: result.sample_id)
        if len(of_arm) != n or [r.sample_id for r in of_arm] != [r.sample_id for r in by_arm[FULL]]:
            raise InputError(
                f"{path}: expected {n} samples for each arm, got {len(of_arm)} for {name}; run python -m eval again"
            )
        for one, full in zip(of_arm, by_arm[FULL], strict=True):
            if [getattr(one, key) for key in SAMPLE_FIELDS] != [getattr(full, key) for key in SAMPLE_FIELDS]:
                raise InputError(
                    f"{path}: expected sample {one.sample_id} alike in all arms, got it otherwise in {name}"
                )
    return by_arm
