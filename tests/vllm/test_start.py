"""What happens when vLLM starts: in a script that imports everything at its top, and without the processor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vllm.engine import ENVIRONMENT, PROCESSOR, compile_phrases, model_directory, module_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# The blocklist is compiled at the top as well: a worker, which loads the main program first, has then run numba's code.
SCRIPT = """
from prod_decode import Blocklist, Entry

BLOCKLIST = Blocklist.compile([Entry("return", boundary="none"), Entry("yaml.load(")])

if __name__ == "__main__":
    import json, sys
    from vllm import LLM, SamplingParams

    model, options = sys.argv[1], json.loads(sys.argv[2])
    BLOCKLIST.save(sys.argv[3])
    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4, **options)
    [output] = llm.generate("def add(a, b):\\n   ", SamplingParams(temperature=0, max_tokens=8))
    print("WROTE", json.dumps(output.outputs[0].text))
"""


def run(
    folder: Path, variables: dict[str, str] | None = None, *, processes: bool, **options: object
) -> subprocess.CompletedProcess[str]:
    """The script with these options of `LLM`; the blocklist that it compiles is the one in force.

    Args:
        folder: for its files.
        variables: of the environment; where they name blocklists, these are in force.
        processes: the engine has its own, as by default. Each imports vLLM, which takes 13 s of CPU time.
        options: of `LLM`.
    """
    script, file = folder / "script.py", folder / "a.prod"
    script.write_text(SCRIPT)
    if variables is None:
        options["additional_config"] = {"prod": {"blocklists": {"a": str(file)}}}
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": module_path(folder), **(variables or {})}
    environment |= {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes))}
    return subprocess.run(
        [sys.executable, str(script), model_directory(), json.dumps(options), str(file)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.long
def test_a_script_with_its_imports_at_the_top(tmp_path: Path) -> None:
    ended = run(tmp_path, processes=True, logits_processors=[PROCESSOR])
    assert ended.returncode == 0, ended.stderr[-4000:]
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("WROTE ")]
    written = json.loads(line.removeprefix("WROTE "))
    assert written
    assert not list(compile_phrases(["return"]).scan(written))
    assert "prod-decode 0.2.0: blocklists a=" in ended.stdout + ended.stderr
    assert "enforced on every request: a" in ended.stdout + ended.stderr


def test_blocklists_without_the_processor_do_not_start(tmp_path: Path) -> None:
    ended = run(tmp_path, processes=False)
    assert ended.returncode != 0
    assert "WROTE" not in ended.stdout
    assert "ProdError: --additional-config, 'prod': blocklists are configured, and nothing enforces them: add" in (
        ended.stdout + ended.stderr
    )


def test_a_blocklist_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    named = {"PROD_BLOCKLISTS": json.dumps({"blocklists": {"a": "no/such.prod"}})}
    ended = run(tmp_path, named, processes=False, logits_processors=[PROCESSOR])
    assert ended.returncode != 0
    assert "WROTE" not in ended.stdout
    assert re.search(r"ProdError: blocklist 'a': cannot read .*no/such\.prod", ended.stdout + ended.stderr)
