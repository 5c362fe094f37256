"""The kill tests in small; by hand they run in large."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_kill_loses_or_changes_anything_or_leaves_anything_behind():
    program = [sys.executable, str(Path(__file__).with_name("kills.py")), "--prepare", "1", "--units", "4"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["replacing"]["kills"] >= 60
    assert counts["prepare"]["kills"] == 1
    assert counts["units"]["kills"] >= 4
