"""Structured output: a schema that the reply must follow, and the parser that reads it."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, cast

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from ..engine.grammar import closed

Method = Literal["function_calling", "json_schema", "json_mode"]
ANY_OBJECT = {"type": "object"}


def structured(
    model: BaseChatModel,
    schema: Any,
    method: Method,
    include_raw: bool,
    tools: Sequence[Any] | None,
    options: Mapping[str, Any],
) -> Runnable[LanguageModelInput, Any]:
    """``model``, whose replies follow ``schema`` and are parsed; see ``DeltaMemChatModel.with_structured_output``."""
    if method not in ("function_calling", "json_schema", "json_mode"):
        raise ValueError(f'method {method!r} is none of "function_calling", "json_schema", "json_mode"')
    if schema is None and method != "json_mode":
        raise ValueError(f'method "{method}" needs a schema: give one, or take method="json_mode"')
    if tools and method == "function_calling":
        raise ValueError('tools beside a schema need method="json_schema": a function call is a tool call itself')
    traced = {"kwargs": {"method": method}, "schema": None if schema is None else whole_schema(schema)}
    parser: OutputParserLike[Any]
    bound: dict[str, Any]
    if method == "function_calling":
        bound = {"parallel_tool_calls": False, "ls_structured_output_format": traced, **options}
        tool = as_tool(schema)
        llm = model.bind_tools([tool], tool_choice="any", **bound)
        if is_model(schema):
            parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
        else:
            parser = JsonOutputKeyToolsParser(key_name=tool["function"]["name"], first_tool_only=True)
    else:
        wanted = ANY_OBJECT if schema is None else closed(whole_schema(schema))
        form = {"type": "json_schema", "json_schema": {"name": wanted.get("title", "reply"), "schema": wanted}}
        bound = {"response_format": form, "ls_structured_output_format": traced, **options}
        llm = model.bind_tools(tools, **bound) if tools else cast(Any, model.bind(**bound))
        parser = PydanticOutputParser(pydantic_object=schema) if is_model(schema) else JsonOutputParser()
    return with_raw(llm, parser) if include_raw else llm | parser


def with_raw(llm: Runnable[Any, Any], parser: OutputParserLike[Any]) -> Runnable[LanguageModelInput, Any]:
    """{"raw": the message, "parsed": what it says or None, "parsing_error": the exception or None}."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def whole_schema(schema: Any) -> dict[str, Any]:
    """The JSON Schema of a schema in any form; LangChain's own conversion drops what has no "properties" of its own
    (maps, allOf, anyOf, $ref) and cuts models that refer to themselves.
    """
    if is_model(schema) and hasattr(schema, "model_json_schema"):
        own = schema.model_json_schema()
        if "$defs" in own or "properties" not in own:
            return {"title": schema.__name__, **own}
    if isinstance(schema, Mapping) and not {"name", "function", "input_schema", "toolSpec"} & set(schema):
        return dict(schema)
    return convert_to_json_schema(schema)


def as_tool(schema: Any) -> dict[str, Any]:
    """A tool in OpenAI's form whose arguments are what a schema describes.

    Raises ValueError when that is no object.
    """
    whole = whole_schema(schema)
    cut = "properties" not in whole or "$defs" in whole
    if not cut or not (is_model(schema) or isinstance(schema, Mapping)):
        return convert_to_openai_tool(schema)
    if whole.get("type", "object") != "object":
        raise ValueError(f'the arguments of a call are an object, not {whole["type"]!r}: take method="json_schema"')
    if "title" not in whole:
        raise ValueError('a JSON Schema needs a "title" to be called as a tool: give one, or take method="json_schema"')
    parameters = {name: item for name, item in whole.items() if name not in ("title", "description")}
    function = {"name": whole["title"], "description": whole.get("description", ""), "parameters": parameters}
    return {"type": "function", "function": function}


def is_model(schema: Any) -> bool:
    """Whether a schema is a class of pydantic's."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def schema_of(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON Schema that a ``response_format`` of OpenAI's asks for; None: free text.

    Raises:
        ValueError: a form that is not known.
    """
    kind = None if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind == "json_schema":
        inner = response_format.get("json_schema", response_format)
        if isinstance(schema := inner.get("schema"), Mapping):
            return schema
    raise ValueError(
        f"response_format {dict(response_format)!r} is not known: "
        '{"type": "json_object"}, or {"type": "json_schema", "json_schema": {"schema": {…}}}'
    )
