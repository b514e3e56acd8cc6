"""The web app: drop chest X-rays, see what the champion says of them and where it looked.

    make app                              # http://127.0.0.1:8000
    make app PORT=8100
    curl --data-binary @image.png -H "Content-Type: application/octet-stream" http://127.0.0.1:8000/predict

Listens on this machine alone unless --host says otherwise; there is no login. When the champion moves, the new one
answers without a restart. /predict, /model, /health, /ready and /metrics are described in /openapi.json; the limits
stand in params.yaml, section `app`. Keeps nothing: images are in memory while they are answered. Ctrl-C ends it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.cli import command_parser, run_command

if TYPE_CHECKING:
    from cxr.common.params import AppParams
    from cxr.webapp.limits import Limits


def app(params: AppParams, *, host: str, port: int, names: list[str], model: str, exact: bool) -> None:
    """Serve the page until the process is asked to end.

    Raises:
        RegistryError: there is no such version, or the store does not answer.
        PageError: the port is taken.
    """
    from cxr.registry.versions import get_version
    from cxr.webapp.server import Page, serve_page

    get_version(model)  # before it listens: without a champion there is nothing to wait for
    page = Page(_limits(params), names=names, model=model, fast=not exact, registry_seconds=params.champion_poll_s)
    serve_page(page, host=host, port=port)


def _limits(params: AppParams) -> Limits:
    from cxr.webapp.limits import MEGABYTE, Limits

    return Limits(
        upload_bytes=round(params.max_upload_mb * MEGABYTE),
        waiting=params.max_queued_images,
        waiting_bytes=round(params.max_queued_mb * MEGABYTE),
        batch_images=params.max_batch_images,
        read_workers=params.decode_workers,
        upload_seconds=params.upload_timeout_s,
        read_seconds=params.decode_timeout_s,
        answer_seconds=params.inference_timeout_s,
    )


def main() -> None:
    """Read the command line and serve."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="name it may be called by")
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    parser.add_argument("--exact", action="store_true", help="compute as the evaluation did, to the bit; slower")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (%(default)s)")
    given = parser.parse_args()

    from cxr.common.params import read_params  # after parsing: --help must not wait for pydantic

    app(
        read_params(given.params).app,
        host=given.host,
        port=given.port,
        names=given.allow_host,
        model=given.model,
        exact=given.exact,
    )


if __name__ == "__main__":
    run_command(main)
