"""Artifact bytes with Range, If-Range and If-Match."""

from __future__ import annotations

import re

from tests.plugins.hawkbit.model.entities import Artifact, Unknown
from tests.plugins.hawkbit.model.routes import Request, Response


def served(request: Request, artifact: Artifact) -> Response:
    etag = f'"{artifact.sha1}"'
    size = len(artifact.data)
    headers = {
        "content-type": "application/octet-stream",
        "etag": etag,
        "accept-ranges": "bytes",
        "content-disposition": f"attachment;filename={artifact.filename}",
    }
    match = request.headers.get("if-match")
    if match is not None and match not in ("*", artifact.sha1):
        return Response(412)
    wanted = request.headers.get("range")
    condition = request.headers.get("if-range")
    if wanted is None or (condition is not None and condition.strip('"') != artifact.sha1):
        return Response(200, artifact.data, headers)
    if "," in wanted:
        raise Unknown(f"several ranges: {wanted}")
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if not found or found.groups() == ("", ""):
        return Response(416, b"", {**headers, "content-range": f"bytes */{size}"})
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size or start > end:
        return Response(416, b"", {**headers, "content-range": f"bytes */{size}"})
    headers["content-range"] = f"bytes {start}-{end}/{size}"
    return Response(206, artifact.data[start : end + 1], headers)
