"""A request on its way: what is read of it, who sent it, which model it is for, and where it must or should go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

from . import headers
from .admission import Hold
from .endpoints import Audit, Model, Replica
from .errors import ModelNotFound, ResponseNotFound, Unavailable
from .keys import Gate
from .quotas import Quotas, Size
from .record import Record
from .reply import Reply
from .request_body import BodyReader, InboundBody
from .request_log import CLIENT_CLOSED_REQUEST
from .router import Router
from .stored_responses import Place, find_place
from .upstream import UpstreamRequest
from .usage import Usage

STREAMS_WITH_OPTIONS = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Whose streams tell usage only where they are asked to."""


@dataclass(slots=True, kw_only=True)
class Call:
    """A request that may be sent."""

    record: Record
    body: InboundBody
    outbound: UpstreamRequest
    reply: Reply
    affinity: str | None = None
    pinned: Replica | None = None
    """The one replica that can answer, because it stores what the request is about."""
    hold: Hold | None = None
    disconnects: int = 0
    refused_by: set[str] = field(default_factory=set)
    was_refused: bool = False
    hides_usage: bool = False
    """The gateway asked for the usage of the stream, not the client."""

    @property
    def model_key(self) -> str:
        return self.record.model_key


ReadCall = Callable[[web.Request, Reply, BodyReader, Record], Awaitable[Call]]
"""Reads a request and notes in the record what it finds; raises GatewayError for one that cannot be sent."""


class CallReader:
    """Turns requests into calls by the routing table and the keys of the moment."""

    def __init__(self, router: Router, gate: Gate, quotas: Quotas) -> None:
        self._router = router
        self._gate = gate
        self._quotas = quotas

    async def read(self, request: web.Request, reply: Reply, reader: BodyReader, record: Record) -> Call:
        """A POST whose body names the model."""
        authorization = request.headers.get("Authorization", "")
        self._gate.check_any(self._router.table, authorization)
        body = await reader.read(request)
        model = self._resolve(body.model, authorization)
        record.model_key, record.asked_model, record.is_stream = model.key, body.model, body.stream
        _note_audit(record, model, body.raw)
        record.key = self._gate.check(model, authorization)
        sent = _headers_to(model, request, record)
        # A compressed stream could not follow the plain heartbeats of a hold, nor could usage be read.
        sent.popall("Accept-Encoding", None)
        hides_usage = body.stream and not body.asks_for_usage and request.path in STREAMS_WITH_OPTIONS
        sent_body = body.for_server(model.name_at_server(body.model), ask_for_usage=hides_usage)
        outbound = UpstreamRequest(path_qs=request.rel_url.raw_path_qs, headers=sent, body=sent_body)
        call = Call(record=record, body=body, outbound=outbound, reply=reply, hides_usage=hides_usage)
        await self._reserve(model, body, record)
        if body.stored_id is not None:
            call.pinned = self._place_of(body.stored_id, body, model).replica
        elif body.affinity is not None:
            call.affinity = f"{model.prefix_name(body.model)}/{body.affinity}"
        return call

    async def find(self, request: web.Request, reply: Reply, _: BodyReader, record: Record) -> Call:
        """What is asked about a stored response, whose id says where it lies."""
        self._check_complete()
        place = find_place(request.match_info["id"], self._router.table)
        record.model_key = place.model.key
        _note_audit(record, place.model, b"")
        record.key = self._gate.check(place.model, request.headers.get("Authorization", ""))
        sent = _headers_to(place.model, request, record)
        outbound = UpstreamRequest(path_qs=request.rel_url.raw_path_qs, headers=sent, body=None, method=request.method)
        body = InboundBody(raw=b"", model=place.model.key, stream=False, affinity=None)
        return Call(record=record, body=body, outbound=outbound, reply=reply, pinned=place.replica)

    async def _reserve(self, model: Model, body: InboundBody, record: Record) -> None:
        if record.key is None or not model.access.limits.is_set:
            return
        size = Size(num_bytes=len(body.raw), max_tokens=body.max_tokens, num_answers=body.num_answers)
        account = f"{model.key} {record.key}"
        record.reservation = await self._quotas.admit(account, model.access.limits, size)

    def settle(self, record: Record, code: int) -> None:
        """What was reserved becomes what was used; an answer that does not tell leaves it as it is."""
        usage = record.usage
        if usage is None and code >= 400 and code != CLIENT_CLOSED_REQUEST:
            usage = Usage(prompt_tokens=0, output_tokens=0)
        if usage is not None and record.reservation is not None:
            self._quotas.settle(
                record.reservation, prompt_tokens=usage.prompt_tokens, output_tokens=usage.output_tokens
            )

    def _place_of(self, stored_id: str, body: InboundBody, model: Model) -> Place:
        place = find_place(stored_id, self._router.table)
        if place.model.key != model.key:
            raise ResponseNotFound(
                f"'{stored_id}' is not of a response of the model '{body.model}'; '{place.model.shown_name}' gave it."
            )
        return place

    def _resolve(self, name: str, authorization: str) -> Model:
        table = self._router.table
        model = table.resolve(name)
        if model is not None:
            return model
        self._check_complete()
        raise ModelNotFound(table.explain_unknown(name, self._gate.viewer(authorization)), param="model")

    def _check_complete(self) -> None:
        if not self._router.table.is_complete:
            raise Unavailable("The gateway is still reading which models there are.", code="starting", retry_after_s=1)


def _note_audit(record: Record, model: Model, body: bytes) -> None:
    record.audit = model.access.audit
    if record.audit is Audit.FULL:
        record.body = body


def _headers_to(model: Model, request: web.Request, record: Record) -> CIMultiDict[str]:
    sent = headers.to_upstream(request, record.request_id)
    record.trace.inject(sent)
    if model.access.keys_from:
        # The key was for the gateway; no server needs to see it.
        sent.popall("Authorization", None)
    return sent
