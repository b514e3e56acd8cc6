"""Turn errors of Prefect's server, unreachable or refusing the account, into one line for the user."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import NoReturn

from cxr.common.cli import run_command
from cxr.common.errors import CxrError
from cxr.registry.tracking_store import without_credentials

_UNREACHABLE = "Failed to reach API"


class PrefectServerError(CxrError):
    """Prefect's server refuses the account or does not answer."""

    exit_code = 9


def run_flow_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a flow's command line as `run_command` does, with Prefect's own errors in words too."""

    def guarded() -> int | None:
        with server_errors():
            return main()

    run_command(guarded)


@contextmanager
def server_errors() -> Iterator[None]:
    """Turn Prefect's errors about its server into a PrefectServerError without credentials."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError
    from pydantic import ValidationError

    try:
        yield
    except PrefectHTTPStatusError as error:
        if error.response.status_code in {401, 403}:
            raise PrefectServerError(
                f"Prefect's server {_address()} refused the account; set PREFECT_API_AUTH_STRING to its user:password"
            ) from None
        raise _away(f"answered {error.response.status_code}") from None
    except (JSONDecodeError, ValidationError):
        raise _away("does not answer as Prefect does") from None
    except httpx.TransportError as error:
        raise _away(f"does not answer ({type(error).__name__})") from None
    except RuntimeError as error:
        if _UNREACHABLE in str(error):
            raise _away("does not answer") from None
        raise


def _away(what: str) -> PrefectServerError:
    return PrefectServerError(
        f"Prefect's server {_address()} {what}; check that it runs and that PREFECT_API_URL is right, then run the "
        "same command again: finished stages stay finished"
    )


def _address() -> str:
    return without_credentials(os.environ.get("PREFECT_API_URL", "of this run"))
