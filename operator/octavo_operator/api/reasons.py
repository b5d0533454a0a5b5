"""Every reason that a condition can carry: one constant, one sentence on when it is used.

The server writes some of them into its termination log; those are taken over as they are (`SERVER_REASONS`).
"""

from __future__ import annotations

from typing import Final

ALL_READY: Final = "AllReplicasReady"
"""Every wanted replica takes requests."""
SOME_READY: Final = "SomeReplicasReady"
"""At least one replica takes requests."""
ROLLED_OUT: Final = "RolledOut"
"""The wanted revision runs alone and whole."""
ROLLING_OUT: Final = "RollingOut"
"""A new revision comes up beside the one that serves."""
ROLLOUT_PENDING: Final = "RolloutPending"
"""A new revision waits until it may begin."""
ROLLOUT_GATE_FAILED: Final = "RolloutGateFailed"
"""The new revision did not pass rollout.gate, so the one before came back; the message says what failed."""
MAX_HOLD_EXCEEDED: Final = "MaxHoldExceeded"
"""In a swap no replica of the new revision became ready within rollout.maxHold, so the one before came back."""
HOLDING_REQUESTS: Final = "HoldingRequests"
"""A swap leaves no replica ready for a while; the gateway holds requests meanwhile."""
FETCHED: Final = "Fetched"
"""The model is on its claim, whole and checked."""
ALL_SCHEDULED: Final = "AllScheduled"
"""Every pod has a node."""
SCALER_READY: Final = "ScalerReady"
"""The autoscaler reads the pressure and acts on it."""
SCALER_STARTING: Final = "ScalerStarting"
"""The autoscaler has not looked yet."""
SCALER_UNAVAILABLE: Final = "ScalerUnavailable"
"""The cluster lacks what scaling.backend needs; the message has the remedy."""
SCALING_BLOCKED: Final = "ScalingBlocked"
"""More replicas are wanted than are asked for, because some are still on their way; the message says what they wait for."""
CREATING: Final = "Creating"
"""Deployment or pods do not exist yet."""

INSUFFICIENT_GPU: Final = "InsufficientGPU"
"""The scheduler finds no node with enough free GPUs."""
INSUFFICIENT_RESOURCES: Final = "InsufficientResources"
"""The scheduler finds no node with enough CPU, memory or another resource that is no GPU."""
NODE_SELECTOR_MISMATCH: Final = "NodeSelectorMismatch"
"""No node bears the labels that placement or resources.gpu.product asks for."""
TAINT_NOT_TOLERATED: Final = "TaintNotTolerated"
"""Only tainted nodes are left, and placement.tolerations does not tolerate their taints."""
RESOURCE_CLAIM_PENDING: Final = "ResourceClaimPending"
"""A claim of resources.gpu.claims is not made yet, or its DeviceClass is absent."""
UNSCHEDULABLE: Final = "Unschedulable"
"""The scheduler gives another reason, which the message quotes."""
VOLUME_UNBOUND: Final = "VolumeUnbound"
"""A PersistentVolumeClaim is absent or not bound."""
QUOTA_EXCEEDED: Final = "QuotaExceeded"
"""A ResourceQuota of the namespace refuses the pods."""
POD_REFUSED: Final = "PodRefused"
"""The API server refuses the pods for another reason, such as an admission policy; the message quotes it."""

IMAGE_PULL_FAILED: Final = "ImagePullFailed"
"""The node cannot pull an image."""
SECRET_NOT_FOUND: Final = "SecretNotFound"
"""A Secret (or one of its entries) or ConfigMap that the pod needs does not exist."""
STARTING: Final = "Starting"
"""The container is being made, or the server starts and has not said more."""
DOWNLOADING: Final = "Downloading"
"""The server fetches the model."""
LOADING_WEIGHTS: Final = "LoadingWeights"
"""The server reads the weights into memory."""
WARMING_UP: Final = "WarmingUp"
"""The server compiles kernels and captures graphs."""
PROBE_FAILED: Final = "ProbeFailed"
"""The server has started, but its readiness probe fails, or it does not answer any more, such as with a dead node."""
HOST_OUT_OF_MEMORY: Final = "HostOutOfMemory"
"""The kernel killed the container for using more than resources.memory, or the node ran out."""
ENGINE_CRASHED: Final = "EngineCrashed"
"""The server ended without a reason of its own; the message has the exit code."""

MODEL_NOT_FOUND: Final = "ModelNotFound"
"""The model does not exist where `model` says."""
MODEL_INVALID: Final = "ModelInvalid"
"""The model is there, but a file of it is damaged, incomplete or contradicts its configuration."""
MODEL_ACCESS_DENIED: Final = "ModelAccessDenied"
"""The source refuses access; a token in source.secretRef may be needed."""
UNSUPPORTED_ARCHITECTURE: Final = "UnsupportedArchitecture"
"""The engine has no implementation of the model's architecture."""
CHECKSUM_MISMATCH: Final = "ChecksumMismatch"
"""The files are damaged or not the ones that were expected."""
DOWNLOAD_STALLED: Final = "DownloadStalled"
"""The download made no progress for too long."""
GPU_OUT_OF_MEMORY: Final = "GPUOutOfMemory"
"""Weights or activations do not fit into the GPU's memory."""
KV_CACHE_TOO_SMALL: Final = "KVCacheTooSmall"
"""What memory is left for the K/V cache cannot hold one sequence of maxModelLen."""
SPEC_INVALID: Final = "SpecInvalid"
"""The spec asks for something that cannot be; the message names the field and the remedy."""

DRAINING: Final = "Draining"
"""Replicas finish what runs before they leave."""
SCALED_TO_ZERO: Final = "ScaledToZero"
"""There are no replicas by intent."""
SUSPENDED: Final = "Suspended"
"""`suspend` is true: nothing is changed."""
METRICS_UNAVAILABLE: Final = "MetricsUnavailable"
"""The autoscaler cannot read the pressure."""
SERVED_NAME_CONFLICT: Final = "ServedNameConflict"
"""An older ModelDeployment holds one of the served names."""
KEYS_UNREADABLE: Final = "KeysUnreadable"
"""A Secret of access.keysFrom cannot be read, so the gateway refuses requests for the model."""
NAME_TAKEN: Final = "NameTaken"
"""An object of the name that we need exists and belongs to somebody else."""
CLUSTER_ERROR: Final = "ClusterError"
"""The API server refused a write or did not answer; it is tried again."""

SERVER_REASONS: Final = frozenset(
    {
        MODEL_NOT_FOUND,
        MODEL_INVALID,
        MODEL_ACCESS_DENIED,
        UNSUPPORTED_ARCHITECTURE,
        CHECKSUM_MISMATCH,
        DOWNLOAD_STALLED,
        GPU_OUT_OF_MEMORY,
        KV_CACHE_TOO_SMALL,
        HOST_OUT_OF_MEMORY,
        SPEC_INVALID,
        ENGINE_CRASHED,
    }
)
"""Reasons that a server may give in its termination log."""
