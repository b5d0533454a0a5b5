"""What the engine's thread or process does: load, then step while there is work and sleep while there is none.

It speaks to the clients' side by a channel alone, and knows neither asyncio nor sockets. Whatever is wrong with one
request ends that request; whatever is wrong with the engine is its last event.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from octavo_server.engine.engine import FAILED_MESSAGE, OutputDelta
from octavo_server.engine.messages import Abort, Add, Died, Progressed, Ready, Stepped, Stop
from octavo_server.engine.request import FinishReason
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import EngineDeadError, OctavoError, StartupError

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo_server.engine.build import LoadedEngine
    from octavo_server.engine.engine import Engine
    from octavo_server.engine.messages import Command, Event
    from octavo_server.engine.request import Request

    Build = Callable[[StartupProgress], LoadedEngine]

logger = logging.getLogger(__name__)

IDLE_S = 1.0
"""After so long without a command an idle engine sees whether it could still compute."""


class Channel(Protocol):
    """The way to the clients' side."""

    def receive(self, *, wait: bool) -> list[Command]:
        """The commands that have come, in order; with `wait` at least one, or none after IDLE_S. Never blocks without it."""

    def post(self, event: Event) -> None:
        """Sends an event, in order. Never blocks: what cannot leave now leaves later."""


def run_engine(build: Build, channel: Channel) -> bool:
    """Loads and serves until it is told to stop; False where it died instead."""
    try:
        loaded = build(_told_progress(channel))
        channel.post(Ready(limits=loaded.engine.limits, snapshot=loaded.engine.snapshot(), resolved=loaded.resolved))
    except StartupError as error:
        return _died(channel, error)
    except Exception:
        logger.exception("the model could not be loaded")
        return _died(channel, StartupError("EngineCrashed", "the model could not be loaded; the log holds the reason"))
    try:
        _serve(loaded.engine, channel)
    except EngineDeadError as error:
        logger.error("the engine died: %s", error)
        channel.post(Died(message=f"the engine died: {error}"))
        return False
    except Exception as error:
        logger.exception("the engine died")
        channel.post(Died(message=f"the engine died: {type(error).__name__}"))
        return False
    finally:
        loaded.close()
    return True


def _died(channel: Channel, error: StartupError) -> bool:
    channel.post(Died(reason=error.reason, message=str(error)))
    return False


def _told_progress(channel: Channel) -> StartupProgress:
    def tell(progress: StartupProgress) -> None:
        channel.post(
            Progressed(
                stage=progress.stage,
                bytes=progress.bytes,
                total_bytes=progress.total_bytes,
                message=progress.message,
                stage_seconds=progress.stage_seconds,
                location=progress.location,
            )
        )

    return StartupProgress(on_change=tell)


def _serve(engine: Engine, channel: Channel) -> None:
    num_taken = num_commands = 0
    while True:
        deltas: list[OutputDelta] = []
        commands = channel.receive(wait=not engine.has_work)
        if not commands and not engine.has_work:
            engine.check()
            continue
        for command in commands:
            num_commands += 1
            match command:
                case Add(request=request):
                    num_taken += request.params.n
                    deltas += _add(engine, request)
                case Abort(request_id=request_id):
                    engine.abort(request_id)
                case Stop():
                    return
        if engine.has_work:
            deltas += engine.step()
        channel.post(
            Stepped(
                deltas=deltas,
                snapshot=engine.snapshot(),
                num_taken=num_taken,
                num_commands=num_commands,
                records=engine.take_records(),
            )
        )


def _add(engine: Engine, request: Request) -> list[OutputDelta]:
    """Adds the request; where that fails, the terminal deltas that say so."""
    try:
        engine.add_request(request)
    except OctavoError as error:
        message = str(error)
    except Exception:
        logger.exception("a request could not be added", extra={"request_id": request.request_id})
        message = FAILED_MESSAGE
    else:
        return []
    return [
        OutputDelta(request_id=request.request_id, index=index, finish_reason=FinishReason.ERROR, error=message)
        for index in range(request.params.n)
    ]
