"""`veilrun demo`: what it shows is what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from veilrun import config


def test_the_demo_tells_the_truth():
    environment = {k: v for k, v in os.environ.items() if k != config.PASSPHRASE_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "veilrun.cli", "demo", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["answer"].startswith("It is the east, and Juliet is the sun.")
    assert facts["top_token_share"] > 0.99
    assert facts["mode"] == "ee"
    assert len(facts["node_saw_ids"]) > 10 and len(facts["node_answered_ids"]) > 10
    read = facts["node_saw_as_text"] + facts["node_answered_as_text"]
    for words in ("light through", "yonder window", "the east", "Juliet is", "fair sun"):
        assert words not in read  # a single short word may turn up there by chance
    assert "Traceback" not in done.stderr
