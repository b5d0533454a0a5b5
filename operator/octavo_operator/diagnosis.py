"""Why a pod does not serve: one reason and one sentence, from its conditions, containers, last words and `/startup`.

Never guesses: a state that is not in these tables is told as Kubernetes tells it.
"""

from __future__ import annotations

import json
import signal

from octavo_operator.api import reasons
from octavo_operator.api.types import JsonObject
from octavo_operator.finding import Finding, quote, quote_end
from octavo_operator.observed import Node, Pod, Startup, refusal_of
from octavo_operator.units import bytes_text, seconds_text
from octavo_operator.unscheduled import diagnose_unscheduled

STALLED_S = 60.0
"""A download that has got nothing for so long is called stalled; the server itself gives up later."""
QUOTA_REMEDY = "raise that ResourceQuota, or free what it counts"

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


def diagnose_pod(pod: Pod, startup: Startup | None, nodes: tuple[Node, ...] | None, gpu: str) -> Finding | None:
    """None for a pod that serves. `gpu` is the extended resource that stands for one GPU."""
    return None if pod.is_ready else diagnose_download(pod, startup, nodes, gpu)


def diagnose_download(pod: Pod, startup: Startup | None, nodes: tuple[Node, ...] | None, gpu: str) -> Finding:
    """As `diagnose_pod`, of one that only fetches: that it runs is not the end."""
    # The scheduler does not look at a pod, nor says so, before its claims are made.
    if pod.waits_for_node or (pod.claims_to_come and not pod.node):
        return diagnose_unscheduled(pod, nodes, gpu)
    return _waiting(pod) or _ended(pod, startup) or _loading(pod, startup)


def diagnose_deployment(deployment: JsonObject) -> Finding | None:
    """Why the controller cannot make pods, None where it can."""
    failure = refusal_of(deployment)
    if failure is None:
        return None
    message = quote(str(failure.get("message", "")))
    what = f"the cluster refuses the pods: {message}"
    if "exceeded quota" in message:
        return Finding(reason=reasons.QUOTA_EXCEEDED, sentence=f"{what}; {QUOTA_REMEDY}")
    return Finding(reason=reasons.POD_REFUSED, sentence=what)


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
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict) and said.get("reason") in reasons.SERVER_REASONS:
            return Finding(reason=said["reason"], sentence=quote(str(said.get("message", ""))))
    return None


def _loading(pod: Pod, startup: Startup | None) -> Finding:
    where = f" on node {pod.node}" if pod.node else ""
    if not pod.server.get("state", {}).get("running"):
        return Finding(reason=reasons.STARTING, sentence=f"pod {pod.name} is being made{where}")
    if startup is None and pod.has_fallen:
        what = f"pod {pod.name} was ready and does not answer any more{where}"
        return Finding(
            reason=reasons.PROBE_FAILED, sentence=f"{what}; is the node up, and what does the pod's log say?"
        )
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
