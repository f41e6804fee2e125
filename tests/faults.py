"""Every fault of a row by name: what stands in the line, the reason, a word of the remedy."""

from rows import as_line, assistant, good, user

WHOLE = [user("q"), assistant("a")]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def turns(*roles):
    return [{"role": role, "content": f"text {i}"} for i, role in enumerate(roles)]


def sides(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def without(key, **others):
    return {name: value for name, value in good(**others).items() if name != key}


def with_number(text, key="margin"):
    return as_line(good())[:-1] + f', "{key}": {text}}}'.encode()


# name of the fault: what stands in the line, the reason, a word of the remedy
SYNTAX = {  # every kind has this reason
    "no comma": (b'{"prompt": "a", "chosen": "b" "rejected": "c"}', "Expecting ',' delimiter at column 31"),
    "comma before the end": (b'{"prompt": "a", "chosen": "b", "rejected": "c",}', "column"),
    "comma after the object": (as_line(good()) + b",", "Extra data"),
    "two objects on a line": (as_line(good()) * 2, "Extra data"),
    "no colon": (b'{"prompt" "a"}', "Expecting ':' delimiter"),
    "single quotes": (b"{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}", "double quotes"),
    "no quotes": (b"{prompt: 1}", "double quotes"),
    "Python's words": (b'{"prompt": None}', "Expecting value"),
    "a comment": (b"// pairs", "Expecting value"),
    "a bare text": (b"Blue.", "Expecting value"),
    "a table": (b"prompt,chosen,rejected", "Expecting value"),
    "cut in a text": (as_line(good())[:-6], "Unterminated string"),
    "cut behind a key": (b'{"prompt": "a", "chosen":', "Expecting value"),
    "cut before the last bracket": (as_line(good())[:-1], "Expecting ',' delimiter"),
    "a bracket alone": (b"}", "Expecting value"),
    "a tab inside a text": (b'{"prompt": "a\tb"}', "Invalid control character at column"),
    "an unknown escape": (rb'{"prompt": "\x41"}', "escape"),
    "half an escape": (rb'{"prompt": "\u12"}', "escape"),
    "a number with zeros in front": (b'{"margin": 007}', "delimiter"),
    "no-break space": ("\u00a0".encode(), "Expecting value"),
    "zero width alone on a line": ("\u200b".encode(), "Expecting value"),
}
FAULTS = {name: (raw, "JSON syntax error", word) for name, (raw, word) in SYNTAX.items()} | {
    # bytes and bounds
    "invalid UTF-8": (b'{"prompt": "a", "chosen": "caf\xe9", "rejected": "c"}', "not UTF-8", "0xe9"),
    "overlong UTF-8": (b'{"prompt": "\xc0\xaf"}', "not UTF-8", "0xc0"),
    "NUL byte": (b'{"prompt": "a\0"}', "NUL byte", "at offset 13"),
    "line of NUL bytes": (b"\0" * 64, "NUL byte", "write it again"),
    "absurd nesting of arrays": (b"[" * 100_000, "JSON out of bounds", "simplify"),
    "absurd nesting of objects": (b'{"a":' * 100_000, "JSON out of bounds", "simplify"),
    "absurd nesting, closed": (with_number("[" * 100_000 + "]" * 100_000, "x"), "JSON out of bounds", "brackets"),
    "absurd integer": (with_number("9" * 5000), "JSON out of bounds", "thousands of digits"),
    "absurd integer in another key": (with_number("9" * 5000, "x"), "JSON out of bounds", "simplify"),
    "key twice": (b'{"prompt": "a", "chosen": "b", "chosen": "d", "rejected": "c"}', "repeated key", "'chosen'"),
    "lone surrogate": (good(chosen="\ud800x"), "half a character in 'chosen'", "U+D800"),
    "lone surrogate in the prompt": (good(prompt="x\udc00"), "half a character in 'prompt'", "U+DC00 at 1"),
    "lone surrogate in the source": (good(source="\udfff"), "half a character in 'source'", "U+DFFF"),
    "NUL": (good(rejected="a\0b"), "NUL character in 'rejected'", "at 1"),
    # not an object, keys
    "array": (b"[1, 2]", "not a JSON object", "array"),
    "null": (b"null", "not a JSON object", "null"),
    "number": (b"3", "not a JSON object", "number"),
    "text": (b'"Blue."', "not a JSON object", "str"),
    "empty object": (b"{}", "missing key 'chosen'", "keys here: none"),
    "missing key": (without("rejected", xyz="c"), "missing key 'rejected'", "keys here: prompt, chosen, xyz"),
    "missing prompt": (sides([assistant("a")], [assistant("b")]), "missing key 'prompt'", "add it"),
    "missing beside its rating": (without("chosen", chosen_rating=3), "missing key 'chosen'", "add it"),
    "misspelt key": (without("chosen", choosen="b"), "missing key 'chosen'", "rename 'choosen' to 'chosen'"),
    "misspelt key, other case": (without("chosen", CHOSEN="b"), "missing key 'chosen'", "rename 'CHOSEN' to"),
    "misspelt key, a space": (without("chosen", **{"chosen ": "b"}), "missing key 'chosen'", "rename 'chosen '"),
    "misspelt key, shortened": (without("rejected", reject="b"), "missing key 'rejected'", "rename 'reject' to"),
    "misspelt prompt": (without("prompt", Prompt="b"), "missing key 'prompt'", "rename 'Prompt'"),
    "key that cannot be printed": (without("prompt", **{"\ud800": 1}), "missing key 'prompt'", r"\ud800"),
    # null, wrong types
    "null chosen": (good(chosen=None), "'chosen' is null", "drop"),
    "null rejected": (good(rejected=None), "'rejected' is null", "drop"),
    "number for text": (good(chosen=7), "wrong type in 'chosen'", "number"),
    "boolean for text": (good(prompt=True), "wrong type in 'prompt'", "boolean"),
    "object for text": (good(rejected={"text": "no"}), "wrong type in 'rejected'", "object"),
    "message without content": (good(chosen=[{"role": "assistant"}]), "message without text in 'chosen'", "'content'"),
    "message with content null": (good(chosen=[assistant(None)]), "message without text in 'chosen'", "null"),
    "message with content in parts": (
        good(prompt=[user([{"type": "text"}])]),
        "message without text in 'prompt'",
        "arr",
    ),
    "message with a number as role": (good(prompt=[{"role": 1, "content": "x"}]), "message without text", "number"),
    # empty
    "empty chosen": (good(chosen=""), "empty text in 'chosen'", "fill"),
    "empty rejected": (good(rejected=""), "empty text in 'rejected'", "fill"),
    "blank": (good(rejected=" \n\u00a0\u3000"), "empty text in 'rejected'", "fill"),
    "blank prompt": (good(prompt="\t"), "empty text in 'prompt'", "fill"),
    "zero width": (good(chosen="\u200b\ufeff\u2060"), "empty text in 'chosen'", r"'\u200b\ufeff\u2060'"),
    "zero width joiners": (good(chosen=" \u200c\u200d\n"), "empty text in 'chosen'", "fill"),
    "invisible fillers": (good(chosen="\u3164\u2800\u00ad"), "empty text in 'chosen'", "fill"),
    "marks of direction": (good(prompt="\u202e\u200f"), "empty text in 'prompt'", "fill"),
    "empty turn in between": (good(prompt=[user("q"), assistant(""), user("r")]), "empty text in 'prompt'", "fill"),
    "empty conversation as prompt": (good(prompt=[]), "empty conversation in 'prompt'", "messages"),
    "empty conversation as reply": (good(chosen=[]), "empty conversation in 'chosen'", "messages"),
    # nothing is preferred
    "identical": (good(chosen="Egg."), "chosen equals rejected", "drop"),
    "identical but for white space around": (good(chosen="\nEgg. "), "chosen equals rejected", "drop"),
    "identical but for line ends": (good(chosen="a\r\nb", rejected="a\nb"), "chosen equals rejected", "drop"),
    "identical after NFC": (good(chosen="caf\u00e9", rejected=" cafe\u0301\n"), "chosen equals rejected", "drop"),
    "identical after NFKC": (good(chosen="ﬁne １２…", rejected="fine 12..."), "chosen equals rejected", "drop"),
    "identical but for zero width": (good(chosen="Eg\u200bg."), "chosen equals rejected", "drop"),
    # the two sides, turns and roles
    "prompts differ": (sides(WHOLE, [user("r"), assistant("b")]), "chosen and rejected have different prompts", "'q'"),
    "conversations of different lengths": (
        sides([*WHOLE, user("x"), assistant("y")], [user("q"), assistant("z")]),
        "chosen and rejected have different prompts",
        "3 turns",
    ),
    "prompt beside another one": (
        {"prompt": "p", **sides(WHOLE, [user("q"), assistant("b")])},
        "'chosen' does not continue the prompt",
        "'p'",
    ),
    "no reply": (sides(WHOLE[:1], WHOLE), "'chosen' does not end with an assistant turn", "'user'"),
    "two user turns in a row": (good(prompt=turns("user", "user")), "roles do not alternate in 'chosen'", "user, user"),
    "two assistant turns in a row": (
        good(prompt=turns("user", "assistant")),
        "roles do not alternate in 'chosen'",
        "assistant, assistant",
    ),
    "system turn in between": (good(prompt=turns("user", "assistant", "system")), "roles do not alternate", "system"),
    "system turn alone": (good(prompt=turns("system")), "roles do not alternate in 'chosen'", "system, assistant"),
    "unknown role": (good(prompt=turns("wizard")), "unknown role in 'chosen'", "'wizard'"),
    # other forms
    "unpaired, as for KTO": ({"prompt": "a", "completion": "b", "label": True}, "unpaired rows, as for KTO", "group"),
    "one rated reply": ({"prompt": "a", "response": "b", "helpfulness": 3}, "one rated reply a row", "group the rows"),
    "two replies alone": (
        {"prompt": "a", "response_1": "b", "response_2": "c"},
        "two replies without a verdict",
        "better",
    ),
    "an unknown verdict": (
        {"prompt": "a", "response_a": "b", "response_b": "c", "winner": "model_x"},
        "verdict 'winner' cannot be read",
        "name the better reply",
    ),
    "a reply without rank": ({"prompt": "a", "answers": [{"answer": "b"}]}, "a reply without rank or score", "add"),
    "two system prompts": (good(system="a", system_prompt="b"), "two system prompts", "keep one"),
    "history of another kind": (good(history="yesterday"), "wrong type in 'history'", "pairs"),
    "input of another kind": (good(input=["x"]), "wrong type in 'input'", "give a text"),
    # text that would be lost
    "a column of text": (good(context="He is six."), "text in 'context' would be lost", "ignore=('context',)"),
    "tools": (good(tools=[{"name": "look"}]), "text in 'tools' would be lost", "ignore="),
    "images": (good(images=["a.png"]), "text in 'images' would be lost", "ignore="),
    "thinking beside a reply": (
        good(chosen=[{**assistant("a"), "thinking": "so"}]),
        "text in 'thinking' of a message in 'chosen' would be lost",
        "write it into the prompt",
    ),
    "a conversation beside a pair": (good(conversations=SHAREGPT), "text in 'conversations' would be lost", "ignore"),
    "a task that is an instruction": (good(task="Translate into French:"), "text in 'task' would be lost", "ignore="),
    "a source that is a passage": (
        good(prompt_source="A whole passage that the prompt is about."),
        "text in 'prompt_source' would be lost",
        "ignore=",
    ),
    "a system prompt in metadata": (
        good(metadata={"system": "Be brief."}),
        "text in 'metadata' would be lost",
        "ignore",
    ),
    "two columns": (good(passage="It is six.", documents=["x y"]), "text in 'documents' would be lost", "'passage'"),
    "a system prompt of each reply": (
        {
            "instruction": "a",
            "completions": [{"response": r, "score": s, "system": "z"} for r, s in (("b", 1), ("c", 2))],
        },
        "text in 'system' of 'completions' would be lost",
        "ignore=('system',)",
    ),
    "a null turn": (
        {"prompt": '["a", "b"]', "response_a": '["c", null]', "response_b": '["c", "d"]'}
        | {"winner_model_a": 1, "winner_model_b": 0},
        "a turn of 'response_a' is null",
        "turn 2 of 2",
    ),
    "a prompt in both replies": (
        sides("Q: Name a colour. A: Blue.", "Q: Name a colour. A: Egg."),
        "missing key 'prompt'",
        "both replies begin with 'Q: Name a colour. A: '",
    ),
    # formatted text
    "a templated prompt": (
        good(prompt="<|im_start|>user\nHi<|im_end|>\n"),
        "'prompt' has been through a chat template",
        "plain",
    ),
    "a prompt that asks": (
        good(prompt="Hi\n\n### Response:"),
        "'prompt' has been through a chat template",
        "plain text",
    ),
    "a templated reply": (
        good(chosen="<|start_header_id|>assistant"),
        "'chosen' has been through a chat template",
        "tokenizer writes",
    ),
    "Llama 2's brackets": (
        good(prompt="<s>[INST] Hi [/INST]"),
        "'prompt' has been through a chat template",
        "messages",
    ),
    "lists as text": (good(chosen="['Blue.']", rejected='["Egg."]'), "'chosen' is a list written as text", "parse it"),
    "messages as text": (
        good(prompt='[{"role": "user", "content": "Hi"}]'),
        "'prompt' is a list written as text",
        "json.loads",
    ),
    "a transcript without a reply": (
        {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi\n\nAssistant: a"},
        "transcript in 'chosen' does not end with the assistant's turn",
        "'user'",
    ),
    "tool call": (sides([user("q"), CALL, assistant("x")], WHOLE), "tool call in 'chosen'", "'tool_calls'"),
    "tool call beside text": (sides(WHOLE, [user("q"), {**CALL, "content": "b"}]), "tool call in 'rejected'", "drop"),
    "tool turn": (good(prompt=turns("user", "tool")), "tool call in 'prompt'", "'role tool'"),
    "function turn": (good(prompt=turns("user", "function")), "tool call in 'prompt'", "'role function'"),
    "function call": (good(chosen=[{**assistant("a"), "function_call": {"name": "f"}}]), "tool call", "function_call"),
}

# what a rating may be that costs no row: the margin that comes of it
RATINGS = {
    "NaN": (with_number("NaN"), None),
    "infinite": (with_number("-Infinity"), None),
    "beyond floats": (with_number("1e999"), None),
    "of 400 digits": (good(chosen_score=1, rejected_score=10**400), None),
    "NaN on one side": (with_number("NaN", "chosen_rating"), None),
    "difference infinite": (good(score_chosen=1.7e308, score_rejected=-1.7e308), None),
    "beyond float32": (good(margin=1e300), None),
    "boolean": (good(margin=True), None),
    "boolean text": (good(chosen_rating="true", rejected_rating="false"), None),
    "list": (good(chosen_rating=[5], rejected_rating=[1]), None),
    "text": (good(margin="3"), 3.0),
    "texts": (good(chosen_score="8.5", rejected_score="2"), 6.5),
    "empty text": (good(margin=""), None),
    "half a pair": (good(chosen_rating=3), None),
    "a hyphen": (good(**{"chosen-rating": 4, "rejected-rating": 1.5}), 2.5),
    "ranks": (good(chosen_rank=1, rejected_rank=3), 2.0),
}
