from pathlib import Path

import pytest
from page_parser import Page
from synthetic_run import settings_of, write_results

from tangram.report.loading import load_results
from tangram.report.page import render_page


@pytest.fixture(scope="session")
def complete(tmp_path_factory) -> Path:
    """Return a complete run's folder; tests that change it copy it first."""
    return write_results(tmp_path_factory.mktemp("run") / "smollm2-cpu")


@pytest.fixture(scope="session")
def html(complete):
    return render_page(load_results(complete, settings_of()))


@pytest.fixture(scope="session")
def page(html):
    return Page(html)
