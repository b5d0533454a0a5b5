"""One request's way: read, resolve the model, find a replica (or hold), send, pass on.

Never: a second attempt once a byte of an answer has been passed on; a body in memory beyond the budget; an accepted
request without exactly one end. Attempts on another replica:

| what came of an attempt               | then |
|---------------------------------------|------|
| no connection                         | another replica, or hold |
| sent, then cut before the first byte  | once more elsewhere (a request that crashes engines must not tour them), then 502 |
| 503 (loading or draining)             | another replica, or hold |
| 429 (queue full)                      | once elsewhere, then passed on |
| no byte within the limit              | 504 |
| silent, or cut, after its first byte  | an error event, or the connection is cut |
| anything else                         | passed on |
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from .admission import retry_after_s
from .call import Call, CallReader, ReadCall
from .endpoints import Model, Replica
from .errors import (
    GatewayError,
    KubeApiError,
    ModelNotFound,
    QuotaExceeded,
    TimedOut,
    Unavailable,
    UpstreamFailed,
    UpstreamStalled,
)
from .metrics import Metrics
from .record import Record
from .reply import EVENT_STREAM, ClientGone, Reply
from .request_body import BodyBudget, BodyLimits, BodyReader
from .request_log import CLIENT_CLOSED_REQUEST, RequestLog
from .router import Router
from .upstream import AttemptFailed, send
from .usage import BodyUsage, StreamUsage, UsageReader

logger = logging.getLogger(__name__)

RECHECK_S = 0.5
"""A held request looks again this often even if nothing was announced: a failed replica's pause ends by the clock."""
MAX_DISCONNECTS = 2
GIVE_UP_WITHIN_S = 5.0
"""Seconds to tell a client that its time is over, before its connection is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of requests; bytes and seconds."""

    body: BodyLimits
    max_buffered_bytes: int
    stall_timeout_s: float
    first_byte_timeout_s: float
    request_timeout_s: float


