"""Serve the web app: drop chest X-rays, see the champion's probabilities and where it looked.

    make app                              # http://127.0.0.1:8000
    make app PORT=8100
    curl --data-binary @image.png -H "Content-Type: application/octet-stream" http://127.0.0.1:8000/predict

There is no login, so it listens on this machine alone unless --host says otherwise. When the champion moves, the new
version answers without a restart. /openapi.json describes /predict, /model, /health, /ready and /metrics; the limits
are in params.yaml, section `app`. Images are never stored: they stay in memory until they are classified. What a
reader says about an answer is: a row in paths.feedback, with the digest of the image. Stop with Ctrl-C.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from cxr.common.cli import add_engine_argument, answer_help, run_command, step_parser


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = step_parser(sys.modules[__name__])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="further host name of the service; repeatable"
    )
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    add_engine_argument(parser, default="openvino")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.command_params import AppParams
from cxr.common.engines import Engine
from cxr.common.params import read_params
from cxr.registry.versions import get_version
from cxr.webapp.limits import MEGABYTE, Limits
from cxr.webapp.server import WebApp, serve


def app(
    params: AppParams, *, host: str, port: int, names: list[str], model: str, engine: Engine, feedback: Path
) -> None:
    """Serve the web app until the process is interrupted.

    Raises:
        RegistryError: there is no such version, or the registry does not respond.
        ListenError: the port is taken.
    """
    get_version(model)  # fail at once if there is no champion
    webapp = WebApp(
        _limits(params),
        names=names,
        model=model,
        engine=engine,
        champion_poll_s=params.champion_poll_s,
        feedback=feedback,
    )
    serve(webapp, host=host, port=port)


def _limits(params: AppParams) -> Limits:
    return Limits(
        max_upload_bytes=round(params.max_upload_mb * MEGABYTE),
        max_queued_images=params.max_queued_images,
        max_queued_bytes=round(params.max_queued_mb * MEGABYTE),
        max_batch_images=params.max_batch_images,
        decode_workers=params.decode_workers,
        upload_timeout_s=params.upload_timeout_s,
        queue_timeout_s=params.queue_timeout_s,
        decode_timeout_s=params.decode_timeout_s,
        inference_timeout_s=params.inference_timeout_s,
    )


def main() -> None:
    """Read the command line and serve."""
    given = command_line().parse_args()
    params = read_params(given.params)
    app(
        params.app,
        host=given.host,
        port=given.port,
        names=given.allow_host,
        model=given.model,
        engine=given.engine,
        feedback=params.paths.feedback,
    )


if __name__ == "__main__":
    run_command(main)
