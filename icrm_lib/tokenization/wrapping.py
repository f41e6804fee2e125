"""Chat templates rewritten: where a finished turn ends, and on what day."""

import re

# The day that templates are told. It is the one that Llama 3's template falls back to.
DATE = "26 Jul 2024"
_DIRECTIVES = {
    **{
        "%d": "26",
        "%-d": "26",
        "%e": "26",
        "%m": "07",
        "%-m": "7",
        "%b": "Jul",
        "%h": "Jul",
        "%B": "July",
        "%Y": "2024",
    },
    **{"%y": "24", "%a": "Fri", "%A": "Friday", "%j": "208", "%w": "5", "%u": "5", "%F": "2024-07-26"},
    **{"%D": "07/26/24", "%x": "07/26/24", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM"},
    **{"%T": "12:00:00", "%X": "12:00:00", "%R": "12:00", "%c": "Fri Jul 26 12:00:00 2024", "%Z": "UTC", "%%": "%"},
}
# Templates of Llama 3.2, Granite, SmolLM3 and gpt-oss call this function of transformers; a macro of its name hides it.
_CLOCK = (
    "{%- macro strftime_now(icrm_format) -%}{{- icrm_format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in _DIRECTIVES.items())
    + " -}}{%- endmacro %}\n"  # no minus at the end: white space at the template's beginning stays
)
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def dated(source: str) -> str:
    """Return a template that writes `DATE` where this one writes today's date; another template as it is."""
    return _CLOCK + source if "strftime_now" in source and _CLOCK not in source else source


def wrapped(source: str, *, has_closing: bool, blank: int, lacks_bos: bool) -> str:
    """Return a template whose finished assistant turns end at the closing token.

    Args:
        source: the template.
        has_closing: whether it writes a closing token; EOS is added where not.
        blank: characters of white space that it writes at its very end.
        lacks_bos: whether BOS is to be put in front.
    """
    # Jinja drops one line break at the end of a template and, as transformers configures it, one after each
    # tag. The line break behind the first tag and the plus sign in the last one keep the source's own white
    # space as it was.
    source = re.sub(r"(\r\n|\r|\n)\Z", "", source)
    # `{% generation %}` measures positions while text is written, which a set block delays: mark the places,
    # tag them below.
    tagged = _GENERATION_TAG.sub(
        lambda tag: f"{{%{tag[1]} if true -%}}{{{{- '\\ufdd{1 if tag[2] else 0}' -}}}}{{%- endif {tag[3]}%}}", source
    )
    # Without a closing token the reply itself may end in white space: remove only what the template added.
    end = "icrm_text.rstrip()" if has_closing else f"icrm_text[:icrm_text | length - {blank}] + eos_token"
    if tagged != source and has_closing:  # the last mark may stand behind the white space
        end = f"({end}[:-1].rstrip() + '\\ufdd1') if {end}.endswith('\\ufdd1') else {end}"
    return (
        f"{{% set icrm_text %}}\n{tagged}{{%+ endset -%}}\n"
        "{%- if not add_generation_prompt and messages and messages[-1]['role'] == 'assistant' -%}\n"
        f"{{%- set icrm_text = {end} -%}}\n"
        "{%- endif -%}\n" + ("{{- bos_token -}}\n" if lacks_bos else "") + _printed(tagged != source)
    )


def _printed(has_generation_tags: bool) -> str:
    if not has_generation_tags:
        return "{{- icrm_text -}}\n"
    return (
        "{%- for icrm_part in icrm_text.split('\\ufdd0') -%}\n"
        "{%- if loop.first -%}{{- icrm_part -}}{%- else -%}\n"
        "{%- set icrm_turn = icrm_part.split('\\ufdd1') -%}\n"
        "{%- generation -%}{{- icrm_turn[0] -}}{%- endgeneration -%}{{- icrm_turn[1:] | join -}}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
    )
