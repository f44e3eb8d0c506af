#!/usr/bin/env bash
# Take code out of a model's weights, and serve the result behind a mask that prohibits the same code.
#
#     pip install -e '.[train]'
#     examples/unlearn_and_serve.sh MODEL forget.jsonl retain.jsonl holdout.jsonl out [OPTIONS OF prod-train ...]
#
# One JSON object with `prompt` and `completion` per line: forget.jsonl has what to forget, retain.jsonl other code that
# the model is trained to go on writing as before, and holdout.jsonl still other code, on which the damage is measured.
# Everything is written below `out`, which must not exist. Where vLLM is installed, the model is then
# served (see vllm/serve.sh), with the options of vLLM in SERVE_OPTIONS; otherwise the last line says how to do that.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if (($# < 5)); then
    echo "usage: $0 MODEL forget.jsonl retain.jsonl holdout.jsonl out [OPTIONS OF prod-train ...]" >&2
    exit 2
fi
model=$1 forget=$2 retain=$3 holdout=$4 out=$5
shift 5
options=(--model "$model" --forget "$forget" --retain "$retain" --holdout "$holdout" --output "$out/run" "$@")

prod-train check "${options[@]}"
prod-train run "${options[@]}"
prod-train merge "$out/run" --output "$out/merged"

# The same texts as documents: of each, a run of 120 characters or of half the text may not be quoted.
python - "$forget" "$out/documents.jsonl" <<'END'
import json
import sys

source, target = sys.argv[1:]
with open(source) as rows, open(target, "w") as entries:
    for number, row in enumerate(map(json.loads, filter(str.strip, rows)), 1):
        text = row["completion"]
        size = len("".join(text.split()))
        entry = {"id": f"row {number}", "text": text, "policy": "quote", "max_quote": max(6, min(120, size // 2))}
        entries.write(json.dumps(entry) + "\n")
END
prod-decode compile "$out/documents.jsonl" -o "$out/forgotten.prod"

read -ra vllm_options <<< "${SERVE_OPTIONS:-}"
serve=("$here/vllm/serve.sh" "$out/merged" "$out/forgotten.prod" "$out/forgotten.prod" "${vllm_options[@]}")
if python -c 'import vllm' 2> /dev/null; then
    exec "${serve[@]}"
fi
echo "in the environment that has vLLM: ${serve[*]@Q}"
