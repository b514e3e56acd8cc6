"""Ask the promotion gate, and a person where the gate cannot decide.

    ./run flows.promote                                    # here and now; a question waits in this process
    prefect deployment run promote/on-demand --param ask=true  # a question suspends the run: no process waits

The verdict is an artifact of the run, a line a check. Where the gate holds the version (HOLD), and with `ask` also
where it passes, the run waits for an answer on its page in Prefect: yes or no, name and reason. Both go into the audit
log. Nobody is asked about a rejection. Without an answer in time the run fails and nothing was changed.

A champion that was evaluated on other test images is evaluated on the present ones first. Where somebody moved the
alias by hand, the recorded champion is put back unless the version passes. Ends as `Promoted`, `Champion already`,
`Rejected` (by the gate), `Declined` (by a person) or `Held` (another promotion came first).
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, pause_flow_run, suspend_flow_run, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from cxr.common.cli import command_parser
from cxr.common.errors import CxrError, ParamsError, PromotionHeldError, PromotionRejectedError
from flows.server_errors import run_flow_command
from flows.stages import StageFailedError
from flows.steps import VERDICTS, StepRun, run_step, verdict_of

TIME_LIMIT_SECONDS = 6 * 3600  # of each step; a person has `answer_within_hours`
_POLL_SECONDS = 2


class Answer(RunInput):
    """A person's decision about a version; name and reason go into the audit log."""

    approve: bool = False
    approved_by: Annotated[str, Field(min_length=1)]
    reason: Annotated[str, Field(min_length=1)]


@flow(name="promote", persist_result=True)  # a suspended run starts from the top and finds its results
def promote(
    version: str | int | None = None, ask: bool = False, reevaluate: bool = True, answer_within_hours: float = 72
) -> State[Any]:
    """Make a version champion if the gate, and a person where one is asked, agree.

    Args:
        version: a version other than the challenger.
        ask: ask a person also when the gate passes.
        reevaluate: evaluate the champion on the present test images where it was evaluated on others.
        answer_within_hours: a question without an answer by then changes nothing.
    """
    root = Path.cwd()
    if not (root / "params.yaml").is_file():
        raise ParamsError(f"{root} holds no params.yaml; start the flow in the project's root")
    version = None if version is None else str(version)
    verdict = weigh(root, version)
    if reevaluate and _on_other_images(verdict) and reevaluate_champion(root):
        verdict = weigh(root, version)
    create_markdown_artifact(key="promotion", markdown=as_table(verdict))
    if verdict["decision"] in {"CHAMPION", "REJECT"}:
        if verdict["set_by_hand"]:
            restore_champion(root, "Prefect", f"flow run {flow_run.name}")
        if verdict["decision"] == "CHAMPION":
            return Completed(name="Champion already", message=f"version {verdict['version']}")
        return Completed(name="Rejected", message=_reasons(verdict, "failed"))
    arguments = [f"--version={verdict['version']}"]
    if verdict["decision"] == "HOLD" or ask:
        answer = _ask(verdict, int(answer_within_hours * 3600))
        if not answer.approve:
            if verdict["set_by_hand"]:
                restore_champion(root, answer.approved_by, answer.reason)
            return Completed(name="Declined", message=f"{answer.approved_by}: {answer.reason}")
        arguments += [f"--approved-by={answer.approved_by}", f"--reason={answer.reason}"]
        arguments += ["--approve-held"] if verdict["decision"] == "HOLD" else []
    else:
        arguments.append(f"--reason=passed the gate, flow run {flow_run.name}")
    moved: State[Any] = move_alias(root, arguments, return_state=True)
    # A task's own state as the flow's end would be counted, not kept: "All states completed."
    ended = Completed if moved.is_completed() else Failed
    return ended(name=str(moved.name), message=moved.message)


