"""The page at `/`: static files that speak to the HTTP API of the same server, and to nobody else."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import PurePosixPath

from fastapi import APIRouter, Request
from starlette.responses import Response

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


def _read() -> dict[str, tuple[bytes, str]]:
    """Content and media type of each file, by its address."""
    files = {f"/page/{file.name}": file for file in resources.files(__name__).iterdir()}
    files["/page/style.css"] = resources.files("chameleon_jax.pages").joinpath("style.css")  # that of all our pages
    files["/"] = files.pop("/page/index.html")
    types = {address: _TYPES.get(PurePosixPath(file.name).suffix) for address, file in files.items()}
    return {address: (files[address].read_bytes(), kind) for address, kind in types.items() if kind}


FILES = _read()
"""Small enough to be kept in memory. They hold no secrets, and ask for no key: one is entered on the page."""

router = APIRouter(include_in_schema=False)


async def _file(request: Request) -> Response:
    content, kind = FILES[request.scope["route"].path]
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:20]}"'}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


for _address in FILES:
    router.add_api_route(_address, _file, methods=["GET", "HEAD"])
