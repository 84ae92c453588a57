"""The names under which drafts, hidden states and counts pass through vLLM between the web server and the engine.

All but `PROGRESS_KEY` are keys of `SamplingParams.extra_args`.
"""

DRAFT_KEY = "draft_token_ids"
"""list[int]: the draft to verify in the step that ends the request's prefill."""
ANSWER_KEY = "answer_start"
"""int: how many of the prompt's tokens come before the answer so far."""
MAILBOX_KEY = "mailbox"
"""(socket, key): the `Address` at which drafts for the running request arrive."""
STATES_KEY = "hidden_states"
"""bytes: float32 rows [n, hidden], one for each new position of a tail's request."""
KEEP_KEY = "keep"
"""int: how many of the positions that a tail's request holds stay; those after them are computed anew."""
PROGRESS_KEY = "drafts"
"""In an output's `kv_transfer_params`: the fields of `DraftProgress`, in their order."""