@task(cache_policy=NO_CACHE, timeout_seconds=TIME_LIMIT_SECONDS)
def weigh(root: Path, version: str | None) -> dict[str, Any]:
    """Return the verdict of a dry run."""
    named = [f"--version={version}"] if version else []
    done = run_step("promote", "--dry-run", "--json", *named, folder=root)
    found = [line for line in done.lines if line.startswith('{"decision"')]
    if done.code not in VERDICTS or not found:
        raise StageFailedError(f"promote: {done.last_words}")
    verdict: dict[str, Any] = json.loads(found[-1])
    return verdict


@task(cache_policy=NO_CACHE, timeout_seconds=TIME_LIMIT_SECONDS)
def reevaluate_champion(root: Path) -> bool:
    """Say whether the champion is evaluated on the present test images now; where not, the log says why."""
    done = run_step("reevaluate", folder=root)
    if done.code not in {0, PromotionHeldError.exit_code}:
        raise StageFailedError(f"reevaluate: {done.last_words}")
    return done.code == 0


@task(cache_policy=NO_CACHE, timeout_seconds=TIME_LIMIT_SECONDS)
def move_alias(root: Path, arguments: list[str]) -> State[None]:
    """Promote; the gate decides again, about the version that was shown."""
    done: StepRun = run_step("promote", *arguments, folder=root)
    if done.code not in VERDICTS:
        error = StageFailedError(f"promote: {done.last_words}")
        return Failed(message=str(error), data=error)
    return Completed(name=verdict_of(done), message=done.outcome)


@task(cache_policy=NO_CACHE, timeout_seconds=TIME_LIMIT_SECONDS)
def restore_champion(root: Path, approved_by: str, reason: str) -> None:
    """Put the recorded champion back where the alias was moved by hand."""
    done = run_step("rollback", "--restore-only", f"--approved-by={approved_by}", f"--reason={reason}", folder=root)
    if done.code:
        raise StageFailedError(f"rollback: {done.last_words}")


def as_table(verdict: dict[str, Any]) -> str:
    """Return a verdict in Markdown."""
    against = f"champion {verdict['champion']}" if verdict.get("champion") else "floors only, no champion yet"
    rows = [f"**{verdict['decision']}**: version {verdict['version']}, {against}", ""]
    rows += ["| | check | observed | required |", "|---|---|---|---|"]
    for check in verdict.get("reasons", ()):
        cells = (check[name].replace("|", "/") for name in ("outcome", "name", "observed", "required"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _ask(verdict: dict[str, Any], seconds: int) -> Answer:
    """Wait for a person; the question's key names the verdict, so that no answer serves another one."""
    form = Answer.with_initial_data(description=as_table(verdict), approve=False)
    key = f"version-{verdict['version']}-after-{verdict['champion'] or 0}-{verdict['decision']}".lower()
    if deployment.id:
        return suspend_flow_run(wait_for_input=form, timeout=seconds, key=key)
    return pause_flow_run(wait_for_input=form, timeout=seconds, key=key, poll_interval=_POLL_SECONDS)


def _on_other_images(verdict: dict[str, Any]) -> bool:
    from cxr.registry.champion.promotion import OTHER_TEST_SET

    checks = verdict.get("reasons", ())
    return any(check["name"] == OTHER_TEST_SET and check["outcome"] == "held" for check in checks)


def _reasons(verdict: dict[str, Any], outcome: str) -> str:
    return "; ".join(
        f"{check['name']}: {check['observed']}, required {check['required']}"
        for check in verdict["reasons"]
        if check["outcome"] == outcome
    )


def main() -> int:
    """Run the flow once from the command line; the exit code tells the outcome."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("--version", metavar="N", help="a version other than the challenger")
    parser.add_argument("--ask", action="store_true", help="ask a person also when the gate passes")
    arguments = parser.parse_args()
    state = promote(version=arguments.version, ask=arguments.ask, return_state=True)
    print(f"{state.name}: {state.message}")
    if not state.is_completed():
        raise CxrError(f"the flow run ended as {state.name}: {state.message}")
    codes = {name: code for code, name in VERDICTS.items()} | {"Declined": PromotionRejectedError.exit_code}
    return codes.get(str(state.name), 0)


if __name__ == "__main__":
    run_flow_command(main)
