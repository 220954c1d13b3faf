"""What endpoints' answers mean: bodies as providers send them, each with what has to follow."""

import orjson
import pytest

from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.llm.chat import (
    CallFailed,
    PromptTooLong,
    Refused,
    Reply,
    TryAgain,
    classify_finish_reason,
)
from bezoar_ray.llm.responses import read_answer, read_fault, to_exception

STOPS = "the run stops, and goes on later"
SETTINGS = "the run stops: the recipe is at fault"
ROW = "the row fails"
SHORTER = "the prompt is too long"
REFUSED = "the row fails, and counts with those that are refused alike"
LIMITED = "it is tried again, as all others, later"
AGAIN = "it is tried again"


def outcome(error):
    """One of the words above."""
    if isinstance(error, TryAgain):
        return LIMITED if error.limited else AGAIN
    kinds = (
        (RecipeError, SETTINGS),
        (BezoarError, STOPS),
        (Refused, REFUSED),
        (PromptTooLong, SHORTER),
    )
    return next((word for kind, word in kinds if isinstance(error, kind)), ROW)


def openai(message, code=None, kind=None, param=None):
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


CASES = {
    # An account without credit.
    "anthropic, no credit": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API. Please go to Plans.",
            },
        },
        STOPS,
    ),
    "openai, no quota": (
        429,
        openai("You exceeded your current quota.", "insufficient_quota"),
        STOPS,
    ),
    "openrouter, no credit": (402, openai("Insufficient credits", 402), STOPS),
    "openrouter, fewer tokens": (
        402,
        openai("This request requires more credits, or fewer max_tokens.", 402),
        STOPS,
    ),
    "openrouter, key limit": (
        403,
        openai("Key limit exceeded (total limit)", 403),
        STOPS,
    ),
    "deepseek, no balance": (
        402,
        openai("Insufficient Balance", "invalid_request_error"),
        STOPS,
    ),
    "xai, no credit": (
        403,
        {
            "code": "The caller does not have permission to execute the specified operation",
            "error": "Your team has either used all available credits or reached its monthly "
            "spending limit.",
        },
        STOPS,
    ),
    "together, credit limit": (
        429,
        openai("Credit limit exceeded, please navigate to billing"),
        STOPS,
    ),
    "alibaba, arrears": (
        400,
        openai(
            "Access denied, please make sure your account is in good standing.",
            "Arrearage",
        ),
        STOPS,
    ),
    # Rate limits that speak of quota and billing.
    "gemini, rate limit": (
        429,
        [
            {
                "error": {
                    "code": 429,
                    "status": "RESOURCE_EXHAUSTED",
                    "message": "You exceeded your current quota, please check your plan and "
                    "billing details.",
                }
            }
        ],
        LIMITED,
    ),
    "openai, rate limit": (
        429,
        openai(
            "Rate limit reached for gpt-5 on requests per min", "rate_limit_exceeded"
        ),
        LIMITED,
    ),
    "429 without a body": (429, "", LIMITED),
    # Keys.
    "openai, key": (
        401,
        openai("Incorrect API key provided: sk-1***9.", "invalid_api_key"),
        SETTINGS,
    ),
    "gemini, key": (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        SETTINGS,
    ),
    "xai, key": (
        400,
        {
            "code": "Client specified an invalid argument",
            "error": "Incorrect API key provided: xa***9.",
        },
        SETTINGS,
    ),
    "openai, country": (
        403,
        openai(
            "Country, region, or territory not supported",
            "unsupported_country_region_territory",
        ),
        SETTINGS,
    ),
    "gemini, country": (
        400,
        [{"error": {"message": "User location is not supported for the API use."}}],
        SETTINGS,
    ),
    # Models and addresses.
    "openai, model": (
        404,
        openai("The model `gpt-9` does not exist", "model_not_found"),
        SETTINGS,
    ),
    "openrouter, model": (
        400,
        openai("qwen/qwen99 is not a valid model ID", 400),
        SETTINGS,
    ),
    "mistral, model": (
        400,
        {
            "object": "error",
            "message": "Invalid model: tiny-mistral",
            "type": "invalid_model",
        },
        SETTINGS,
    ),
    "deepseek, model": (
        400,
        openai("Model Not Exist", "invalid_request_error"),
        SETTINGS,
    ),
    "nginx, address": (
        404,
        "<html><head><title>404 Not Found</title></head></html>",
        SETTINGS,
    ),
    "fastapi, address": (404, {"detail": "Not Found"}, SETTINGS),
    # A prompt that a filter refuses: 403 is not the key's.
    "openrouter, flagged": (
        403,
        {
            "error": {
                "code": 403,
                "message": "Input was flagged",
                "metadata": {"reasons": ["violence"], "flagged_input": "…"},
            }
        },
        ROW,
    ),
    "openrouter, a string": (
        403,
        {"error": "Your request was rejected by moderation"},
        ROW,
    ),
    "xai, flagged": (
        403,
        {
            "code": "The caller does not have permission to execute the specified operation",
            "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO",
        },
        ROW,
    ),
    "azure, filter": (
        400,
        openai(
            "The response was filtered due to the prompt triggering Azure OpenAI's content "
            "management policy.",
            "content_filter",
        ),
        ROW,
    ),
    "openai, reasoning": (
        400,
        openai(
            "Invalid prompt: your prompt was flagged as potentially violating our usage "
            "policy.",
            "invalid_prompt",
        ),
        ROW,
    ),
    "deepseek, risk": (
        400,
        openai("Content Exists Risk", "invalid_request_error"),
        ROW,
    ),
    "alibaba, inspection": (
        400,
        openai(
            "Input data may contain inappropriate content.", "data_inspection_failed"
        ),
        ROW,
    ),
    "openrouter, a prompt about money": (
        403,
        {
            "error": {
                "code": 403,
                "message": "Input was flagged",
                "metadata": {
                    "flagged_input": "My bank says insufficient funds, and: API key not valid?"
                },
            }
        },
        ROW,
    ),
    "openai, closed": (403, openai("Your organization has been disabled."), SETTINGS),
    "anthropic, flagged account": (
        403,
        openai("This account has been flagged for violating our usage policies."),
        SETTINGS,
    ),
    "openai, all reasoning": (
        400,
        openai(
            "Could not finish the message because max_tokens or model output limit was "
            "reached."
        ),
        ROW,
    ),
    # A prompt that is too long.
    "openai, long": (
        400,
        openai(
            "This model's maximum context length is 8192 tokens.",
            "context_length_exceeded",
        ),
        SHORTER,
    ),
    "vllm, long": (
        400,
        {
            "object": "error",
            "type": "BadRequestError",
            "code": 400,
            "message": "This model's maximum context length is 4096 tokens. However, you requested 5000",
        },
        SHORTER,
    ),
    "anthropic, long": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "prompt is too long: 213462 tokens > 200000",
            },
        },
        SHORTER,
    ),
    "tgi, long": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096",
            "error_type": "validation",
        },
        SHORTER,
    ),
    "llama.cpp, long": (
        500,
        openai("the request exceeds the available context size", 500),
        SHORTER,
    ),
    # Parameters.
    "openai, parameter": (
        400,
        openai("Unsupported value", "unsupported_value", param="temperature"),
        SETTINGS,
    ),
    "anthropic, two at once": (
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "`temperature` and `top_p` cannot both be specified for this model.",
            },
        },
        REFUSED,
    ),
    "fastapi, validation": (
        422,
        {
            "detail": [
                {"loc": ["body", "top_p"], "msg": "ensure this value is less than 1"}
            ]
        },
        REFUSED,
    ),
    "403 that says nothing": (403, {"error": {"message": "Forbidden"}}, REFUSED),
    # Faults that pass.
    "anthropic, overloaded": (
        529,
        {
            "type": "error",
            "error": {"type": "overloaded_error", "message": "Overloaded"},
        },
        AGAIN,
    ),
    "openai, engine": (
        503,
        openai("The engine is currently overloaded, please try again later"),
        AGAIN,
    ),
    "nginx, gateway": (
        502,
        "<html><head><title>502 Bad Gateway</title></head></html>",
        AGAIN,
    ),
    "cloudflare, timeout": (524, "error code: 524", AGAIN),
    "groq, capacity": (
        498,
        openai("Flex tier capacity exceeded", "capacity_exceeded"),
        AGAIN,
    ),
    "tgi, generation": (
        424,
        {"error": "Request failed during generation", "error_type": "generation"},
        AGAIN,
    ),
    "request timeout": (408, None, AGAIN),
    "no status": (
        0,
        {
            "error": {
                "code": "batch_expired",
                "message": "This request could not be executed.",
            }
        },
        AGAIN,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fault_means_what_its_provider_means(case):
    status, body, expected = CASES[case]
    error = to_exception(read_fault(status, body), "m at http://x/v1", "MY_KEY")
    assert outcome(error) == expected, error


@pytest.mark.parametrize(
    "case", [case for case, (_, body, _) in CASES.items() if isinstance(body, dict)]
)
def test_the_providers_own_message_is_shown(case):
    status, body, _ = CASES[case]
    inner = body.get("error", body)
    said = inner if isinstance(inner, str) else inner.get("message") or inner["detail"]
    said = said if isinstance(said, str) else said[0]["msg"]
    assert said in str(to_exception(read_fault(status, body), "m", None))


def test_a_web_page_is_told_by_its_title():
    fault = read_fault(502, "<html>\n<title>Bad\n gateway</title><body>" + "x" * 10_000)
    assert fault.message == "a web page titled Bad gateway"


STRANGE = (
    None,
    "",
    [],
    {},
    [[]],
    3,
    {"error": None},
    {"error": []},
    {"error": {"message": 5}},
    {"errors": [{"code": 1}]},
    {"error": {"message": {"a": 1}, "code": [1]}},
)


@pytest.mark.parametrize("body", STRANGE)
@pytest.mark.parametrize("status", [302, 400, 403, 418, 429, 500, 599])
def test_no_body_is_too_strange_to_be_classified(status, body):
    assert outcome(to_exception(read_fault(status, body), "m", None)) in (
        LIMITED,
        AGAIN,
        REFUSED,
        ROW,
    )


def test_refusals_are_alike_but_for_numbers_and_quotations():
    first, second, other = (
        to_exception(read_fault(422, {"detail": said}), "m", None).alike
        for said in (
            "top_p 1.5 of 'a' is too large",
            "top_p 2 of 'b' is too large",
            "seed is not known",
        )
    )
    assert first == second != other


# Answers with status 200.

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def answer(message=None, finish_reason="stop", usage=USAGE, **more):
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": message or {"role": "assistant", "content": "four"},
    }
    return {"choices": [choice | more.pop("choice", {})], "usage": usage} | more


