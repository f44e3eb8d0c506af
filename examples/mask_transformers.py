"""Generate with Hugging Face transformers, without what a blocklist prohibits.

    pip install -e '.[hf]'
    prod-decode compile phrases.txt vendor/ -o block.prod
    python examples/mask_transformers.py MODEL block.prod 'import yaml'

MODEL is a name on the Hugging Face hub or a directory. The text goes to stdout. How often each entry of the blocklist
stepped in goes to stderr. The exit status is 1 if anything prohibited was written all the same.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from prod_decode import Blocklist, ProdLogitsProcessor


def main() -> int:
    """Generate, print, and scan what was printed."""
    name, file, prompt = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name)
    blocklist = Blocklist.load(file)

    processor = ProdLogitsProcessor(blocklist, tokenizer)  # the last one, if you have others
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, logits_processor=[processor], max_new_tokens=64, do_sample=False)
    text = tokenizer.decode(output[0], skip_special_tokens=True)

    sys.stdout.write(f"{text}\n")
    for entry, count in processor.fired.most_common():
        sys.stderr.write(f"{entry}: stepped in {count} times\n")
    # What ends in the prompt is yours, not the model's.
    return int(any(match.end > len(prompt) for match in blocklist.scan(text)))


if __name__ == "__main__":
    sys.exit(main())
