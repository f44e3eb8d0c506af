"""Generate with Hugging Face transformers, without what a blocklist prohibits.

    pip install -e '.[hf,gguf]'
    prod-decode compile phrases.txt vendor/ -o block.prod
    python examples/mask_transformers.py MODEL block.prod 'import yaml'

MODEL is a name on the Hugging Face hub, a directory, a .gguf file, or `bundled`. The text goes to stdout. How often
each entry of the blocklist stepped in goes to stderr. The exit status is 1 if anything prohibited was written all the
same, and 2 after a mistake.
"""

import sys

from prod_decode import Blocklist, ProdLogitsProcessor
from prod_decode.errors import ProdError
from prod_decode.storage.models import load_model


def main() -> int:
    """Generate, print, and scan what was printed."""
    if len(sys.argv) != 4:
        sys.stderr.write(f"usage: python {sys.argv[0]} MODEL BLOCKLIST PROMPT\n")
        return 2
    name, file, prompt = sys.argv[1:]
    try:
        blocklist = Blocklist.load(file)
        model, tokenizer = load_model(name)  # those of AutoModelForCausalLM and AutoTokenizer do as well
        processor = ProdLogitsProcessor(blocklist, tokenizer)  # the last one, if you have others
    except ProdError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, logits_processor=[processor], max_new_tokens=64, do_sample=False)
    text = tokenizer.decode(output[0], skip_special_tokens=True)

    sys.stdout.write(f"{text}\n")
    for entry, count in processor.fired.most_common():
        sys.stderr.write(f"{entry}: stepped in {count} times\n")
    # What ends in the prompt is yours, not the model's.
    return int(any(match.end > len(prompt) for match in blocklist.scan(text)))


if __name__ == "__main__":
    sys.exit(main())
