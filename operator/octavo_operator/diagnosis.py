"""Why a pod does not serve: one reason and one sentence, from its conditions, containers, last words and `/startup`.

Never guesses: a state that is not in these tables is told as Kubernetes tells it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from octavo_operator.api import reasons
from octavo_operator.api.quantity import parse_quantity
from octavo_operator.api.types import JsonObject
from octavo_operator.observed import Node, Pod, Startup, refusal_of
from octavo_operator.units import bytes_text, seconds_text

MAX_QUOTE = 400
"""Characters of somebody else's message that a condition repeats."""

STALLED_S = 60.0
"""A download that has got nothing for so long is called stalled; the server itself gives up later."""

# Ordered: what a person can act on comes before what passes by itself.
SEVERITY = (
    reasons.NAME_TAKEN,
    reasons.KEYS_UNREADABLE,
    reasons.QUOTA_EXCEEDED,
    reasons.POD_REFUSED,
    reasons.SECRET_NOT_FOUND,
    reasons.IMAGE_PULL_FAILED,
    reasons.SPEC_INVALID,
    reasons.MODEL_NOT_FOUND,
    reasons.MODEL_ACCESS_DENIED,
    reasons.MODEL_INVALID,
    reasons.UNSUPPORTED_ARCHITECTURE,
    reasons.CHECKSUM_MISMATCH,
    reasons.GPU_OUT_OF_MEMORY,
    reasons.KV_CACHE_TOO_SMALL,
    reasons.HOST_OUT_OF_MEMORY,
    reasons.ENGINE_CRASHED,
    reasons.VOLUME_UNBOUND,
    reasons.INSUFFICIENT_GPU,
    reasons.NODE_SELECTOR_MISMATCH,
    reasons.TAINT_NOT_TOLERATED,
    reasons.INSUFFICIENT_RESOURCES,
    reasons.UNSCHEDULABLE,
    reasons.DOWNLOAD_STALLED,
    reasons.PROBE_FAILED,
    reasons.DOWNLOADING,
    reasons.LOADING_WEIGHTS,
    reasons.WARMING_UP,
    reasons.STARTING,
    reasons.CREATING,
)

