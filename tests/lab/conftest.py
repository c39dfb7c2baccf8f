"""What holds for the tests of the laboratory."""

import pytest

from chipnet.lab.cli import runs

REPORT_AFTER = runs.report_after


@pytest.fixture(scope="module", autouse=True)
def _without_reports():
    """The charts of its report take half of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "report_after", lambda *folders: None)
        yield


@pytest.fixture
def reports(monkeypatch):
    """Runs of the command line draw their reports, as they do for users."""
    monkeypatch.setattr(runs, "report_after", REPORT_AFTER)
