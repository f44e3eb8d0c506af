#!/usr/bin/env bash
# Fail if the files that a branch changes have prohibited code in them.
#
#     examples/scan_in_ci/scan.sh origin/main prohibited/phrases.txt prohibited/documents/
#
# The first argument is what the branch is compared with. The others are sources of the blocklist, see
# docs/guide/write-a-blocklist.md; files among them are not scanned. Run it in the repository's top directory.
#
# Exit status: 0 nothing found, 1 found, 2 a mistake, 3 nothing found but not everything was looked through.
set -euo pipefail
if (($# < 2)); then
    echo "usage: $0 BASE SOURCE...; such as: $0 origin/main prohibited/phrases.txt prohibited/documents/" >&2
    exit 2
fi
base=$1
shift
if ! git rev-parse --verify --quiet --end-of-options "$base^{commit}" > /dev/null; then
    echo "$0: expected a branch or commit to compare with, got '$base', which this repository does not have: fetch it" \
        "(with actions/checkout: fetch-depth: 0), or run this where it is" >&2
    exit 2
fi

made=$(mktemp -d)
trap 'rm -r "$made"' EXIT
prod-decode compile "$@" -o "$made/block.prod"

# Names are separated by NUL, and begin with ./ so that none is taken for an option.
git diff --name-only -z --diff-filter=d "$base..." -- . "${@/#/:(exclude)}" > "$made/names"
mapfile -d '' -t files < "$made/names"
if ((${#files[@]} == 0)); then
    echo "no files to scan"
    exit 0
fi
prod-decode scan "$made/block.prod" "${files[@]/#/./}"
