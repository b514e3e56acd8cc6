"""Answer what people ask for by an alias in MLflow: the gate judges it, never the alias alone.

    ./run flows.judge                       # here and now; `make serve` starts it within a minute of each move

`requested` on a version asks that it becomes champion. `champion` moved by hand asks the same: where the gate passes
the version the move is entered into the audit log, else the recorded champion is put back. A version that was champion
before and passed the gate then is gone back to, as `./run rollback` does. The answer and its reasons are on the
version's page: in its description and in the tag `promotion_reason`.

Ends as `Promoted`, `Rolled back`, `Champion already`, `Rejected`, `Held`, `Restored` (the alias had been removed) or
`Nothing asked`; of several answers, as the last one.
"""

import sys
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from cxr.common.cli import command_parser
from cxr.common.errors import CxrError, ParamsError
from cxr.registry import audit_log
from cxr.registry.champion import aliases
from cxr.registry.champion.requests import Request, open_requests
from cxr.registry.stored_names import CHAMPION
from flows.server_errors import run_flow_command
from flows.stages import StageFailedError
from flows.steps import VERDICTS, run_step, verdict_of

TIME_LIMIT_SECONDS = 3600
ASKED_BY = "MLflow"
"""For the audit log: MLflow does not say who moved an alias."""


@flow(name="judge")
def judge() -> State[Any]:
    """Answer each open request: an alias `requested`, or a champion moved by hand in MLflow."""
    root = Path.cwd()
    if not (root / "params.yaml").is_file():
        raise ParamsError(f"{root} holds no params.yaml; start the flow in the project's root")
    aliases.settle()
    answers = [answer_request(root, request, return_state=True) for request in open_requests()]
    if not answers:
        return Completed(name="Nothing asked")
    for state in answers:
        state.result()  # raises what failed
    return Completed(name=str(answers[-1].name), message="; ".join(str(state.message) for state in answers))


@task(cache_policy=NO_CACHE, timeout_seconds=TIME_LIMIT_SECONDS, task_run_name="judge {request.version}")
def answer_request(root: Path, request: Request) -> State[None]:
    """Promote, go back or put back; each command writes its answer on the version's page."""
    how = "set by hand" if request.alias == CHAMPION else "requested"
    by = [f"--approved-by={ASKED_BY}", f"--reason={how} in MLflow"]
    if not request.version:
        done = run_step("rollback", "--restore-only", *by, folder=root)
        name = "Restored"
    elif audit_log.is_rollback(aliases.history(), request.version):
        done = run_step("rollback", f"--version={request.version}", *by, folder=root)
        name = "Rolled back"
    else:
        done = run_step("promote", f"--version={request.version}", *by, folder=root)
        if done.code in VERDICTS:
            return Completed(name=verdict_of(done), message=done.outcome)
    if done.code:
        raise StageFailedError(f"{done.name}: {done.last_words}")
    return Completed(name=name, message=done.outcome)


def main() -> int:
    """Run the flow once from the command line."""
    command_parser(sys.modules[__name__]).parse_args()
    state = judge(return_state=True)
    print(f"{state.name}: {state.message}")
    if not state.is_completed():
        raise CxrError(f"the flow run ended as {state.name}: {state.message}")
    return 0


if __name__ == "__main__":
    run_flow_command(main)
