"""What this project logged: threads that other tests left in the process log as well."""

import pytest


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of this project's loggers, in order."""
    return [record.getMessage() for record in caplog.records if record.name.partition(".")[0] == "cxr"]
