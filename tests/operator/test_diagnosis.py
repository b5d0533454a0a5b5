"""Why a pod does not serve: each real state of a pod with its reason and sentence."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.api import reasons
from octavo_operator.diagnosis import diagnose_deployment, diagnose_pod, last_words
from octavo_operator.finding import MAX_QUOTE, SEVERITY, Finding, quote, worst
from octavo_operator.observed import Pod, Startup
from octavo_testing.control_plane import a_deployment, a_pod, ended, running, termination_log, waiting

GPU = "nvidia.com/gpu"


def found(pod: Pod, startup: Startup | None = None) -> Finding:
    finding = diagnose_pod(pod, startup, None, GPU)
    assert finding is not None
    return finding


def test_serving_pod_has_no_finding() -> None:
    assert diagnose_pod(a_pod(ready=True), None, None, GPU) is None


STATES: dict[str, tuple[dict[str, Any], str, str]] = {
    "image": (
        waiting("ImagePullBackOff", "not found"),
        reasons.IMAGE_PULL_FAILED,
        "cannot pull image registry.test/octavo:1",
    ),
    "image without words": (waiting("ErrImagePull"), reasons.IMAGE_PULL_FAILED, "ErrImagePull"),
    "secret": (
        waiting("CreateContainerConfigError", 'secret "hf" not found'),
        reasons.SECRET_NOT_FOUND,
        'secret "hf" not found',
    ),
    "entry of a secret": (
        waiting("CreateContainerConfigError", "couldn't find key token in Secret default/hf"),
        reasons.SECRET_NOT_FOUND,
        "couldn't find key token",
    ),
    "other configuration": (waiting("CreateContainerError", "no such device"), reasons.POD_REFUSED, "no such device"),
    "configuration without words": (waiting("CreateContainerError"), reasons.POD_REFUSED, "made: CreateContainerError"),
    "own words": (
        waiting(
            "CrashLoopBackOff",
            restartCount=3,
            lastState=ended(1, termination_log("ModelNotFound", "no model at /x; check model")),
        ),
        reasons.MODEL_NOT_FOUND,
        "pod qwen-abc-1: no model at /x; check model (restart 3)",
    ),
    "out of memory": (
        waiting("CrashLoopBackOff", restartCount=1, lastState=ended(137, reason="OOMKilled")),
        reasons.HOST_OUT_OF_MEMORY,
        "raise resources.memory (restart 1)",
    ),
    "crash": (
        {"state": ended(139, "Segmentation fault")},
        reasons.ENGINE_CRASHED,
        "exit code 139 (SIGSEGV): Segmentation fault",
    ),
    "killed by nobody's known signal": ({"state": ended(255)}, reasons.ENGINE_CRASHED, "exit code 255"),
    "crash without words": ({"state": ended(2)}, reasons.ENGINE_CRASHED, "the server ended with exit code 2"),
    "crash that starts again": (
        running(restartCount=1, lastState=ended(1, termination_log("GPUOutOfMemory", "too big"))),
        reasons.GPU_OUT_OF_MEMORY,
        "too big (restart 1)",
    ),
    "clean end": (waiting("ContainerCreating", lastState=ended(0)), reasons.STARTING, "is being made on node node0"),
    "clean end again and again": (
        waiting("CrashLoopBackOff", restartCount=4, lastState=ended(0, "usage: octavo serve MODEL")),
        reasons.ENGINE_CRASHED,
        "the server ended with exit code 0 (restart 4): usage: octavo serve MODEL",
    ),
    "being made": (waiting("ContainerCreating"), reasons.STARTING, "is being made"),
    "runs": (running(), reasons.STARTING, "pod qwen-abc-1 starts on node node0"),
}


@pytest.mark.parametrize(("server", "reason", "words"), STATES.values(), ids=STATES.keys())
def test_containers_state_becomes_a_reason(server: dict[str, Any], reason: str, words: str) -> None:
    finding = found(a_pod(server=server))

    assert finding.reason == reason
    assert words in finding.sentence


STAGES = {
    "starting": reasons.STARTING,
    "downloading": reasons.DOWNLOADING,
    "loading_weights": reasons.LOADING_WEIGHTS,
    "warming_up": reasons.WARMING_UP,
    "ready": reasons.PROBE_FAILED,
    "failed": reasons.ENGINE_CRASHED,
}


@pytest.mark.parametrize(("stage", "reason"), STAGES.items())
def test_stage_of_the_start_becomes_a_reason(stage: str, reason: str) -> None:
    assert found(a_pod(server=running()), Startup(stage=stage)).reason == reason


def test_progress_and_failure_are_told() -> None:
    loading = Startup(stage="downloading", done_bytes=3_100_000_000, total_bytes=14_900_000_000)

    assert ", 3.1 of 14.9 GB" in found(a_pod(server=running()), loading).sentence
    small = Startup(stage="loading_weights", done_bytes=43_000_000, total_bytes=97_000_000)
    assert ", 43 of 97 MB" in found(a_pod(server=running()), small).sentence
    done = Startup(stage="warming_up", done_bytes=97_000_000, total_bytes=97_000_000)
    assert found(a_pod(server=running()), done).sentence.endswith("warms up on node node0")
    assert found(a_pod(server=running()), Startup(stage="failed", message="why")).sentence.endswith("start: why")


def test_what_has_no_size_yet_has_no_progress() -> None:
    assert found(a_pod(server=running()), Startup(stage="loading_weights")).sentence.endswith(
        "loads the weights on node node0"
    )


@pytest.mark.parametrize(
    ("stage", "idle_s", "reason"),
    [
        ("downloading", 59.9, reasons.DOWNLOADING),
        ("downloading", 60.0, reasons.DOWNLOAD_STALLED),
        ("loading_weights", 600.0, reasons.LOADING_WEIGHTS),
    ],
)
def test_only_a_download_that_gets_nothing_for_a_minute_is_stalled(stage: str, idle_s: float, reason: str) -> None:
    assert found(a_pod(server=running()), Startup(stage=stage, idle_s=idle_s)).reason == reason


def test_old_crash_is_not_blamed_for_a_server_that_has_started() -> None:
    pod = a_pod(server=running(lastState=ended(1)))

    assert found(pod, Startup(stage="ready")).reason == reasons.PROBE_FAILED


def test_crash_is_told_by_the_end_of_its_log() -> None:
    log = "Traceback (most recent call last):\n" + '  File "x.py", line 1\n' * 60 + "ValueError: the cause"
    finding = found(a_pod(server={"state": ended(1, log)}))

    assert finding.sentence.endswith("ValueError: the cause")
    assert ": …" in finding.sentence
    assert len(finding.sentence) < MAX_QUOTE + 100


def test_pod_that_was_ready_and_fell_silent_does_not_start() -> None:
    """Its node died a moment ago, and nobody has taken the pod away yet."""
    started = "2026-01-01T00:00:00Z"
    pod = a_pod(server={"state": {"running": {"startedAt": started}}})

    def at(turned: str) -> Finding:
        pod.raw["status"]["conditions"][0]["lastTransitionTime"] = turned
        return found(pod)

    assert at("2026-01-01T00:00:00Z").reason == reasons.STARTING
    assert at("2026-01-01T01:00:00Z") == Finding(
        reason=reasons.PROBE_FAILED,
        sentence="pod qwen-abc-1 was ready and does not answer any more on node node0; is the node up, and what does "
        "the pod's log say?",
    )


def test_pod_without_containers_is_being_made() -> None:
    assert found(a_pod(node="")).sentence == "pod qwen-abc-1 is being made"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: gpus, requested: 1, used: 4, limited: 4', reasons.QUOTA_EXCEEDED),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', reasons.POD_REFUSED),
        ('admission webhook "limits.test" denied the request: 8 GPUs exceeded', reasons.POD_REFUSED),
    ],
)
def test_refused_pods_are_told(message: str, reason: str) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": message}

    finding = diagnose_deployment(a_deployment("old", conditions=[failure]))

    assert finding is not None
    assert finding.reason == reason
    assert message in finding.sentence
    assert ("raise that ResourceQuota" in finding.sentence) == (reason == reasons.QUOTA_EXCEEDED)


def test_deployment_without_failure_has_no_finding() -> None:
    conditions = [{"type": "ReplicaFailure", "status": "False"}, {"type": "Available", "status": "True"}]

    assert diagnose_deployment(a_deployment("old", conditions=conditions)) is None


@pytest.mark.parametrize("text", ["", "Traceback", '{"reason": "MadeUp", "message": "x"}', "[1]", '"x"', "[" * 4096])
def test_termination_log_that_is_not_ours_is_no_reason(text: str) -> None:
    assert last_words(text) is None


def test_last_line_of_the_termination_log_wins() -> None:
    before = termination_log("EngineCrashed", "an earlier one")
    text = f"some noise\n{before}\n" + termination_log("KVCacheTooSmall", "64 tokens fit") + "\n\n"

    assert last_words(text) == Finding(reason="KVCacheTooSmall", sentence="64 tokens fit")


def test_worst_is_what_a_person_can_act_on() -> None:
    loading = Finding(reason=reasons.LOADING_WEIGHTS, sentence="a")
    missing = Finding(reason=reasons.MODEL_NOT_FOUND, sentence="b")

    assert worst([loading, missing]) == missing
    assert worst([]) is None


def test_a_pod_without_a_node_is_told_by_the_schedulers_words() -> None:
    pod = a_pod(unschedulable="0/1 nodes are available: 1 Insufficient memory.", server=running())

    assert found(pod).reason == reasons.INSUFFICIENT_RESOURCES


def test_a_pod_whose_claims_are_not_made_waits_for_them_though_the_scheduler_is_silent() -> None:
    """Before all claims are there the scheduler does not even look at it."""
    pod = a_pod(node="")
    pod.raw["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "two-gpus"}]

    assert found(pod).reason == reasons.RESOURCE_CLAIM_PENDING

    pod.raw["status"]["resourceClaimStatuses"] = [{"name": "gpu", "resourceClaimName": "x"}]

    assert found(pod).reason == reasons.STARTING


def test_every_reason_of_the_server_has_its_rank() -> None:
    assert set(SEVERITY) >= reasons.SERVER_REASONS
    assert len(set(SEVERITY)) == len(SEVERITY)


def test_quotes_are_one_bounded_line() -> None:
    assert quote("a\n  b") == "a b"
    assert len(quote("x" * 1000)) == MAX_QUOTE
