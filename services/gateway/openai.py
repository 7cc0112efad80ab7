"""What a client may ask for: OpenAI's request bodies. Checks form, not feasibility."""

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from gateway.errors import InvalidRequest
from protocol.sampling import MAX_STOP_TOKEN_IDS, TokenId

MAX_PROMPTS = 16
MAX_CHOICES = 16  # of one prompt
MAX_SEQUENCES = 64  # of one call
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_MESSAGES = 4096
MAX_SALT_CHARACTERS = 256

# Fields that would change the answer and are not served (some by one route only), with
# the values that ask for nothing. Any other unknown field is ignored, as the clients of
# others send many.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}


def _listed(value: Any) -> Any:
    """One stop string is a list of one."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _prompts(value: Any) -> Any:
    """One prompt, a string or token ids, is a list of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [value]
    return value


def _text(content: Any) -> Any:
    """A message's content as one string; its parts are joined as in vLLM."""
    if not isinstance(content, list):
        return content
    return "\n".join(map(_text_of_part, content))


def _text_of_part(part: Any) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
    raise PydanticCustomError("text_part", "only text parts are supported")


Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]
# Fail fast: naming every wrong element of a long list would take seconds.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Prompt = str | TokenIds


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class Call(BaseModel):
    """What completions and chat have in common. None: the model's default."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Annotated[list[Stop], BeforeValidator(_listed)] = Field(
        default=[], max_length=MAX_STOP_STRINGS
    )
    stop_token_ids: list[TokenId] | None = Field(
        default=None, max_length=MAX_STOP_TOKEN_IDS
    )
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = Field(default=None, max_length=MAX_SALT_CHARACTERS)

    @property
    def max_output(self) -> int | None:
        """The output's longest length, under either of its names."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def num_choices(self) -> int:
        """Answers that each prompt gets."""
        return self.n or 1

    @property
    def num_candidates(self) -> int:
        """Answers that are generated for each prompt."""
        return self.num_choices

    @property
    def is_ranked(self) -> bool:
        """Whether a prompt's choices are its likeliest candidates, best first."""
        return False


class CompletionCall(Call):
    """Body of POST /v1/completions."""

    prompt: Annotated[list[Prompt], BeforeValidator(_prompts)] = Field(
        min_length=1, max_length=MAX_PROMPTS
    )
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)

    @property
    def num_candidates(self) -> int:
        return self.best_of or self.num_choices

    @property
    def is_ranked(self) -> bool:
        return self.num_candidates > 1 and self.best_of is not None

    @model_validator(mode="after")
    def _check_candidates(self) -> Self:
        """Not as a ValueError, which would lose the parameter's name."""
        if self.num_candidates < self.num_choices:
            raise InvalidRequest("'best_of' must not be below 'n'.", param="best_of")
        if self.is_ranked and self.stream:
            raise InvalidRequest(
                "'best_of' cannot be streamed: the best is known only at the end.",
                param="best_of",
            )
        num_sequences = len(self.prompt) * self.num_candidates
        if num_sequences > MAX_SEQUENCES:
            raise InvalidRequest(
                f"A call generates at most {MAX_SEQUENCES} answers: {len(self.prompt)} "
                f"prompts with {self.num_candidates} each are {num_sequences}.",
                param="n" if self.best_of is None else "best_of",
            )
        return self


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text)]
    name: str | None = None


class ChatCall(Call):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)


C = TypeVar("C", bound=Call)


def parse(kind: type[C], body: bytes) -> C:
    """Read a body; InvalidRequest says what is wrong with it, without quoting it."""
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"The body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    _refuse_unsupported(fields, served=kind.model_fields)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _in_words(error) from None


def _refuse_unsupported(fields: dict[str, Any], served: Collection[str]) -> None:
    for name, neutral in NEUTRAL.items():
        value = None if name in served else fields.get(name)
        if value is not None and value not in neutral:
            raise InvalidRequest(
                f"'{name}' is not supported here with this value.",
                param=name,
                code="unsupported_value",
            )


def _in_words(error: ValidationError) -> InvalidRequest:
    """The first problem, with the name of its field."""
    problem = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    param = str(problem["loc"][0])
    if param == "prompt" and problem["type"] != "missing":
        return InvalidRequest(
            "'prompt' must be a string, a list of token ids, or a list of at most "
            f"{MAX_PROMPTS} of these.",
            param=param,
        )
    return InvalidRequest(f"{place}: {problem['msg']}.", param=param)
