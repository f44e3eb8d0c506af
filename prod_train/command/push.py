"""`push`: upload a result to the Hugging Face hub, without the texts that the run lies among."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prod_decode.command.terminal import to_json
from prod_decode.errors import ProdError, printable, reason
from prod_decode.storage.models import ADAPTER, is_on_hub
from prod_decode.version import __version__
from prod_train.run.output import UNFINISHED

if TYPE_CHECKING:
    from prod_decode.command.options import Commands

# Weights, what loads them, and the evidence. All else stays: checkpoints, and files with code to forget or to keep
# (anchors.prod, continuations.jsonl, retain.jsonl, report.html with what the model wrote).
PUSHED = (
    "*.safetensors",
    "*.safetensors.index.json",
    ADAPTER,
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
    "report.json",
)


def add_to(commands: Commands) -> None:
    """Add the sub-command."""
    add = commands.add_parser(
        "push",
        help="upload a result to the Hugging Face hub, private unless you say otherwise",
        description="Upload the output of `run` or `merge` to the Hugging Face hub: weights, tokenizer, model card and "
        "report.json. Files with code stay here.",
        allow_abbrev=False,
    )
    add.add_argument("output", metavar="DIR", help="the output directory of `run` or `merge`")
    add.add_argument("repo", metavar="OWNER/NAME", help="the repository; it is made if it is not there")
    add.add_argument("--public", action="store_true", help="for everybody to see")
    add.add_argument("--dry-run", action="store_true", help="show what would be uploaded; needs no network")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=_push)


@dataclass(frozen=True)
class Push:
    """What is uploaded, and what stays.

    Attributes:
        folder: the output directory.
        repo: OWNER/NAME.
        files: names in the folder, ascending.
        kept: names that are not uploaded.
        notes: what whoever uploads this should know.
    """

    folder: Path
    repo: str
    files: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, repo: str) -> Push:
        """Look through the output of a run or a merge.

        Raises:
            ProdError: it is none, or has not ended; nobody elsewhere could load it; or the name cannot be one.
        """
        check_name(repo)
        if not folder.is_dir():
            what = "a file" if folder.exists() else "no such directory"
            raise ProdError(f"{folder}: expected the output directory of `prod-train run` or `merge`, it is {what}")
        names = sorted(path.name for path in folder.iterdir())
        files = tuple(name for name in names if _is_pushed(name) and (folder / name).is_file())
        if (folder / UNFINISHED).exists():
            raise ProdError(f"{folder}: the run there has not ended: go on with --resume latest, then push")
        if not any(name.endswith(".safetensors") for name in files):
            raise ProdError(f"{folder}: expected the output of `prod-train run` or `merge`, it has no weights")
        _expect_hub_base(folder)
        report = _report(folder)
        notes = [f"the report says: {report['collapsed']}"] if report.get("collapsed") else []
        return cls(folder, repo, files, tuple(name for name in names if name not in files), tuple(notes))

    def upload(self, *, public: bool) -> str:
        """Upload it; the address.

        Raises:
            ProdError: the hub refuses or is not reached; or the repository is public already, and `public` was not
                asked for.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        # Of the client that the hub's package uses, which is another one in each of its versions.
        from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]

        _expect_token()
        api = HfApi()
        try:
            api.create_repo(self.repo, private=not public, exist_ok=True)
            if not public and not api.model_info(self.repo).private:
                raise ProdError(f"{self.repo} is public already: pass --public, or name another repository")
            found = api.upload_folder(
                repo_id=self.repo,
                folder_path=self.folder,
                allow_patterns=list(self.files),
                commit_message=f"prod-train {__version__}",
            )
        except OfflineModeIsEnabled:
            raise ProdError("expected the hub, HF_HUB_OFFLINE is set: unset it, or look at --dry-run") from None
        except HfHubHTTPError as error:
            raise ProdError(f"the hub refuses {self.repo}: {reason(error)}") from None
        except (OSError, ClientError) as error:
            raise ProdError(f"cannot reach the hub: {reason(error)}") from None
        return str(found.commit_url)


_ELSEWHERE = "which nobody loads from the hub"


def check_name(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ProdError: it is not OWNER/NAME.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo, is_name = printable(repo), False
    else:
        is_name = repo.count("/") == 1
    if not is_name:
        raise ProdError(f"expected OWNER/NAME, letters, digits, '-', '_' and '.', got {repo}")


def _is_pushed(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in PUSHED)


def _expect_hub_base(folder: Path) -> None:
    """Refuse an adapter whose base nobody else has."""
    adapter = folder / ADAPTER
    if not adapter.is_file():
        return
    try:
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProdError(f"{adapter}: expected the configuration of an adapter, got {reason(error)}") from None
    if not is_on_hub(str(base)):
        raise ProdError(f"{folder}: its base is {base}, {_ELSEWHERE}: push the output of `prod-train merge`")


def expect_pushable(repo: str, model: str, *, is_adapter: bool) -> None:
    """Refuse before training what could not be pushed behind it.

    Args:
        repo: OWNER/NAME.
        model: that is trained.
        is_adapter: rather than a whole model.

    Raises:
        ProdError: it could not.
    """
    check_name(repo)
    if is_adapter and not is_on_hub(model):
        raise ProdError(
            f"--push-to-hub: the adapter's base is {model}, {_ELSEWHERE}: run without it, then push the output of "
            "`prod-train merge` with `prod-train push`"
        )
    _expect_token("--push-to-hub: ")


def _expect_token(what: str = "") -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise ProdError(f"{what}expected a token of the hub, there is none: run `hf auth login`, or set HF_TOKEN")


def _report(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "report.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _push(options: argparse.Namespace) -> int:
    push = Push.of(Path(options.output), options.repo)
    sizes = {name: (push.folder / name).stat().st_size for name in push.files}
    address = None if options.dry_run else push.upload(public=options.public)
    if options.json:
        seen = "public" if options.public else "private"
        print(
            to_json(
                {"repo": push.repo, "visibility": seen, "files": sizes, "kept": push.kept, "notes": push.notes}
                | {"uploaded": address}
            )
        )
        return 0
    for name, size in sizes.items():
        print(f"{size / 1e6:10.3f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:10.3f} MB  in all, to {push.repo}, {'public' if options.public else 'private'}")
    if push.kept:
        print(f"stays here: {', '.join(push.kept)}")
    for note in push.notes:
        print(note)
    print("dry run: nothing was uploaded" if address is None else f"uploaded: {address}")
    return 0
