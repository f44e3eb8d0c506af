"""`prod_decode.storage.processes`: nobody is left behind."""

from __future__ import annotations

import os
import select
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from prod_decode.storage.processes import pool_of
pool = pool_of(1)
print(pool.submit(os.getpid).result(), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is no child, as Linux can")
def test_a_process_ends_with_the_one_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        ended = select.poll()
        ended.register(child, select.POLLIN)
        assert ended.poll(0) == []
        parent.kill()
        assert ended.poll(60_000)
        os.close(child)