def read(body):
    return read_answer(
        body if isinstance(body, bytes) else orjson.dumps(body), "m at http://x/v1"
    )


def test_a_reply_carries_text_reason_and_tokens():
    assert read(answer()) == Reply("four", "stop", 7, 2)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            {
                "content": [
                    {"type": "text", "text": "fo"},
                    {"type": "text", "text": "ur"},
                ]
            },
            "four",
        ),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]},
                    {"type": "text", "text": "four"},
                ]
            },
            "four",
        ),  # Mistral's reasoning models
        (
            {
                "content": [
                    {"type": "reasoning", "text": "2+2"},
                    {"type": "output_text", "text": "four"},
                ]
            },
            "four",
        ),
        ({"content": ["four"]}, "four"),
        ({"content": [{"type": "image_url", "image_url": "…"}]}, ""),
        ({"content": None}, ""),
        (
            {"content": None, "refusal": "I cannot help with that."},
            "I cannot help with that.",
        ),
        (
            {"content": "four", "reasoning_content": "2+2", "reasoning": "2+2"},
            "four",
        ),  # DeepSeek, vLLM; OpenRouter
    ],
)
def test_the_text_parts_are_the_answer(message, text):
    assert read(answer(message)).text == text


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 900},
            (10, 890, 0),
        ),  # Gemini: hidden reasoning
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 115,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (10, 105, 100),
        ),  # xAI
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 105,
                "total_tokens": 115,
                "completion_tokens_details": {"reasoning_tokens": 100},
            },
            (10, 105, 100),
        ),  # OpenAI
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "completion_tokens_details": None,
            },
            (10, 5, 0),
        ),
        ({"prompt_tokens": None, "completion_tokens": "5"}, (0, 0, 0)),
        (None, (0, 0, 0)),
        ([], (0, 0, 0)),
    ],
)
def test_what_is_billed_is_counted(usage, tokens):
    reply = read(answer(usage=usage))
    assert (reply.tokens_in, reply.tokens_out, reply.tokens_reasoning) == tokens


