"""Tell people what needs them: automations of Prefect's that send to the address in CXR_NOTIFY_URL.

    export CXR_NOTIFY_URL=https://chat.example.org/hooks/abc                            # gets a POST of JSON
    export CXR_NOTIFY_URL="mailtos://ann:$PASSWORD@smtp.example.org?to=ann@example.org" # or any other Apprise address

`./run flows.upkeep` and `make serve` create or update them on Prefect's server; without the variable they remove them.
Messages go out when a run of this project failed, images have drifted, a promotion waits for a person, or somebody
moved the champion past the gate. Prefect's server sends them, so the address must be reachable from there. It sends at
least once: rarely a message comes twice, with the same run in it.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events import emit_event
from prefect.events.actions import ActionTypes, CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from cxr.common.errors import RegistryError
from cxr.registry import versions
from cxr.registry.champion import aliases

ADDRESS_VARIABLE = "CXR_NOTIFY_URL"
MOVED_BY_HAND = "cxr.champion.moved-by-hand"
"""The event that says so; its resource carries the reason as `cxr.message`."""
BLOCK = "cxr-notify"
FLOWS = ("rebuild", "score", "monitor", "promote", "judge")

# Jinja expressions; `event` is the one that set the automation off.
_MESSAGE = "(event.resource['prefect.state-message'] or event.resource['cxr.message'] or '')"
_RUN = "(event.resource['prefect.resource.name'] or '')"


@dataclass(frozen=True)
class Notice:
    """One kind of message: on which events of which resources it goes out, and how it starts."""

    name: str
    title: str
    events: frozenset[str]
    resources: dict[str, list[str]] = field(default_factory=dict)
    of_our_flows: bool = False

    @property
    def automation(self) -> str:
        """Return the name of its automation on Prefect's server."""
        return f"notify: {self.name}"


NOTICES = (
    Notice(
        "failed",
        "A run failed",
        frozenset({"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"}),
        of_our_flows=True,
    ),
    Notice("drift", "Images have drifted", frozenset({"prefect.flow-run.Drift"}), of_our_flows=True),
    Notice(
        "held",
        "A promotion waits for a person",
        frozenset({"prefect.flow-run.Held", "prefect.flow-run.Suspended", "prefect.flow-run.Paused"}),
        of_our_flows=True,
    ),
    Notice(  # a rebuild itself ends well; its task `promote` says how the gate decided
        "held in a rebuild",
        "A promotion waits for a person",
        frozenset({"prefect.task-run.Held"}),
        {"prefect.resource.name": ["promote"]},
    ),
    Notice("moved by hand", "The champion was moved past the gate", frozenset({MOVED_BY_HAND})),
)


def keep_notifications(client: SyncPrefectClient) -> None:
    """Bring the automations on Prefect's server to what CXR_NOTIFY_URL asks for."""
    address = os.environ.get(ADDRESS_VARIABLE, "")
    if not address:
        for automation in (one for notice in NOTICES for one in client.read_automations_by_name(notice.automation)):
            client.delete_automation(automation.id)
        return
    block = _block(address)
    document: Any = block.save(BLOCK, overwrite=True)
    for notice in NOTICES:
        action = _action(notice, block, document)
        wanted = AutomationCore(name=notice.automation, trigger=_trigger(notice), actions=[action])
        if present := client.read_automations_by_name(notice.automation):
            client.update_automation(present[0].id, wanted)
        else:
            client.create_automation(wanted)


def report_move_by_hand() -> None:
    """Emit MOVED_BY_HAND where the alias `champion` and its record contradict each other.

    A store that does not answer is reported by the step that needs it.
    """
    with suppress(RegistryError):
        if message := aliases.mismatch():
            resource = {"prefect.resource.id": "cxr.champion", "prefect.resource.name": versions.MODEL}
            emit_event(MOVED_BY_HAND, resource={**resource, "cxr.message": message})


def _block(address: str) -> Block:
    """Return what sends to `address`: a plain POST to a web address, Apprise for everything else.

    SlackWebhook is the block of Prefect's that hands any Apprise address through, mail among them.
    """
    if address.startswith(("http://", "https://")):
        return Webhook(method="POST", url=address, headers={"Content-Type": "application/json"})
    return SlackWebhook(url=address)


def _trigger(notice: Notice) -> EventTrigger:
    ours = {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
    return EventTrigger(
        expect=set(notice.events),
        match=ResourceSpecification(notice.resources),
        match_related=ResourceSpecification(ours if notice.of_our_flows else {}),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def _action(notice: Notice, block: Block, document: UUID) -> ActionTypes:
    if isinstance(block, Webhook):
        text = f"('{notice.title}: ' ~ {_RUN} ~ '. ' ~ {_MESSAGE})"
        values = {"text": text, "notice": f"'{notice.name}'", "run": _RUN, "message": _MESSAGE}
        fields = ", ".join(f'"{name}": {{{{ {value} | tojson }}}}' for name, value in values.items())
        return CallWebhook(block_document_id=document, payload=f"{{{fields}}}")
    subject = f"{notice.title}: {{{{ {_RUN} }}}}"
    return SendNotification(block_document_id=document, subject=subject, body=f"{{{{ {_MESSAGE} }}}}")
