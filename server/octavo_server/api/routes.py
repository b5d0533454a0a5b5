"""The one table of endpoints: what is not here is not served, and what is here is described in `/openapi.json`."""

from __future__ import annotations

from octavo_server.api import (
    adapters,
    batches,
    chat,
    completions,
    embeddings,
    files,
    life,
    models,
    openapi,
    responses,
    scores,
    tokens,
)

ENDPOINTS = (
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *responses.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *scores.ENDPOINTS,
    *models.ENDPOINTS,
    *tokens.ENDPOINTS,
    *files.ENDPOINTS,
    *batches.ENDPOINTS,
    *adapters.ENDPOINTS,
    *life.ENDPOINTS,
    *openapi.ENDPOINTS,
)