_STAGES = {
    "starting": (reasons.STARTING, "starts"),
    "downloading": (reasons.DOWNLOADING, "downloads the model"),
    "loading_weights": (reasons.LOADING_WEIGHTS, "loads the weights"),
    "warming_up": (reasons.WARMING_UP, "warms up"),
}
_IMAGE_WAITS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        # Of a model that is an image volume.
        "ImageVolumeMountFailed",
    }
)
_CONFIG_WAITS = frozenset({"CreateContainerConfigError", "CreateContainerError"})
_VOLUME_WORDS = (
    "persistentvolumeclaim",
    "volume node affinity conflict",
    "volume zone",
    "didn't find available persistent",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why something is not as it should be."""

    reason: str
    sentence: str


def worst(findings: Iterable[Finding]) -> Finding | None:
    """The one to tell first; the first of equals."""
    return min(findings, key=lambda finding: SEVERITY.index(finding.reason), default=None)


def diagnose_pod(pod: Pod, startup: Startup | None, nodes: tuple[Node, ...] | None, gpu: str) -> Finding | None:
    """None for a pod that serves. `gpu` is the extended resource that stands for one GPU."""
    return None if pod.is_ready else diagnose_download(pod, startup, nodes, gpu)


def diagnose_download(pod: Pod, startup: Startup | None, nodes: tuple[Node, ...] | None, gpu: str) -> Finding:
    """As `diagnose_pod`, of one that only fetches: that it runs is not the end."""
    if pod.waits_for_node:
        return _unschedulable(pod, str(pod.condition("PodScheduled").get("message", "")), nodes, gpu)
    return _waiting(pod) or _ended(pod, startup) or _loading(pod, startup)


def diagnose_deployment(deployment: JsonObject) -> Finding | None:
    """Why the controller cannot make pods, None where it can."""
    failure = refusal_of(deployment)
    if failure is None:
        return None
    message = quote(str(failure.get("message", "")))
    reason = reasons.QUOTA_EXCEEDED if "exceeded quota" in message else reasons.POD_REFUSED
    return Finding(reason=reason, sentence=f"the cluster refuses the pods: {message}")


def _unschedulable(pod: Pod, message: str, nodes: tuple[Node, ...] | None, gpu: str) -> Finding:
    lowered = message.lower()
    if f"insufficient {gpu}".lower() in lowered:
        return Finding(reason=reasons.INSUFFICIENT_GPU, sentence=_gpu_sentence(pod, nodes, gpu))
    if any(words in lowered for words in _VOLUME_WORDS):
        return Finding(reason=reasons.VOLUME_UNBOUND, sentence=f"pod {pod.name} waits for its volume: {quote(message)}")
    table = (
        ("insufficient ", reasons.INSUFFICIENT_RESOURCES, "finds no node with enough room"),
        ("node affinity/selector", reasons.NODE_SELECTOR_MISMATCH, "finds no node that placement allows"),
        (
            "untolerated taint",
            reasons.TAINT_NOT_TOLERATED,
            "finds only nodes with taints that placement does not tolerate",
        ),
    )
    for words, reason, what in table:
        if words in lowered:
            return Finding(reason=reason, sentence=f"pod {pod.name} {what}: {quote(message)}")
    return Finding(reason=reasons.UNSCHEDULABLE, sentence=f"pod {pod.name} has no node: {quote(message)}")


def _gpu_sentence(pod: Pod, nodes: tuple[Node, ...] | None, gpu: str) -> str:
    wanted = _gpus_of(pod, gpu)
    needs, free = f"pod {pod.name} needs {wanted} {gpu}", "one free" if wanted == "1" else "as many free"
    if nodes is None:
        return f"{needs}, no node has {free}"
    offering = [node for node in nodes if node.capacity.get(gpu, "0") != "0"]
    if not offering:
        return f"{needs}, none of {len(nodes)} nodes offers {gpu}; is its device plugin installed?"
    cordoned = sum(node.is_cordoned for node in offering)
    tainted = sum(node.has_taints and not node.is_cordoned for node in offering)
    open_ones = [node for node in offering if not node.is_cordoned and not node.has_taints]
    small = sum(_number(node.capacity[gpu]) < _number(wanted) for node in open_ones)
    full = "full" if wanted == "1" else "with fewer free"
    counts = (
        (len(open_ones) - small, full),
        (small, f"with fewer than {wanted} in all"),
        (cordoned, "cordoned"),
        (tainted, "tainted or full"),
    )
    parts = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f"{needs}, 0 of {len(offering)} GPU nodes have {free} ({parts})"


def _gpus_of(pod: Pod, gpu: str) -> str:
    containers = pod.raw.get("spec", {}).get("containers", [])
    limits = (container.get("resources", {}).get("limits", {}) for container in containers)
    return next((str(limit[gpu]) for limit in limits if gpu in limit), "1")


def _number(quantity: str) -> Decimal:
    return parse_quantity(quantity) or Decimal(0)


def _waiting(pod: Pod) -> Finding | None:
    """A container that the kubelet cannot make."""
    for container in pod.containers:
        waiting = container.get("state", {}).get("waiting", {})
        why, message = waiting.get("reason", ""), quote(waiting.get("message", ""))
        if why in _IMAGE_WAITS:
            what = f"pod {pod.name} cannot pull image {container.get('image', '')}: {message or why}"
            return Finding(reason=reasons.IMAGE_PULL_FAILED, sentence=what)
        if why in _CONFIG_WAITS:
            is_missing = "not found" in message or "couldn't find key" in message
            reason = reasons.SECRET_NOT_FOUND if is_missing else reasons.POD_REFUSED
            return Finding(reason=reason, sentence=f"pod {pod.name} cannot be made: {message or why}")
    return None


def _ended(pod: Pod, startup: Startup | None) -> Finding | None:
    """A server that failed, now or before its present start: told until it is up, so that the reason does not flap.

    The last words of the server itself win.
    """
    server = pod.server
    ended = server.get("state", {}).get("terminated") or server.get("lastState", {}).get("terminated")
    if not ended or (startup is not None and startup.stage == "ready"):
        return None
    loops = server.get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff"
    if ended.get("exitCode") == 0 and not loops:
        # It was asked to stop and is started anew.
        return None
    restarts = f" (restart {server['restartCount']})" if server.get("restartCount") else ""
    words = last_words(str(ended.get("message", "")))
    if words is not None:
        return Finding(reason=words.reason, sentence=f"pod {pod.name}: {words.sentence}{restarts}")
    if ended.get("reason") == "OOMKilled":
        what = f"pod {pod.name} was killed for want of memory; raise resources.memory{restarts}"
        return Finding(reason=reasons.HOST_OUT_OF_MEMORY, sentence=what)
    said = f": {quote_end(str(ended['message']))}" if ended.get("message") else ""
    what = f"pod {pod.name}: the server ended with exit code {_exit_text(ended.get('exitCode'))}{restarts}{said}"
    return Finding(reason=reasons.ENGINE_CRASHED, sentence=what)


def _exit_text(code: object) -> str:
    """With the signal's name where a signal ended the process."""
    try:
        return f"{code} ({signal.Signals(int(str(code)) - 128).name})"
    except ValueError:
        return str(code)


def last_words(text: str) -> Finding | None:
    """The termination log's JSON line; None where it is something else."""
    for line in reversed(text.strip().splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("reason") in reasons.SERVER_REASONS:
            return Finding(reason=said["reason"], sentence=quote(str(said.get("message", ""))))
    return None


def _loading(pod: Pod, startup: Startup | None) -> Finding:
    where = f" on node {pod.node}" if pod.node else ""
    if not pod.server.get("state", {}).get("running"):
        return Finding(reason=reasons.STARTING, sentence=f"pod {pod.name} is being made{where}")
    if startup is None:
        return Finding(reason=reasons.STARTING, sentence=f"pod {pod.name} starts{where}")
    if startup.is_downloading and startup.idle_s >= STALLED_S:
        what = f"pod {pod.name} gets nothing for {seconds_text(startup.idle_s)}{_progress(startup)}{where}"
        return Finding(reason=reasons.DOWNLOAD_STALLED, sentence=f"{what}; check the network and the model's source")
    if startup.stage in _STAGES:
        reason, doing = _STAGES[startup.stage]
        return Finding(reason=reason, sentence=f"pod {pod.name} {doing}{_progress(startup)}{where}")
    if startup.stage == "failed":
        said = f": {quote(startup.message)}" if startup.message else ""
        return Finding(reason=reasons.ENGINE_CRASHED, sentence=f"pod {pod.name} failed to start{said}")
    return Finding(
        reason=reasons.PROBE_FAILED, sentence=f"pod {pod.name} has started, but its readiness probe has not passed"
    )


def _progress(startup: Startup) -> str:
    if not startup.total_bytes or startup.stage not in ("downloading", "loading_weights"):
        return ""
    left = f", {seconds_text(startup.left_s)} left" if startup.left_s else ""
    return f", {bytes_text(startup.done_bytes, startup.total_bytes, ' of ')}{left}"


def quote(text: str) -> str:
    """One bounded line of somebody else's words."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTE else f"{line[: MAX_QUOTE - 1]}…"


def quote_end(text: str) -> str:
    """As `quote`, but the end: a log tells its cause last."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTE else f"…{line[1 - MAX_QUOTE :]}"