class Proxy:
    """Handles every request that names a model or a stored response; ``stop`` ends what still runs when the gateway itself goes."""

    def __init__(
        self,
        router: Router,
        calls: CallReader,
        log: RequestLog,
        metrics: Metrics,
        session: aiohttp.ClientSession,
        *,
        bounds: Bounds,
        refused_wakes: Mapping[str, KubeApiError],
    ) -> None:
        """`refused_wakes` tells by model key why it is not woken from zero."""
        self._router = router
        self._refused_wakes = refused_wakes
        self._calls = calls
        self._log = log
        self._metrics = metrics
        self._session = session
        self._bounds = bounds
        self._budget = BodyBudget(bounds.max_buffered_bytes)
        self._running: set[asyncio.Task[object]] = set()
        self._is_stopping = False
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        return len(self._running)

    @property
    def buffered_bytes(self) -> int:
        return self._budget.used_bytes

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handles a POST whose body names the model."""
        return await self._run(request, self._calls.read)

    async def handle_stored(self, request: web.Request) -> web.StreamResponse:
        """Handles what is asked about a stored response, whose id says where it lies."""
        return await self._run(request, self._calls.find)

    async def _run(self, request: web.Request, read_call: ReadCall) -> web.StreamResponse:
        """Answer, and write down how that went."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        record = self._log.begin(request)
        reply = Reply(request, record.request_id, close=self.is_draining)
        limit = asyncio.timeout(self._bounds.request_timeout_s or None)
        try:
            async with limit:
                return await self._answer(request, reply, read_call, record)
        except TimeoutError:
            if not limit.expired():
                raise
            return await self._give_up(reply)
        except asyncio.CancelledError:
            if self._is_stopping:
                return await reply.fail(_shutting_down())
            reply.code = CLIENT_CLOSED_REQUEST
            raise
        except ClientGone:
            reply.code = CLIENT_CLOSED_REQUEST
            raise ConnectionResetError("the client closed its connection") from None
        except Exception:
            # A fault of ours: the client is answered, and the traceback logged, by the application's last resort.
            reply.code = 500
            raise
        finally:
            self._running.discard(task)
            self._calls.settle(record, reply.code)
            self._log.end(record, reply.code)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs; False where the time was up first."""
        end = time.monotonic() + timeout_s
        while self._running and time.monotonic() < end:
            await asyncio.wait(list(self._running), timeout=end - time.monotonic())
        return not self._running

    async def stop(self, grace_s: float = 2.0) -> None:
        """End all running requests with an error that says why."""
        self._is_stopping = True
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=grace_s)

    async def _answer(
        self, request: web.Request, reply: Reply, read_call: ReadCall, record: Record
    ) -> web.StreamResponse:
        with BodyReader(self._budget, self._bounds.body) as reader:
            call: Call | None = None
            try:
                call = await read_call(request, reply, reader, record)
                return await self._serve(call)
            except GatewayError as error:
                if isinstance(error, QuotaExceeded):
                    model = self._metrics.label_of(record.model_key)
                    self._metrics.quota_rejections.labels(model, error.code or "").inc()
                return await reply.fail(error)
            finally:
                if call is not None and call.hold is not None:
                    record.held_s = self._router.leave(call.hold) or record.held_s

    async def _serve(self, call: Call) -> web.StreamResponse:
        while True:
            replica = call.pinned or await self._find_replica(call)
            with self._router.balancer.in_use(replica.url, now=self._router.clock()):
                response = await self._attempt(call, replica)
                if response is None:
                    continue
                try:
                    return await self._pass_on(call, response)
                except UpstreamFailed as failure:
                    why = "stalled" if isinstance(failure, UpstreamStalled) else "broken"
                    self._note_failure(call, replica, why)
                    raise
                finally:
                    # Not release: a half-read answer must close, so that the replica aborts the request.
                    response.close()

    async def _pass_on(self, call: Call, response: aiohttp.ClientResponse) -> web.StreamResponse:
        self._log.note_answer(call.record)
        if response.status != 200:
            return await call.reply.pass_on(response, stall_timeout_s=self._bounds.stall_timeout_s)
        is_stream = response.content_type == EVENT_STREAM
        reader: UsageReader = StreamUsage(hide=call.hides_usage) if is_stream else BodyUsage()
        try:
            return await call.reply.pass_on(response, reader, stall_timeout_s=self._bounds.stall_timeout_s)
        finally:
            call.record.usage = reader.usage

    async def _attempt(self, call: Call, replica: Replica) -> aiohttp.ClientResponse | None:
        """The response to pass on, or None where the next replica should be tried."""
        call.record.pod = replica.pod
        call.record.attempts += 1
        try:
            response = await send(
                self._session,
                replica.url,
                call.outbound,
                first_byte_timeout_s=self._bounds.first_byte_timeout_s,
            )
        except AttemptFailed as failure:
            self._note_failure(call, replica, failure.reason)
            self._note_sick(call, replica)
            if failure.reason == "timeout":
                raise TimedOut(
                    f"The replica did not begin to answer within {self._bounds.first_byte_timeout_s:g} s; "
                    "ask for less, or for a stream."
                ) from failure
            if call.pinned is not None:
                raise Unavailable(
                    "The replica that stores this response does not answer; ask again.",
                    code="replica_unreachable",
                    retry_after_s=1,
                ) from failure
            call.disconnects += failure.was_sent
            if call.disconnects >= MAX_DISCONNECTS:
                raise UpstreamFailed(
                    f"{call.disconnects} replicas closed the connection before they answered; "
                    "the request itself may be what breaks them."
                ) from failure
            return None
        self._note_answer(call, replica, response.status)
        if call.pinned is not None:
            return response
        if response.status == 503:
            response.close()
            self._note_failure(call, replica, "unavailable")
            return None
        if response.status == 429 and self._may_try_elsewhere(call, replica):
            response.close()
            self._count_error(call, "queue_full")
            return None
        return response

    def _may_try_elsewhere(self, call: Call, replica: Replica) -> bool:
        if call.was_refused:
            return False
        call.was_refused = True
        call.refused_by.add(replica.url)
        model = self._router.table.models.get(call.model_key)
        now = self._router.clock()
        return model is not None and self._router.balancer.choose(model, now=now, exclude=call.refused_by) is not None

    async def _find_replica(self, call: Call) -> Replica:
        """A replica that can take the request now; waits for one within the bounds of holding."""
        while True:
            model = self._router.table.models.get(call.model_key)
            if model is None:
                raise ModelNotFound(f"The model '{call.body.model}' was deleted while the request waited.")
            replica = self._choose(call, model)
            if replica is not None:
                if call.hold is not None:
                    call.record.held_s = self._router.leave(call.hold) or call.record.held_s
                return replica
            await self._wait(call, model)

    def _choose(self, call: Call, model: Model) -> Replica | None:
        now = self._router.clock()
        balancer = self._router.balancer
        replica = balancer.choose(model, now=now, affinity=call.affinity, exclude=call.refused_by)
        if replica is None and call.refused_by:
            # The one that said 429 is the only one left: it is asked again and its word passed on.
            call.refused_by.clear()
            replica = balancer.choose(model, now=now, affinity=call.affinity)
        return replica

    async def _wait(self, call: Call, model: Model) -> None:
        if model.is_switched_off:
            raise Unavailable(
                f"The model '{call.body.model}' has no replicas and nothing starts one: its ModelDeployment "
                f"{model.key} says replicas: 0 without scaling, or is suspended.",
                code="scaled_to_zero",
                retry_after_s=30,
            )
        hold = call.hold = call.hold or self._router.hold(model)
        retry_after = retry_after_s(hold_timeout_s=model.hold_timeout_s)
        if not self._router.enter(hold):
            raise Unavailable(
                f"No replica of '{call.body.model}' is ready and {model.max_held} requests already wait, "
                "which is its maxHeldRequests; try again later.",
                code="too_many_held",
                retry_after_s=retry_after,
            )
        now = self._router.clock()
        if hold.is_expired(now):
            raise Unavailable(
                f"No replica of '{call.body.model}' became ready within {model.hold_timeout_s:g} s (holdTimeout)."
                f"{self._why_asleep(model)}",
                code="hold_timeout",
                retry_after_s=retry_after,
            )
        if call.body.stream and hold.take_heartbeat(now):
            await call.reply.heartbeat()
        await self._router.wait_for_change(min(RECHECK_S, hold.wait_s(now, heartbeats=call.body.stream)))

    def _why_asleep(self, model: Model) -> str:
        """What the API server says is the log's: it names accounts."""
        refused = self._refused_wakes.get(model.key) if model.needs_wake else None
        if refused is None:
            return ""
        what = f"the API server answered {refused.status}" if refused.status else "the API server was not reached"
        return f" It stands at zero and could not be woken: {what}; the gateway's log says why."

    def _note_failure(self, call: Call, replica: Replica, reason: str) -> None:
        self._router.balancer.report_failure(replica.url, now=self._router.clock())
        self._count_error(call, reason)
        logger.warning(
            "attempt on a replica failed", extra={"model": call.model_key, "pod": replica.pod, "why": reason}
        )

    def _count_error(self, call: Call, reason: str) -> None:
        self._metrics.upstream_errors.labels(self._metrics.label_of(call.model_key), reason).inc()

    def _note_answer(self, call: Call, replica: Replica, status: int) -> None:
        """A 503 is a replica's word that it loads or drains; any other 5xx is taken for a sign of sickness."""
        if status >= 500 and status != 503:
            self._note_sick(call, replica)
        else:
            self._router.balancer.report_answer(replica.url)

    def _note_sick(self, call: Call, replica: Replica) -> None:
        seconds = self._router.balancer.report_sick(replica.url, now=self._router.clock())
        if seconds is not None:
            self._metrics.ejections.labels(self._metrics.label_of(call.model_key)).inc()
            logger.warning(
                "a replica failed too often in a row and is left alone",
                extra={"model": call.model_key, "pod": replica.pod, "seconds": seconds},
            )

    async def _give_up(self, reply: Reply) -> web.StreamResponse:
        """The request's time is over; a client that does not read must not keep it longer."""
        error = TimedOut(
            f"The request took longer than {self._bounds.request_timeout_s:g} s, the gateway's limit; "
            "ask for less, or in several requests."
        )
        try:
            async with asyncio.timeout(GIVE_UP_WITHIN_S):
                return await reply.fail(error)
        except (TimeoutError, asyncio.CancelledError):
            # Where a write was interrupted while the client does not read, aiohttp cancels the next one at once.
            return reply.cut()


def _shutting_down() -> Unavailable:
    return Unavailable("The gateway is shutting down; ask again.", code="shutting_down", retry_after_s=1)
