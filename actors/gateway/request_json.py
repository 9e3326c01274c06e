"""From a body's bytes to a typed request, or to an error that names the field.

Owns the sentences about JSON and about fields' types. It must never know what a field means.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from .openai_errors import ApiError, invalid_parameter, refused

NAME_SHOWN_CHARACTERS_MAX = 256
"""How much of an unknown field's name an error repeats."""

Request = TypeVar("Request", bound=msgspec.Struct)

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"^Object (?P<problem>contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)


def decode_json(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    """What ``body`` says. Raises `ApiError` (400) that names the field which is wrong, unknown or missing."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refused(400, "invalid_json", f"The body is not valid JSON in UTF-8: {error}.") from None
    except RecursionError:
        raise refused(400, "invalid_json", "The body is nested too deeply.") from None


def _field_error(sentence: str) -> ApiError:
    """Turn msgspec's "Expected `int`, got `str` - at `$.n`" into an error that names the parameter."""
    where = _WHERE.match(sentence)
    assert where is not None
    path, what = where["path"] or "", where["what"]
    field = _FIELD.match(what)
    if field is None:
        return invalid_parameter(path or None, f"`{path or 'body'}`: {what}.")
    name = f"{path}.{field['name']}" if path else field["name"]
    name = name[:NAME_SHOWN_CHARACTERS_MAX]
    if field["problem"] == "missing required":
        return invalid_parameter(name, f"`{name}` is missing.", "missing_required_parameter")
    return invalid_parameter(name, f"`{name}` is not a parameter that FlexPipe knows; remove it.", "unknown_parameter")
