"""Serve the web app: drop chest X-rays, see the champion's probabilities and where it looked.

    make app                              # http://127.0.0.1:8000
    make app PORT=8100
    curl --data-binary @image.png -H "Content-Type: application/octet-stream" http://127.0.0.1:8000/predict

With a token in CXR_APP_TOKEN, or in the file of CXR_APP_TOKEN_FILE, programs send it (`Authorization: Bearer TOKEN`)
and browsers sign in with it. Without one it listens on this machine alone. When the champion moves, the new version
answers without a restart. /openapi.json describes /predict, /model, /health, /ready and /metrics; the limits are in
params.yaml, section `app`. Images are never stored: they stay in memory until they are classified. What a
reader says about an answer is: a row in paths.feedback, with the digest of the image. Stop with Ctrl-C.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cxr.common.cli import add_engine_argument, answer_help, port_number, run_command, step_parser


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = step_parser(sys.modules[__name__])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=port_number, default=8000, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="further host name of the service; repeatable"
    )
    parser.add_argument(
        "--without-token", action="store_true", help="listen on an address of --host that others reach, without a token"
    )
    parser.add_argument(
        "--trust-proxy", action="append", default=[], metavar="NETWORK",
        help="address or network of a proxy whose X-Forwarded-For and -Proto are believed; repeatable",
    )  # fmt: skip
    parser.add_argument("--model", default="champion", help="alias or version number (%(default)s)")
    add_engine_argument(parser, default="openvino")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

from cxr.common.command_params import AppParams
from cxr.common.params import read_params
from cxr.registry.versions import get_version
from cxr.webapp.limits import MEGABYTE, Limits
from cxr.webapp.server import WebApp, check_openness, serve, trusted
from cxr.webapp.sign_in import take_token


def app(params: AppParams, given: Namespace, *, feedback: Path) -> None:
    """Serve the web app until the process is interrupted.

    Args:
        params: the limits.
        given: the command line.
        feedback: the table of what readers say.

    Raises:
        ParamsError: the token is unusable, or missing where others reach the service.
        RegistryError: there is no such version, or the registry does not respond.
        ListenError: the port is taken.
    """
    token = take_token()
    check_openness(given.host, token, without_token=given.without_token)
    get_version(given.model)  # fail at once if there is no champion
    webapp = WebApp(
        limits_of(params),
        names=given.allow_host,
        token=token,
        proxies=[trusted(name) for name in given.trust_proxy],
        model=given.model,
        engine=given.engine,
        champion_poll_s=params.champion_poll_s,
        feedback=feedback,
    )
    serve(webapp, host=given.host, port=given.port)


def limits_of(params: AppParams) -> Limits:
    """Return the limits as the service takes them."""
    return Limits(
        max_upload_bytes=round(params.max_upload_mb * MEGABYTE),
        max_queued_images=params.max_queued_images,
        max_queued_bytes=round(params.max_queued_mb * MEGABYTE),
        max_batch_images=params.max_batch_images,
        max_images_per_minute=params.max_images_per_minute,
        max_feedback_per_minute=params.max_feedback_per_minute,
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
    app(params.app, given, feedback=params.paths.feedback)


if __name__ == "__main__":
    run_command(main)
