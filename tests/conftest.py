"The closing line that counts: `N passed, N failed`."
import os

import pytest

os.environ.setdefault("MPLBACKEND", "agg")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None: return
    count = lambda *kinds: sum(len(reporter.stats.get(kind, [])) for kind in kinds)
    passed, failed = count("passed"), count("failed", "error")
    if passed + failed: print(f"{passed} passed, {failed} failed")
