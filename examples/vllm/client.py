"""Ask the server of serve.sh to continue a prompt, as any OpenAI client does.

    pip install openai
    python examples/vllm/client.py http://127.0.0.1:8000 'import yaml'           # guarded by always.prod
    python examples/vllm/client.py http://127.0.0.1:8000 'import yaml' extra     # and by extra.prod

The continuation goes to stdout as it comes. A name that the server does not have is an error, not an unguarded answer.
"""

import sys

import openai


def main() -> int:
    """Stream one completion."""
    url, prompt, *lists = sys.argv[1:]
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    arguments = {"prod_blocklists": lists} if lists else {}
    try:
        stream = client.completions.create(
            model="model",
            prompt=prompt,
            max_tokens=64,
            temperature=0,
            stream=True,
            extra_body={"vllm_xargs": arguments},
        )
        for part in stream:
            sys.stdout.write(part.choices[0].text)
            sys.stdout.flush()
    except openai.APIError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
