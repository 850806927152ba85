"""What is read out of each kind's object: shapes as the controllers write them, and odd ones."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.flow import JobStatus
from monitor.retrain.launchers.kubernetes_kinds import KINDS
from monitor.retrain.launchers.kubernetes_status import read


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z"}


def pod(phase: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": phase} | status}


def child(**counts: int) -> dict[str, Any]:
    return {"name": "node", "active": 0, "ready": 0, "succeeded": 0, "failed": 0, "suspended": 0} | counts


UNSCHEDULABLE = pod("Pending", conditions=[
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}])
PULLING = pod("Pending", containerStatuses=[{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}])
STARTING = pod("Pending", containerStatuses=[{"state": {"waiting": {"reason": "ContainerCreating"}}}])
RUNNING = pod("Running")
KILLED = pod("Failed", containerStatuses=[{"state": {"terminated": {"exitCode": 137, "message": "step 9\nout of memory\n"}}}])
OUT_OF_MEMORY = pod("Failed", containerStatuses=[{"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}])
EVICTED = pod("Failed", reason="Evicted", message="The node was low on memory.")
WORDS = "exit code 137: step 9 out of memory"

CASES: list[tuple[str, dict[str, Any], list[Any], JobStatus]] = [
    ("Job", {}, [], JobStatus("queued")),
    ("Job", {"active": 1, "ready": 0}, [UNSCHEDULABLE], JobStatus("queued", "Unschedulable: 0/3 nodes")),
    ("Job", {"active": 1, "ready": 0}, [PULLING], JobStatus("queued", "stuck: ImagePullBackOff: no such image")),
    ("Job", {"active": 1, "ready": 0}, [STARTING], JobStatus("queued", "ContainerCreating")),
    ("Job", {"active": 1, "ready": 0}, [], JobStatus("queued")),
    ("Job", {"active": 1, "ready": 1}, [], JobStatus("running")),
    ("Job", {"active": 1, "ready": 0}, [RUNNING], JobStatus("running")),
    ("Job", {"active": 1}, [], JobStatus("running")),
    ("Job", {"conditions": [condition("Suspended", "JobSuspended", "Job suspended")]}, [],
     JobStatus("queued", "JobSuspended: Job suspended")),
    ("Job", {"conditions": [condition("Suspended", status="False"), condition("SuccessCriteriaMet")], "active": 1}, [],
     JobStatus("running")),
    ("Job", {"conditions": [condition("FailureTarget", "DeadlineExceeded", "too long")]}, [],
     JobStatus("running", "DeadlineExceeded: too long")),
    ("Job", {"conditions": [condition("SuccessCriteriaMet"), condition("Complete")]}, [], JobStatus("succeeded")),
    ("Job", {"conditions": [condition("FailureTarget"), condition("Failed", "BackoffLimitExceeded")]}, [KILLED],
     JobStatus("failed", f"BackoffLimitExceeded; {WORDS}")),
    ("Job", {"conditions": [condition("Failed", "PodFailurePolicy")]}, [OUT_OF_MEMORY],
     JobStatus("failed", "PodFailurePolicy; exit code 137 (OOMKilled)")),
    ("Job", {"conditions": [condition("Failed", "BackoffLimitExceeded")]}, [EVICTED],
     JobStatus("failed", "BackoffLimitExceeded; Evicted: The node was low on memory.")),
    ("Job", {"failed": 1}, [KILLED], JobStatus("queued", f"1 failed before; {WORDS}")),
    ("Job", {"conditions": [condition("Complete", status="False")], "ready": 1}, [], JobStatus("running")),
    ("Job", {"conditions": None, "active": None}, [], JobStatus("queued")),
    ("TrainJob", {}, [], JobStatus("queued")),
    ("TrainJob", {"conditions": [condition("Suspended", "Suspended", "TrainJob is suspended")]}, [],
     JobStatus("queued", "Suspended: TrainJob is suspended")),
    ("TrainJob", {"conditions": [condition("Suspended", "Resumed", status="False")], "jobsStatus": [child(active=1)]},
     [UNSCHEDULABLE], JobStatus("queued", "Unschedulable: 0/3 nodes")),
    ("TrainJob", {"jobsStatus": [child(active=1, ready=1)]}, [], JobStatus("running")),
    ("TrainJob", {"jobsStatus": [{"name": "node", "active": 1}]}, [], JobStatus("running")),
    ("TrainJob", {"jobsStatus": [child(active=1)]}, [RUNNING, RUNNING], JobStatus("running")),
    ("TrainJob", {"jobsStatus": [child(active=1)]}, [RUNNING, UNSCHEDULABLE], JobStatus("queued", "Unschedulable: 0/3 nodes")),
    ("TrainJob", {"conditions": [condition("Complete", "AllJobsCompleted"), condition("Suspended", status="False")]}, [],
     JobStatus("succeeded")),
    ("TrainJob", {"conditions": [condition("Failed", "TrainingRuntimeNotSupported", "no such runtime")]}, [],
     JobStatus("failed", "TrainingRuntimeNotSupported: no such runtime")),
    ("TrainJob", {"conditions": [condition("Failed", "DeadlineExceeded")]}, [], JobStatus("failed", "DeadlineExceeded")),
    ("PyTorchJob", {}, [], JobStatus("queued")),
    ("PyTorchJob", {"conditions": [condition("Created", "PyTorchJobCreated")]}, [], JobStatus("queued")),
    ("PyTorchJob", {"conditions": [condition("Running", "PyTorchJobRunning"), condition("Created")]}, [], JobStatus("running")),
    ("PyTorchJob", {"conditions": [condition("Running")]}, [UNSCHEDULABLE], JobStatus("queued", "Unschedulable: 0/3 nodes")),
    ("PyTorchJob", {"conditions": [condition("Created"), condition("Running", status="False"),
                                   condition("Restarting", "PyTorchJobRestarting", "1 Master restarts")]}, [],
     JobStatus("queued", "PyTorchJobRestarting: 1 Master restarts")),
    ("PyTorchJob", {"conditions": [condition("Created"), condition("Suspended", "PyTorchJobSuspended")]}, [],
     JobStatus("queued", "PyTorchJobSuspended")),
    ("PyTorchJob", {"conditions": [condition("Running", status="False"), condition("Succeeded", "PyTorchJobSucceeded")]}, [],
     JobStatus("succeeded")),
    ("PyTorchJob", {"conditions": [condition("Failed", "PyTorchJobFailed", "Master failed"), condition("Created")]}, [KILLED],
     JobStatus("failed", f"PyTorchJobFailed: Master failed; {WORDS}")),
    ("JobSet", {}, [], JobStatus("queued")),
    ("JobSet", {"conditions": [condition("Suspended", "SuspendedJobs", "jobset is suspended")]}, [],
     JobStatus("queued", "SuspendedJobs: jobset is suspended")),
    ("JobSet", {"replicatedJobsStatus": [child(active=1)]}, [], JobStatus("queued")),
    ("JobSet", {"replicatedJobsStatus": [child(active=1, ready=1)], "restarts": 1}, [], JobStatus("running")),
    ("JobSet", {"conditions": [condition("Completed", "AllJobsCompleted")], "terminalState": "Completed"}, [],
     JobStatus("succeeded")),
    ("JobSet", {"conditions": [condition("Complete")], "replicatedJobsStatus": [child(ready=1)]}, [], JobStatus("running")),
    ("JobSet", {"conditions": [condition("Failed", "ReachedMaxRestarts", "1 restart")], "terminalState": "Failed"}, [],
     JobStatus("failed", "ReachedMaxRestarts: 1 restart")),
    ("JobSet", {"terminalState": "Failed"}, [KILLED], JobStatus("failed", WORDS)),
    ("RayJob", {}, [], JobStatus("queued")),
    ("RayJob", {"jobDeploymentStatus": "Initializing", "jobStatus": ""}, [UNSCHEDULABLE],
     JobStatus("queued", "Unschedulable: 0/3 nodes")),
    ("RayJob", {"jobDeploymentStatus": "Waiting"}, [], JobStatus("queued")),
    ("RayJob", {"jobDeploymentStatus": "Suspended"}, [], JobStatus("queued", "Suspended")),
    ("RayJob", {"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, [], JobStatus("running")),
    ("RayJob", {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, [RUNNING], JobStatus("running")),
    ("RayJob", {"jobDeploymentStatus": "Running", "jobStatus": "SUCCEEDED"}, [], JobStatus("succeeded")),
    ("RayJob", {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, [], JobStatus("succeeded")),
    ("RayJob", {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, [], JobStatus("failed", "STOPPED")),
    ("RayJob", {"jobDeploymentStatus": "Complete"}, [],
     JobStatus("unknown", "the RayJob is Complete without a verdict of its job (no jobStatus)")),
    ("RayJob", {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit 1"}, [],
     JobStatus("failed", "AppFailed: exit 1")),
    ("RayJob", {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"}, [],
     JobStatus("failed", "DeadlineExceeded")),
    ("RayJob", {"jobDeploymentStatus": "ValidationFailed", "message": "bad name"}, [], JobStatus("failed", "bad name")),
    ("RayJob", {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, [], JobStatus("queued", "Retrying")),
    ("RayJob", {"jobDeploymentStatus": "Levitating"}, [], JobStatus("running", "Levitating")),
    ("Workflow", {}, [], JobStatus("queued")),
    ("Workflow", {"phase": "Pending", "message": "Waiting for ml/Mutex/retrain"}, [],
     JobStatus("queued", "Waiting for ml/Mutex/retrain")),
    ("Workflow", {"phase": "Running"}, [], JobStatus("running")),
    ("Workflow", {"phase": "Running"}, [UNSCHEDULABLE], JobStatus("queued", "Unschedulable: 0/3 nodes")),
    ("Workflow", {"phase": "Running"}, [pod("Succeeded"), UNSCHEDULABLE], JobStatus("running")),
    ("Workflow", {"phase": "Succeeded"}, [], JobStatus("succeeded")),
    ("Workflow", {"phase": "Failed", "message": "child failed"}, [], JobStatus("failed", "Failed: child failed")),
    ("Workflow", {"phase": "Error", "message": "no such template"}, [], JobStatus("failed", "Error: no such template")),
    ("Workflow", {"phase": "Omitted"}, [], JobStatus("running", "Omitted")),
    ("PipelineRun", {}, [], JobStatus("queued")),
    ("PipelineRun", {"conditions": [condition("Succeeded", "Running", "Tasks Completed: 0", "Unknown")]}, [],
     JobStatus("running")),
    ("PipelineRun", {"conditions": [condition("Succeeded", "Running", "", "Unknown")]}, [UNSCHEDULABLE],
     JobStatus("queued", "Running; Unschedulable: 0/3 nodes")),
    ("PipelineRun", {"conditions": [condition("Succeeded", "PipelineRunPending", "waits", "Unknown")]}, [],
     JobStatus("queued", "PipelineRunPending: waits")),
    ("PipelineRun", {"conditions": [condition("Succeeded", "Completed")]}, [], JobStatus("succeeded")),
    ("PipelineRun", {"conditions": [condition("Succeeded", "CouldntGetPipeline", "no such Pipeline", "False")]}, [],
     JobStatus("failed", "CouldntGetPipeline: no such Pipeline")),
    ("PipelineRun", {"conditions": [condition("Succeeded", "PipelineRunTimeout", "", "False")]}, [],
     JobStatus("failed", "PipelineRunTimeout")),
]


@pytest.mark.parametrize(("kind", "status", "pods", "expected"), CASES)
def test_an_object_is_read_as_it_is(kind: str, status: dict[str, Any], pods: list[Any], expected: JobStatus) -> None:
    assert read(kind, {"metadata": {}, "status": status}, pods) == expected


@pytest.mark.parametrize(("kind", "status", "pods", "expected"), [case for case in CASES if case[1].get("conditions")])
def test_the_order_of_conditions_does_not_matter(kind: str, status: dict[str, Any], pods: list[Any], expected: JobStatus) -> None:
    for order in itertools.permutations(status["conditions"]):
        assert read(kind, {"status": status | {"conditions": list(order)}}, pods) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_no_controller_has_seen_yet_is_queued(kind: str) -> None:
    assert [read(kind, found).state for found in ({}, {"status": None}, {"spec": None}, {"spec": {"suspend": True}})] == [
        "queued"] * 4


def test_of_two_nodes_one_alone_does_not_train() -> None:
    job = {"spec": {"parallelism": 2}, "status": {"active": 2, "ready": 1}}
    assert read("Job", job, [RUNNING, UNSCHEDULABLE]) == JobStatus("queued", "Unschedulable: 0/3 nodes")
    assert read("Job", job | {"status": {"active": 2, "ready": 2}}, [RUNNING, RUNNING]).state == "running"


def test_a_training_that_its_queue_took_back_is_queued_again() -> None:
    assert read("Job", {"spec": {"suspend": True}, "status": {"conditions": [condition("Suspended")]}}).state == "queued"
    assert read("PyTorchJob", {"spec": {"runPolicy": {"suspend": True}}, "status": {"conditions": [
        condition("Created"), condition("Running", status="False")]}}).state == "queued"


ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(
    ["True", "Failed", "Complete", "Completed", "Succeeded", "Running", "SUCCEEDED"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "status", "reason", "message", "ready", "active", "conditions", "phase", "jobStatus", "jobsStatus",
         "jobDeploymentStatus", "containerStatuses", "state", "terminated", "waiting"]), inner, max_size=5), max_leaves=12)


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(["spec", "status"]), ANY), st.lists(
    st.fixed_dictionaries({"status": ANY}), max_size=2))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_status_whatever_it_holds_is_an_error(kind: str, found: dict[str, Any], pods: list[Any]) -> None:
    """What a server of another version answers is not ours to be surprised by."""
    assert read(kind, found, pods).state in {"queued", "running", "succeeded", "failed", "unknown"}
