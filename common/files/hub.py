"""Asks once whether the Hugging Face hub can be reached; its own client would try again for half a minute."""

from common.errors import StartError

SECONDS = 5.0
"""How long a connection and its answer may take."""


def check_reached(model: str) -> None:
    """Raises StartError, in one line about `model`, if the hub does not answer; any answer is one."""
    from httpx2 import HTTPError  # programs with local models need none of this
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except (HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        why = f"{constants.ENDPOINT}: {reason}"
        raise StartError(f"model {model}: no local file, and the hub cannot deliver it: {why}") from error
