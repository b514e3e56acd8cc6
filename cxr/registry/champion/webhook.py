"""MLflow's own webhook: its server says at once that an alias was set or removed, and signs what it says.

Only an MLflow server sends them; a client that writes to the database itself does not. So a webhook saves waiting, and
whoever relies on it also looks at intervals (flows.watch).

The server needs MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY, with which it stores the signing secret, and, to reach an address
of this machine, `TO_THIS_MACHINE`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cxr.common.errors import RegistryError
from cxr.common.files import read_json
from cxr.registry import tracking_store

SIGNING_VARIABLE = "CXR_WEBHOOK_SECRET"
KEY_VARIABLE = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
TO_THIS_MACHINE = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_CACHE_TTL": "5",
}
"""Settings of an MLflow server whose receiver is on the same machine; the last says for how long it keeps the list."""
KEYS_FILE = "webhook-keys.json"
"""In the folder of the store, whose database holds one of them encrypted with the other."""
MOST_BYTES = 64 * 1024
_NAME = "cxr-alias-moves"
_ACTIONS = ("created", "deleted")
_SIGNED = ("delivery-id", "timestamp", "signature")
_MOST_AGE_SECONDS = 300
_MOST_DIGITS = 20  # of a time in seconds


@dataclass(frozen=True)
class WebhookSecrets:
    """`signing` signs each message; `encryption_key` is what MLflow's server stores it with."""

    signing: str = field(repr=False)
    encryption_key: str = field(repr=False)

    def as_environment(self) -> dict[str, str]:
        """Return the variables that MLflow's server and the receiver read."""
        return {SIGNING_VARIABLE: self.signing, KEY_VARIABLE: self.encryption_key}


def read_secrets(file: Path) -> WebhookSecrets:
    """Return the secrets of the environment, else those of `file`, which is made when it is missing, for its owner.

    Raises:
        RegistryError: the file holds something else.
    """
    given = os.environ.get(SIGNING_VARIABLE, ""), os.environ.get(KEY_VARIABLE, "")
    if all(given):
        return WebhookSecrets(*given)
    try:
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _stored(file)
    drawn = WebhookSecrets(secrets.token_urlsafe(32), base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    with os.fdopen(made, "w", encoding="utf-8") as opened:
        opened.write(f'{{"signing": "{drawn.signing}", "encryption_key": "{drawn.encryption_key}"}}\n')
    return drawn


def _stored(file: Path) -> WebhookSecrets:
    try:
        return WebhookSecrets(**read_json(file))
    except (ValueError, TypeError):
        expected = ", ".join(asdict(WebhookSecrets("", "")))
        raise RegistryError(
            f"{file} does not hold the webhook's secrets ({expected}); remove it, and new ones are made"
        ) from None


def is_genuine(body: bytes, headers: Mapping[str, str], signing: str) -> bool:
    """Say whether MLflow signed this message with `signing` within the last minutes; compares in constant time.

    Args:
        body: as received.
        headers: of the request.
        signing: see `WebhookSecrets`; without one nothing is genuine.
    """
    found = {name.lower(): value for name, value in headers.items()}
    delivery, sent, signature = (found.get(f"x-mlflow-{name}", "") for name in _SIGNED)
    if not signing or not sent.isdecimal() or len(sent) > _MOST_DIGITS:
        return False
    if abs(time.time() - int(sent)) > _MOST_AGE_SECONDS:
        return False
    content = f"{delivery}.{sent}.".encode() + body
    expected = base64.b64encode(hmac.new(signing.encode(), content, hashlib.sha256).digest())
    return hmac.compare_digest(b"v1," + expected, signature.encode())


def subscribe(address: str, signing: str) -> None:
    """Have the store's server send moves of aliases to `address`; one subscription, however often this is called.

    Raises:
        RegistryError: the server refuses: no right to do it, an address it does not accept, another key than before.
    """
    client = tracking_store.client()
    from mlflow.entities.webhook import WebhookEvent

    with tracking_store.store_errors(f"subscribing {address} to moves of aliases"):
        unsubscribe()
        events = [WebhookEvent("model_version_alias", action) for action in _ACTIONS]
        client.create_webhook(_NAME, address, [*events], "The watch looks at each move of an alias", signing)


def unsubscribe() -> None:
    """Remove the subscription where there is one."""
    client = tracking_store.client()
    with tracking_store.store_errors("removing the subscription to moves of aliases"):
        for one in client.list_webhooks(max_results=100):
            if one.name == _NAME:
                client.delete_webhook(one.webhook_id)
