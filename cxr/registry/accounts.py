"""MLflow's accounts of the services: each has its own password and the permission that it needs, no more.

MLflow checks these on its server, when it runs with accounts on (infra/mlflow.sh). A permission is granted on all
experiments and all registered models; with EDIT a service also owns what it creates itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cxr.common.errors import RegistryError
from cxr.registry import tracking_store

if TYPE_CHECKING:
    from mlflow.server.auth.client import AuthServiceClient

PERMISSIONS: Mapping[str, str] = {"worker": "EDIT", "app": "READ", "pacs": "READ"}
"""Account -> permission. The worker records runs, registers versions and moves aliases; the others only read."""

_RESOURCES = ("experiment", "registered_model")
_EVERY = "*"


def set_account(name: str, password: str) -> None:
    """Make the account of a service, or give the present one this password and exactly its permission.

    Args:
        name: a key of PERMISSIONS.
        password: at least 12 characters; MLflow rejects a shorter one.

    Raises:
        RegistryError: the store is no MLflow server with accounts on, or ours is not an administrator's.
    """
    if not tracking_store.is_server(tracking_store.tracking_uri()):
        raise RegistryError(
            f"{tracking_store.public_uri()} has no accounts; set {tracking_store.STORE_VARIABLE} to the address of an "
            "MLflow server that runs by infra/mlflow.sh"
        )
    tracking_store.client()
    from mlflow.server import get_app_client

    accounts: AuthServiceClient = get_app_client("basic-auth", tracking_uri=tracking_store.tracking_uri())
    with tracking_store.store_errors(f"setting up the account {name}"):
        if tracking_store.unless_present(lambda: accounts.create_user(name, password)) is None:
            accounts.update_user_password(name, password)
            accounts.update_user_admin(name, is_admin=False)
        for resource in _RESOURCES:
            _grant(accounts, name, resource)


def _grant(accounts: AuthServiceClient, name: str, resource: str) -> None:
    """Grant the permission of the account; a grant can't be changed, so another one is revoked first."""
    wanted = PERMISSIONS[name]

    def grant() -> bool:
        accounts.grant_user_permission(name, resource, _EVERY, wanted)
        return True

    if tracking_store.unless_present(grant):
        return
    if accounts.get_user_permission(name, resource, _EVERY).permission != wanted:
        accounts.revoke_user_permission(name, resource, _EVERY)
        grant()
