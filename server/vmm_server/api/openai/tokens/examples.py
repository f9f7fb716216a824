"""What is sent to the routes about tokens and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import Example

MODEL = "smollm2:135m"
LIMIT = {"max_model_len": 8192}
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]

TOKENIZE = (
    Example("A text", {"tokens": [504, 10142], "count": 2} | LIMIT, {"model": MODEL, "prompt": "The sky"}),
    Example(
        "A conversation",
        {"tokens": [1, 9690, 198], "count": 3} | LIMIT | {"token_strs": ["<|im_start|>", "system", "\n"]},
        {"model": MODEL, "messages": QUESTION, "return_token_strs": True},
    ),
    Example(
        "A text and its pieces",
        {"tokens": [{"id": 504, "piece": "The"}, {"id": 10142, "piece": " sky"}], "count": 2} | LIMIT,
        {"model": MODEL, "content": "The sky", "add_special": False, "with_pieces": True},
    ),
    Example(
        "Several texts",
        {"tokens": [[504, 10142], [504, 4246]], "count": [2, 2]} | LIMIT,
        {"model": MODEL, "text": ["The sky", "The sea"]},
    ),
)
DETOKENIZE = (
    Example(
        "Tokens",
        {"content": "The sky", "prompt": "The sky", "text": "The sky"},
        {"model": MODEL, "tokens": [84, 104]},
    ),
)
APPLY_TEMPLATE = (
    Example(
        "A conversation",
        {"prompt": "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"},
        {"model": MODEL, "messages": QUESTION},
    ),
)
