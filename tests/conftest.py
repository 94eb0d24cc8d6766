"""What every test shares: quiet threads, one hypothesis profile, the real data's folder, helper modules on the path."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before torch is imported anywhere, and inherited by the processes that tests start: tensors here are small, and
# threads that spin while they wait slow down every test on a machine of few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Rows that commands keep in the home's cache folder go with the session. What was measured of models stays, and libraries' own.
CACHE = Path(os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "denserl"
HOME = Path(tempfile.mkdtemp(prefix="denserl-home-"))
(CACHE / "measured").mkdir(parents=True, exist_ok=True)
(HOME / ".cache/denserl").mkdir(parents=True)
(HOME / ".cache/denserl/measured").symlink_to(CACHE / "measured")
os.environ["HOME"] = str(HOME)
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

TESTS = Path(__file__).resolve().parent
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

# No test here cuts the power, after which alone it shows what was flushed; processes that tests start do flush.
os.fsync = lambda descriptor: None

# The same examples on every run; no deadline, because the first call of a tensor function is slow.
settings.register_profile("denserl", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("denserl")


def pytest_addoption(parser):
    parser.addoption("--by_kind", action="store_true", help="end with a table of what passed and failed, kind by kind")


def pytest_unconfigure(config):
    """The very last lines, after pytest's own."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if config.getoption("by_kind") and reporter is not None:
        import kinds

        print("", *kinds.table(reporter.stats), sep="\n")


# Folders whose files fork their processes from one server, which imports everything, and compare with the same whole runs.
TOGETHER = ("faults", "parity")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: tests that start processes wait for them."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """As --dist loadfile deals files to processes, with these folders as one file."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return TOGETHER if any(f"tests/{folder}/" in file for folder in TOGETHER) else file

    return Scheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def frozen_imports():
    """What is imported by now stays to the end, and each training of transformers looks through all that may be garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository, read in place; the test is skipped where it is missing."""
    folder = TESTS.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder
