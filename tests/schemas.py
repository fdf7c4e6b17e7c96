"""The published schemas, as a reader of documents would use them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from tests.conftest import REPOSITORY


@cache
def validator(command: str) -> Draft202012Validator:
    text = (REPOSITORY / "docs" / "schemas" / f"{command}.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text), format_checker=FormatChecker())


def validated(document: Any) -> Any:
    """The document, which is what the schema that it names says; one that names none is the application's own."""
    if isinstance(document, dict) and "schema" in document:
        command = document["schema"].split("/")[1].partition(".")[0]
        validator(command).validate(document)
    else:
        assert isinstance(document, dict)
        assert document.keys() >= {"analytics"}, "only recompute --file prints a document without a name"
    return document
