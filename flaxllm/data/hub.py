"""Where a model's files are: a local path, or the cache of the Hugging Face hub, which is filled on first use."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from flaxllm.data.sources import nearest_path
from flaxllm.errors import InputError

# No "..", because the client makes paths of its cache out of it.
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]*")


def resolve(path_or_id: str | Path, patterns: Sequence[str]) -> Path:
    """A local path as it is; else the folder with those files of a model on the hub that match one of `patterns`.

    An id is "org/name" or "name", and may end in "@" and a revision (a branch, a tag or a commit). huggingface_hub
    fetches what its cache lacks; under HF_HUB_OFFLINE it fetches nothing.

    Raises:
      InputError: this is neither a path nor an id, the hub has no such model or revision or does not give it to this
        user, it has no such file, it is not in the cache and the hub may not be asked, or fetching it failed.
    """
    text = str(path_or_id)
    path = Path(os.path.expanduser(text))
    if text and os.path.exists(path):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError

    model, at, revision = text.partition("@")
    try:
        if at and not _REVISION.fullmatch(revision):
            raise HFValidationError(f"no revision: {revision}")
        folder = Path(snapshot_download(model, revision=revision or None, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise InputError(
            f"there is no path {text!r}, and it is no model id such as 'org/name': {nearest_path(path)}"
        ) from error
    except Exception as error:  # whatever the hub, the way to it, the disk or the client find wrong
        raise InputError(_complaint(text, error)) from error
    if not folder.is_dir():
        raise InputError(f"the hub's model {text!r} has no file that is wanted of it: expected {', '.join(patterns)}")
    return folder


def _complaint(text: str, error: Exception) -> str:
    from huggingface_hub import errors

    # Where the hub cannot be asked, the client looks into its cache and then complains of that.
    why = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(why, errors.GatedRepoError):
        return f"the model {text!r} is gated: accept its terms on its page on the hub, and log in with `hf auth login`"
    if isinstance(why, errors.RevisionNotFoundError):
        return f"the hub has no such revision of the model {text!r}: name a branch, a tag or a commit after the @"
    if isinstance(why, errors.RepositoryNotFoundError):
        return (
            f"there is no path {text!r}, and the hub has no such model for you: check the name, or log in with "
            "`hf auth login` where it is private"
        )
    if isinstance(why, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return (
            f"there is no path {text!r}, and the model of that name is not whole in the cache while HF_HUB_OFFLINE keeps it "
            "from being fetched: unset it once, or give a path"
        )
    reason = (str(why).strip().splitlines() or [type(why).__name__])[0][:200]
    return f"there is no path {text!r}, and fetching the model of that name failed ({reason}): check the connection and try again"
