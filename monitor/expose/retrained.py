"""The families of a model's retraining policy: what was decided, what is waited for, what the limits leave.

Everything is read from the policy's status, which the trigger made from its ledger, and from the launches themselves:
nothing is counted here. Known series start at 0, so that a first increase is seen as one. What cannot be (GPU hours of a
policy that does not bound them) has no series.

Cost: some forty series per model that is retrained. Neighbours: `exporter` puts them beside the others of a monitor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monitor import metrics
from monitor.decisions import PolicyStatus
from monitor.expose.exposition import Page
from monitor.flow import FINAL_STATES, Launch


def put_policy(page: Page, model: str, policy: PolicyStatus) -> None:
    """Decisions by reason, what a severe alarm waits for, and what the budgets leave."""
    known = {("launch", "none"): 0, **{("no", reason): 0 for reason in metrics.DECISION_REASONS}}
    page.put(metrics.DECISIONS, [((model, *labels), count) for labels, count in (known | dict(policy.counts)).items()])
    waiting = policy.waiting.reason if policy.waiting else ""
    page.put(metrics.LAUNCH_WAITING, [((model, reason), reason == waiting) for reason in metrics.WAITING_REASONS])
    if policy.waiting is not None and policy.waiting.until:
        page.put(metrics.LAUNCH_WAITING_UNTIL, [((model,), policy.waiting.until)])
    page.put(metrics.RETRAIN_BUDGET, [((model,), policy.budget_remaining)])
    if policy.gpu_hours_remaining is not None:
        page.put(metrics.GPU_SECONDS_REMAINING, [((model,), 3_600 * policy.gpu_hours_remaining)])
    page.put(metrics.USELESS_LAUNCHES, [((model,), policy.useless)])


def put_calls(page: Page, model: str, launchers: Sequence[str], launches: Sequence[Launch], earlier: Mapping[str, int]) -> None:
    """Calls that carry a launch on and failed: how many, and whether one is waiting to be tried again.

    launchers : the types that the model's launches have or would have        launches : of the model, as far as they are held
    earlier   : launcher -> failed calls of those that are no longer held
    """
    for launcher in launchers:
        mine = [launch for launch in launches if launch.launcher == launcher]
        retrying = any(launch.retry_at > 0 and launch.state not in FINAL_STATES for launch in mine)
        failed = earlier.get(launcher, 0) + sum(launch.attempts for launch in mine)
        page.put(metrics.LAUNCH_CALLS_FAILED, [((model, launcher), failed)])
        page.put(metrics.LAUNCH_RETRYING, [((model, launcher), retrying)])
