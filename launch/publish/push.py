"""A published folder to the Hugging Face hub, which is asked within seconds whether it takes it."""

import re
from pathlib import Path

from ..errors import Refused, first_line

SECONDS = 10  # `upload_folder` alone would try for half a minute where there is no network
WAY_OUT = "publish to a folder, and push it later: oneloop publish RUN OUT"


def ask(name: str) -> None:
    """Ask whether the hub can be reached and knows the token. Raises Refused: 1 if not, 2 for a name that cannot be one."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise Refused(f"--push takes owner/name of the hub, not {name!r}", 2)
    if constants.HF_HUB_OFFLINE:
        raise Refused(f"HF_HUB_OFFLINE is set: the hub is not asked; {WAY_OUT}")
    if not huggingface_hub.get_token():
        raise Refused(f"no token for {constants.ENDPOINT}: hf auth login, or HF_TOKEN=…; or {WAY_OUT}")
    try:
        answer = get_session().get(f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(), timeout=SECONDS)
    except Exception as error:  # of any library that the client uses today
        raise Refused(f"{constants.ENDPOINT} cannot be reached ({first_line(error)}); {WAY_OUT}") from error
    if answer.status_code != 200:
        raise Refused(f"{constants.ENDPOINT} does not take the token (HTTP {answer.status_code}); hf auth login; or {WAY_OUT}")


def push(folder: Path, name: str, public: bool) -> str:
    """Upload `folder` as the model `name`, made if it is not there. Returns its address. Raises Refused (1)."""
    import huggingface_hub
    from huggingface_hub import constants

    api = huggingface_hub.HfApi(endpoint=constants.ENDPOINT)
    try:
        api.create_repo(name, exist_ok=True, private=not public)
        api.upload_folder(folder_path=folder, repo_id=name, commit_message="Published by oneloop")
    except Exception as error:  # network, rights, quota: the hub says which
        raise Refused(f"{constants.ENDPOINT} did not take {name}: {first_line(error)}; {WAY_OUT}") from error
    return f"{constants.ENDPOINT}/{name}"
