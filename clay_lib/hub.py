"""Files from the Hugging Face hub by name, through its own client: its cache, HF_HUB_OFFLINE and HF_ENDPOINT hold."""

from __future__ import annotations

from pathlib import Path

from clay_lib.contract import ContractError


def fetch(name: str) -> Path:
    """ "owner/name/path/in/repository" -> the file in the client's cache, downloaded if it is not there.

    A broken connection is taken up again where it stopped, by the client. Raises ContractError with what to do.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    owner, _, rest = name.partition("/")
    repository, _, path = rest.partition("/")
    if not (owner and repository and path):
        raise ContractError(
            "weights", found=f"hub:{name}", expected="hub:owner/name/path/to/file", cause="the path is missing"
        )
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", path))
    except errors.GatedRepoError:
        found, cause = (
            "a gated repository",
            "its terms are not yet accepted on its page, or no `hf auth login` was made",
        )
    except errors.RepositoryNotFoundError:
        found, cause = "no such repository", "a misspelt owner or name, or a private one without `hf auth login`"
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            found, cause = (
                "HF_HUB_OFFLINE is set and the file is not in the cache",
                "not downloaded before; unset it once",
            )
        else:
            found, cause = (
                f"no answer from {constants.ENDPOINT}",
                f"no network, a proxy, or HF_ENDPOINT ({error.__cause__})",
            )
    except errors.EntryNotFoundError:
        found, cause = f"no file {path} in {owner}/{repository}", "a misspelt path, or a file that was moved"
    except Exception as error:  # HTTP errors, a full disk, a name that the client refuses
        found, cause = f"{type(error).__name__}: {error}", f"the hub at {constants.ENDPOINT}, the network, or the disk"
    raise ContractError("weights", found=found, expected=f"hub:{name}", cause=cause)
