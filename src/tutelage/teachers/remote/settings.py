"""What a recipe may choose about a teacher on a server."""

from typing import Annotated, Literal, TypeAlias, final
from urllib.parse import urlsplit

from annotated_types import Ge, Gt
from pydantic import NonNegativeInt, PositiveInt, field_validator

from tutelage.core.settings import Settings
from tutelage.core.targets import Rest

Api: TypeAlias = Literal["tutelage", "vllm"]
RemoteAnswer: TypeAlias = Literal["hidden", "top_k", "logits"]


@final
class RemoteTeacherSettings(Settings):
    """A model on a server, asked about exact token ids: `tutelage serve`, or vLLM's own."""

    kind: Literal["remote"] = "remote"
    url: str
    """Where the server is, such as http://127.0.0.1:8077; vLLM's without /v1. No proxy of the
    environment is used."""
    api: Api = "tutelage"
    """`tutelage`: what `tutelage serve` speaks. `vllm`: its OpenAI-compatible server, which
    answers with log-probabilities of the likeliest entries only."""
    model: str
    """Its name on the hub, or a folder: configuration and tokenizer are read here. Its weights are
    not, but by `doctor`, and to make a student from them."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is its default branch."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model, here. Off unless you have read that code."""
    served_name: str | None = None
    """What the server calls the model; null is `model`."""
    answer: RemoteAnswer = "hidden"
    """`hidden`: last hidden states, and the head once; exact for every objective. `top_k`: the
    likeliest entries and the mass of the rest. `logits`: every entry, which is much to send."""
    top_k: PositiveInt = 20
    """Likeliest entries asked for (K), of `top_k`; vLLM allows no more than its --max-logprobs."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Divides the teacher's logits before they become probabilities, of `top_k`; it must be the
    objective's. vLLM knows only 1."""
    rest: Rest | None = None
    """Of `top_k`: what becomes of the entries that are not sent. `tail_bucket` lumps them into one
    class, `renormalised` leaves them out on both sides, `truncated` only sums the kept terms;
    null is tail_bucket, but renormalised for concrete_score."""
    token_env: str | None = None
    """Environment variable that holds the server's token; null sends none. The token itself is
    never a setting, for a recipe is written beside every run."""
    timeout_seconds: Annotated[float, Gt(0)] = 120.0
    """For one answer; a request that takes longer is asked again."""
    retries: NonNegativeInt = 3
    """Failures of a request in a row before the run pauses until the server is back."""
    patience_seconds: Annotated[float, Ge(0)] = 1800.0
    """The longest that a run pauses before it ends with an error; its checkpoints stay."""
    max_concurrent: PositiveInt = 8
    """Requests on their way at a time, of each process."""
    rows_per_request: PositiveInt = 4
    """Rows in one request."""
    remember_megabytes: NonNegativeInt = 1024
    """How much memory may hold answers already given, so that later epochs ask for nothing."""
    parity_rows: NonNegativeInt = 3
    """Rows that `doctor` also reads through `model` on this machine, to compare, where it has up
    to a billion parameters; 0 compares none."""

    @field_validator("url")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        parts = urlsplit(value)
        try:
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            whole = False
        if not whole or parts.query or parts.fragment or "@" in parts.netloc:
            # What stands before an @ is a password, and is not repeated.
            shown = value if "@" not in value else "an address with a name in it"
            raise ValueError(
                f"teacher.url is {shown}; it must be http:// or https://, a host, and perhaps a "
                "port and a path. Correct it; a token belongs into the variable that "
                "teacher.token_env names."
            )
        return value.rstrip("/")

    @property
    def name_there(self) -> str:
        """What the server should call the model."""
        return self.served_name or self.model
