"""Every kernel gets through what comes before a launch on a card, and nothing is compiled in the middle of a run."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def pretended(checkout):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(checkout), "TRITON_CACHE_DIR": str(checkout / "build" / "launching")}
    command = [sys.executable, "-m", "tests.kernels.launching"]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


KERNELS = {
    "_window_kernel",
    "_update_kernel",
    "_reduce_kernel",
    "_window_finish_kernel",
    "_update_finish_kernel",
    "_advance_kernel",
    "_gram_kernel",
    "_gram_finish_kernel",
    "_sketch_kernel",
    "_copy_kernel",
    "_sum_kernel",
    "_norm_kernel",
    "_dots_kernel",
    "_scale_kernel",
}


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_every_kernel_can_be_launched(pretended, kernel):
    assert pretended["launched"].get(kernel, 0) > 0


@pytest.mark.parametrize(
    "history", ["exact", "kept", "deferred", "sketch", "exact scaled", "deferred scaled", "sketch scaled"]
)
def test_nothing_is_compiled_after_the_first_step(pretended, history):
    after = pretended["runs"][history]
    assert len(set(after)) == 1, f"kernels compiled by the end of each step: {after}"
