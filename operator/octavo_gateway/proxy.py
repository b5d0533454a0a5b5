"""One request's way: read, resolve the model, find a replica (or hold), send, pass on.

Never: a second attempt once a byte of an answer has been passed on; a body in memory beyond the budget; an accepted
request without exactly one end. Attempts on another replica:

| what came of an attempt               | then |
|---------------------------------------|------|
| no connection                         | another replica, or hold |
| sent, then cut before the first byte  | once more elsewhere (a request that crashes engines must not tour them), then 502 |
| 503 (loading or draining)             | another replica, or hold |
| 429 (queue full)                      | once elsewhere, then passed on |
| anything else                         | passed on |
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from . import headers
from .admission import Hold, retry_after_s
from .endpoints import Model, Replica
from .errors import GatewayError, ModelNotFound, ResponseNotFound, Unavailable, UpstreamFailed
from .keys import Gate, Key
from .metrics import UNKNOWN_MODEL, Metrics
from .reply import ClientGone, Reply
from .request_body import BodyBudget, BodyReader, InboundBody
from .router import Router
from .stored_responses import Place, find_place
from .upstream import AttemptFailed, UpstreamRequest, send

logger = logging.getLogger(__name__)

RECHECK_S = 0.5
"""A held request looks again this often even if nothing was announced: a failed replica's pause ends by the clock."""
MAX_DISCONNECTS = 2
CLIENT_CLOSED_REQUEST = 499


@dataclass(slots=True, kw_only=True)
class Call:
    """A request on its way through the gateway."""

    body: InboundBody
    model_key: str
    outbound: UpstreamRequest
    reply: Reply
    key: Key | None = None
    """Whose key let it in; None where the model is open."""
    affinity: str | None = None
    pinned: Replica | None = None
    """The one replica that can answer, because it stores what the request is about."""
    hold: Hold | None = None
    disconnects: int = 0
    refused_by: set[str] = field(default_factory=set)
    was_refused: bool = False


MakeCall = Callable[[web.Request, Reply, BodyReader, list[str]], Awaitable[Call]]
"""Reads a request; the list's one entry becomes the key of the model that it is counted for."""


class Proxy:
    """Handles every request that names a model or a stored response; ``stop`` ends what still runs when the gateway itself goes."""

    def __init__(
        self,
        router: Router,
        gate: Gate,
        metrics: Metrics,
        session: aiohttp.ClientSession,
        *,
        max_request_bytes: int,
        max_buffered_bytes: int,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._router = router
        self._gate = gate
        self._metrics = metrics
        self._session = session
        self._max_request_bytes = max_request_bytes
        self._budget = BodyBudget(max_buffered_bytes)
        self._new_id = new_id
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
        return await self._run(request, self._read_call)

    async def handle_stored(self, request: web.Request) -> web.StreamResponse:
        """Handles what is asked about a stored response, whose id says where it lies."""
        return await self._run(request, self._find_call)

    async def _run(self, request: web.Request, make_call: MakeCall) -> web.StreamResponse:
        """Answer, count, time."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._metrics.in_flight.inc()
        started = time.monotonic()
        request_id = headers.request_id_of(request, self._new_id)
        reply = Reply(request, request_id, close=self.is_draining)
        counted_as = [UNKNOWN_MODEL]
        try:
            return await self._answer(request, reply, make_call, counted_as)
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
            self._metrics.in_flight.dec()
            self._count(counted_as[0], reply.code, time.monotonic() - started, request_id)

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
        self, request: web.Request, reply: Reply, make_call: MakeCall, counted_as: list[str]
    ) -> web.StreamResponse:
        with BodyReader(self._budget, self._max_request_bytes) as reader:
            call: Call | None = None
            try:
                call = await make_call(request, reply, reader, counted_as)
                return await self._serve(call)
            except GatewayError as error:
                return await reply.fail(error)
            finally:
                if call is not None and call.hold is not None:
                    self._router.leave(call.hold)

    async def _read_call(self, request: web.Request, reply: Reply, reader: BodyReader, counted_as: list[str]) -> Call:
        authorization = request.headers.get("Authorization", "")
        self._gate.check_any(self._router.table, authorization)
        body = await reader.read(request)
        model = self._resolve(body.model, authorization)
        counted_as[0] = model.key
        key = self._gate.check(model, authorization)
        call = self._new_call(request, reply, body, model)
        call.key = key
        if body.previous_response_id is not None:
            call.pinned = self._place_of(body.previous_response_id, body, model).replica
        elif body.affinity is not None:
            call.affinity = f"{model.prefix_name(body.model)}/{body.affinity}"
        return call

    async def _find_call(self, request: web.Request, reply: Reply, reader: BodyReader, counted_as: list[str]) -> Call:
        self._check_complete()
        place = find_place(request.match_info["id"], self._router.table)
        counted_as[0] = place.model.key
        key = self._gate.check(place.model, request.headers.get("Authorization", ""))
        sent = _headers_to(place.model, request, reply)
        outbound = UpstreamRequest(path_qs=request.rel_url.raw_path_qs, headers=sent, body=None, method=request.method)
        body = InboundBody(raw=b"", model=place.model.key, stream=False, affinity=None)
        return Call(body=body, model_key=place.model.key, outbound=outbound, reply=reply, key=key, pinned=place.replica)

    def _place_of(self, response_id: str, body: InboundBody, model: Model) -> Place:
        place = find_place(response_id, self._router.table)
        if place.model.key != model.key:
            raise ResponseNotFound(
                f"The response '{response_id}' is not one of the model '{body.model}'; "
                f"'{place.model.shown_name}' gave it."
            )
        return place

    async def _serve(self, call: Call) -> web.StreamResponse:
        while True:
            replica = call.pinned or await self._find_replica(call)
            with self._router.balancer.in_use(replica.url):
                response = await self._attempt(call, replica)
                if response is None:
                    continue
                try:
                    return await call.reply.pass_on(response)
                except UpstreamFailed:
                    self._note_failure(call, replica, "broken")
                    raise
                finally:
                    # Not release: a half-read answer must close, so that the replica aborts the request.
                    response.close()

    async def _attempt(self, call: Call, replica: Replica) -> aiohttp.ClientResponse | None:
        """The response to pass on, or None where the next replica should be tried."""
        try:
            response = await send(self._session, replica.url, call.outbound)
        except AttemptFailed as failure:
            self._note_failure(call, replica, failure.reason)
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
        if call.pinned is not None:
            return response
        if response.status == 503:
            response.close()
            self._note_failure(call, replica, "unavailable")
            return None
        if response.status == 429 and self._may_try_elsewhere(call, replica):
            response.close()
            self._metrics.upstream_errors.labels(call.model_key, "queue_full").inc()
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
                    self._router.leave(call.hold)
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
                f"No replica of '{call.body.model}' became ready within {model.hold_timeout_s:g} s (holdTimeout).",
                code="hold_timeout",
                retry_after_s=retry_after,
            )
        if call.body.stream and hold.take_heartbeat(now):
            await call.reply.heartbeat()
        await self._router.wait_for_change(min(RECHECK_S, hold.wait_s(now, heartbeats=call.body.stream)))

    def _resolve(self, name: str, authorization: str) -> Model:
        table = self._router.table
        model = table.resolve(name)
        if model is not None:
            return model
        self._check_complete()
        may_see = partial(self._gate.may_use, authorization=authorization)
        raise ModelNotFound(table.explain_unknown(name, may_see), param="model")

    def _check_complete(self) -> None:
        if not self._router.table.is_complete:
            raise Unavailable("The gateway is still reading which models there are.", code="starting", retry_after_s=1)

    def _new_call(self, request: web.Request, reply: Reply, body: InboundBody, model: Model) -> Call:
        sent = _headers_to(model, request, reply)
        if body.stream:
            # A compressed stream could not follow the plain heartbeats of a hold.
            sent.popall("Accept-Encoding", None)
        sent_body = body.for_server(model.name_at_server(body.model))
        outbound = UpstreamRequest(path_qs=request.rel_url.raw_path_qs, headers=sent, body=sent_body)
        return Call(body=body, model_key=model.key, outbound=outbound, reply=reply)

    def _note_failure(self, call: Call, replica: Replica, reason: str) -> None:
        self._router.balancer.report_failure(replica.url, now=self._router.clock())
        self._metrics.upstream_errors.labels(call.model_key, reason).inc()
        logger.warning(
            "attempt on a replica failed", extra={"model": call.model_key, "pod": replica.pod, "why": reason}
        )

    def _count(self, model_key: str, code: int, seconds: float, request_id: str) -> None:
        logger.debug("request done", extra={"model": model_key, "code": code, "request_id": request_id})
        if model_key != UNKNOWN_MODEL and model_key not in self._router.table.models:
            model_key = UNKNOWN_MODEL
        self._metrics.requests.labels(model_key, str(code)).inc()
        self._metrics.request_seconds.labels(model_key).observe(seconds)


def _headers_to(model: Model, request: web.Request, reply: Reply) -> CIMultiDict[str]:
    sent = headers.to_upstream(request, reply.request_id)
    if model.access.keys_from:
        # The key was for the gateway; no server needs to see it.
        sent.popall("Authorization", None)
    return sent


def _shutting_down() -> Unavailable:
    return Unavailable("The gateway is shutting down; ask again.", code="shutting_down", retry_after_s=1)
