"""An emulator of Google Cloud Storage on a loopback port, for tests."""

from __future__ import annotations

import contextlib
import os
import socketserver
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def emulated_bucket(name: str = "bucket") -> Iterator[None]:
    """Has gs://`name` served from the memory of this process, to it and to those that it starts."""
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.handlers import objects

    def with_generation(handler: Callable) -> Callable:
        """TensorStore needs a header that the emulator does not send."""

        def answer(request, response, storage, *arguments, **options) -> None:
            handler(request, response, storage, *arguments, **options)
            if response.status < 300:
                info = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
                response["x-goog-generation"] = str(info["generation"])

        return answer

    # Clients that hang up early are no news.
    socketserver.BaseServer.handle_error = lambda *arguments: None
    told = {handler: with_generation(handler) for handler in (objects.get, objects.download)}
    emulator.HANDLERS = tuple(
        (pattern, {method: told.get(handler, handler) for method, handler in handlers.items()})
        for pattern, handlers in emulator.HANDLERS
    )
    server = emulator.create_server("localhost", 0, in_memory=True, default_bucket=name)
    server.start()
    url = f"http://localhost:{server._api._httpd.server_address[1]}"
    os.environ |= {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    try:
        yield
    finally:
        server.stop()
