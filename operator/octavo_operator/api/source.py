"""`spec.model` and `spec.source`: where the model comes from, by the same rules as the CRD's."""

from __future__ import annotations

import re

from octavo_operator.api.reader import ObjectReader
from octavo_operator.api.types import SecretRef, Source

MODEL = (
    r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._/-]+\.gguf)?(@[A-Za-z0-9][A-Za-z0-9._/-]*)?"
    r"|https://[^\s/@?#]+/([^\s?#]*/)?([^\s/?#]+\.gguf)?(\?[^\s#]*)?"
    r"|(s3|gs)://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]/[^\s/?#][^\s?#]*"
    r"|oci://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?"
    r"|file:///\S+"
    r"|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/\S*)?"
)
MODEL_REMEDY = (
    "must be hf://ORG/NAME[/FILE.gguf][@REVISION], https://HOST/FILE.gguf or https://HOST/FOLDER/, s3://BUCKET/PATH, "
    "gs://BUCKET/PATH, oci://REGISTRY/REPOSITORY[:TAG|@sha256:DIGEST], file:///PATH or pvc://CLAIM[/PATH]"
)
CHECKSUM = r"(sha256:[0-9a-f]{64})?"
HERE = ("file", "pvc")
"""Schemes of what is mounted and not fetched."""
BY_TOKEN = ("hf", "https")
"""Schemes whose credential is one token."""


def parse_model(spec: ObjectReader) -> str:
    """`spec.model`; "" where it cannot be."""
    model = spec.string("model", pattern=MODEL, remedy=MODEL_REMEDY)
    if not spec.has("model"):
        spec.complain("model", "is required, such as hf://Qwen/Qwen2.5-7B-Instruct")
    elif ".." in model.split("/"):
        spec.complain("model", "must not contain '..'")
    return model


def parse_source(raw: ObjectReader, model: str) -> Source:
    """`spec.source`; what has no meaning for the model's scheme is refused."""
    scheme = model.partition("://")[0]
    source = Source(
        secret_ref=_secret_ref(raw, scheme),
        checksum=raw.string("checksum", pattern=CHECKSUM, remedy="must be sha256: and 64 digits or letters a to f"),
        allow=raw.strings("allow", most=32),
    )
    if scheme in HERE:
        for field in ("secretRef", "allow"):
            if raw.has(field):
                raw.complain(field, f"is for models that are fetched; {scheme}:// is mounted")
    for pattern in source.allow:
        if not re.fullmatch(r"[A-Za-z0-9*?\[\]._/-]{1,256}", pattern):
            raw.complain("allow", f"{pattern!r} is no pattern of file names, such as *.safetensors")
    raw.finish()
    return source


def _secret_ref(source: ObjectReader, scheme: str) -> SecretRef | None:
    raw = source.child("secretRef")
    name, key = raw.string("name"), raw.string("key")
    if source.has("secretRef") and not name:
        raw.complain("name", "is required: the name of a Secret in the same namespace")
    if key and scheme not in BY_TOKEN:
        raw.complain("key", f"is for hf:// and https://; for {scheme}:// the entries are called as the variables")
    raw.finish()
    return SecretRef(name=name, key=key or "token") if name else None
