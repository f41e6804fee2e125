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
    "list for text": (good(chosen=["Blue."]), "wrong type in 'chosen'", "str"),
    "lists of different lengths": (good(chosen=["a", "b"], rejected=["c"]), "wrong type in 'chosen'", "objects"),
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
    "unknown role": (good(prompt=turns("human")), "unknown role in 'chosen'", "'human'"),
    # other forms
    "ShareGPT with replies": (
        {"conversations": SHAREGPT[:1], **sides(SHAREGPT[1], {"from": "gpt", "value": "b"})},
        "ShareGPT keys in 'chosen'",
        "rename 'conversations' to 'prompt', 'from' to 'role' (human: user, gpt: assistant)",
    ),
    "ShareGPT in lists": (sides(SHAREGPT, SHAREGPT), "ShareGPT keys in 'chosen'", "'value' to 'content'"),
    "ShareGPT without replies": ({"conversations": SHAREGPT}, "missing key 'chosen'", "ShareGPT"),
    "ShareGPT prompt": (without("prompt", conversations=SHAREGPT[:1]), "missing key 'prompt'", "ShareGPT"),
    "tool call": (sides([user("q"), CALL, assistant("x")], WHOLE), "tool call in 'chosen'", "'tool_calls'"),
    "tool call beside text": (sides(WHOLE, [user("q"), {**CALL, "content": "b"}]), "tool call in 'rejected'", "drop"),
    "tool turn": (good(prompt=turns("user", "tool")), "tool call in 'prompt'", "'role tool'"),
    "function turn": (good(prompt=turns("user", "function")), "tool call in 'prompt'", "'role function'"),
    "function call": (good(chosen=[{**assistant("a"), "function_call": {"name": "f"}}]), "tool call", "function_call"),
    # ratings
    "rating NaN": (with_number("NaN"), "'margin' is not finite", "nan"),
    "rating infinite": (with_number("-Infinity"), "'margin' is not finite", "-inf"),
    "rating beyond floats": (with_number("1e999"), "'margin' is not finite", "inf"),
    "rating of 400 digits": (good(chosen_score=1, rejected_score=10**400), "'rejected_score' is not finite", "1000"),
    "rating NaN on one side": (with_number("NaN", "chosen_rating"), "'chosen_rating' is not finite", "leave"),
    "difference of ratings infinite": (good(score_chosen=1.7e308, score_rejected=-1.7e308), "margin is not", "inf"),
    "rating beyond float32": (good(margin=1e300), "margin is not finite in float32", "give smaller numbers"),
    "rating as text": (good(margin="3"), "wrong type in 'margin'", "str '3'"),
    "rating as boolean": (good(margin=True), "wrong type in 'margin'", "boolean"),
    "rating as boolean text": (good(margin="true"), "wrong type in 'margin'", "str 'true'; give a number"),
    "ratings as boolean text": (good(chosen_rating="true", rejected_rating="false"), "wrong type", "give a number"),
    "rating as list": (good(chosen_rating=[5], rejected_rating=[1]), "wrong type in 'chosen_rating'", "array"),
}