@pytest.mark.parametrize(
    ("body", "expected", "billed"),
    [
        (answer({"content": ""}, "error"), AGAIN, (7, 2)),
        (answer({"content": ""}, "error", usage=None), AGAIN, (0, 0)),
        (answer({"content": "half an ans"}, "error"), AGAIN, (7, 2)),
        (
            answer(choice={"error": {"code": 502, "message": "the host hung up"}}),
            AGAIN,
            (7, 2),
        ),  # OpenRouter
        ({"error": {"code": 429, "message": "slow down"}}, LIMITED, (0, 0)),
        (
            {"error": {"code": 502, "message": "the host hung up"}, "usage": USAGE},
            AGAIN,
            (7, 2),
        ),
        ({"error": {"code": 502, "message": "the host hung up"}}, AGAIN, (0, 0)),
        ({"error": "overloaded"}, AGAIN, (0, 0)),
        ({"error": {"code": 402, "message": "Insufficient credits"}}, STOPS, None),
        ({"error": {"code": 403, "message": "flagged by moderation"}}, ROW, None),
        ({"choices": []}, AGAIN, None),
        ({"choices": [{}]}, AGAIN, None),
        ({"choices": {"0": 1}}, AGAIN, None),
        ([1], AGAIN, None),
        (None, AGAIN, None),
        (b"", AGAIN, None),
        (b'{"choices": [', AGAIN, None),
        (b"OK", AGAIN, None),
        (b"<!doctype html><title>Welcome</title>", SETTINGS, None),
        (b"\n  <html>hello</html>", SETTINGS, None),
    ],
)
def test_a_good_status_is_no_answer_by_itself(body, expected, billed):
    with pytest.raises((TryAgain, CallFailed, BezoarError)) as caught:
        read(body)
    assert outcome(caught.value) == expected
    assert getattr(caught.value, "billed", None) == billed


def test_a_web_page_says_where_to_look():
    with pytest.raises(
        RecipeError, match="answers with a web page in place of JSON: check base_url"
    ):
        read(b"<html><title>Log in</title>")


@pytest.mark.parametrize(
    "reason",
    ["stop", "eos", "eos_token", "end_turn", "stop_sequence", "STOP", "", "tool_calls"],
)
def test_a_whole_answer_is_whole_by_any_name(reason):
    assert (
        classify_finish_reason(reason) == "stop"
        and not Reply("x", reason, 1, 1).is_cut_off
    )


@pytest.mark.parametrize(
    "reason",
    [
        "length",
        "max_tokens",
        "MAX_TOKENS",
        "model_length",
        "FINISH_REASON_MAX_TOKENS",
        "content_filter",
        "content-filter",
        "SAFETY",
        "Recitation",
        "refusal",
        "sensitive",
        "abort",
        "insufficient_system_resource",
        "model_context_window_exceeded",
        "OTHER",
    ],
)
def test_what_is_cut_off_or_filtered_is_so_by_any_name(reason):
    assert (
        classify_finish_reason(reason) != "stop" and Reply("x", reason, 1, 1).is_cut_off
    )
