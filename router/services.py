"""What the endpoints share: the model being served, and the way to the workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request
from starlette.responses import Response

from router.access import route_of
from router.admission.admission import Admission
from router.admission.fields import ask_of, salt_of
from router.errors import ClientGone
from router.generation import Generation, Job
from router.metrics import RouterMetrics
from router.placement import homes
from router.prompt import Prompt
from router.protocol import DirectBody
from router.relay import Relay
from router.render import Extras, Shape, chunked_answer, whole_answer
from router.reply import Reply
from router.sampling import (
    draw_seed,
    new_tokens,
    prompt_seed,
    sampling_params,
    sparse_of,
    speculation_of,
)
from router.schema import ChatRequest, CompletionRequest, GenerationBody
from router.stream import EventStream, while_connected
from transport.registry import WorkerView
from triptych.admission_config import TenantConfig
from triptych.config import ClusterConfig
from triptych.errors import CapacityError, RequestError
from triptych.request import Grammar, SparseAttention
from triptych.tokenizer import Tokenizer

# An answer ends by the deadline of its calls; this is for a client that takes nothing any more.
_STALL_S = 5.0


@dataclass(frozen=True, slots=True)
class Services:
    """One per process; everything in it lives on one event loop."""

    config: ClusterConfig
    tokenizer: Tokenizer
    workers: Callable[[], list[WorkerView]]
    relay: Relay
    metrics: RouterMetrics
    admission: Admission
    started: int  # Unix seconds

    @property
    def model(self) -> str:
        return self.config.served_name

    @property
    def context(self) -> int | None:
        """Tokens a request may hold: what every home can do; None while there is no home."""
        views = homes(self.model, self.workers())
        return min((view.max_model_len for view in views), default=None)

    def check(self, model: str | None) -> None:
        """What can be said before a prompt is tokenised. Raises RequestError, CapacityError."""
        self.check_model(model)
        self.require_context()

    def check_model(self, asked: str | None) -> None:
        if asked is not None and asked != self.model:
            raise RequestError(
                f"model: {asked[:200]!r} is not served here; this is {self.model!r}",
                param="model",
                code="model_not_found",
            )

    def salt(self, request: Request, body: ChatRequest | CompletionRequest) -> str:
        """Requests with other ones share nothing. Raises RequestError for another tenant's."""
        return salt_of(self._tenant(request), body.cache_salt or "", self._sparse(body))

    def _sparse(self, body: ChatRequest | CompletionRequest) -> SparseAttention | None:
        return sparse_of(body.sparse_attention, self.config.router.sparse_attention)

    def _tenant(self, request: Request) -> TenantConfig:
        tenant: TenantConfig = getattr(request.state, "tenant", self.admission.tenants.anybody)
        return tenant

    def job(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        prompts: Sequence[Prompt],
        *,
        prefix: str,  # of the answer's id
        arrived: float,  # time.monotonic()
        grammar: Grammar | None = None,  # checked
        shown_tokens: frozenset[int] = frozenset(),
    ) -> Job:
        """Raises RequestError for what does not fit the model."""
        context = self.require_context()
        tenant = self._tenant(request)
        field = "messages" if isinstance(body, ChatRequest) else "prompt"
        if not all(prompt.ids for prompt in prompts):
            raise RequestError(f"{field}: must hold at least one token", param=field)
        seed = draw_seed(body.seed)
        params = [
            sampling_params(
                body,
                seed=prompt_seed(seed, index, body.choices),
                max_tokens=new_tokens(body, len(prompt.ids), context),
                vocab_size=self.tokenizer.vocab_size,
                grammar=grammar,
            )
            for index, prompt in enumerate(prompts)
        ]
        return Job(
            route=route_of(request.scope),
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            arrived=arrived,
            prompts=prompts,
            params=params,
            n=body.choices,
            cache_salt=self.salt(request, body),
            ask=ask_of(
                request.headers,
                body,
                tenant,
                prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
                max_tokens=max(each.max_tokens for each in params),
                prompts=len(prompts),
                arrived=arrived,
                longest_s=self.config.router.request_deadline_s,
            ),
            speculation=speculation_of(body.speculation),
            sparse=self._sparse(body),
            session=request.headers.get("x-session-id", ""),
            shown_tokens=shown_tokens,
        )

    async def answer(
        self, request: Request, body: GenerationBody, job: Job, shape: Shape
    ) -> Response:
        """Runs the job and answers as the client asked: whole or streamed."""
        generation = Generation(job, self.relay, self.tokenizer, self.metrics)
        extras = Extras.wanted(body, timings=request.headers.get("x-triptych-timings") == "1")

        def headers() -> dict[str, str]:
            limits = self.admission.headers(job.ask.tenant)
            return {"X-Triptych-Decision": generation.decision, **limits}

        def interrupted(reason: str) -> None:
            self.metrics.interrupted.labels(job.route, reason).inc()

        if body.stream:
            return EventStream(
                partial(self._chunked, shape, generation, extras),
                headers=headers,
                deadline_s=self.config.router.request_deadline_s + _STALL_S,
                interrupted=interrupted,
            )
        try:
            reply = await while_connected(request.receive, self._whole(shape, generation, extras))
        except ClientGone:
            interrupted("client")
            raise
        except asyncio.CancelledError:
            interrupted("stopping")
            raise
        return Response(reply.json_bytes(), 200, headers(), "application/json")

    async def _whole(self, shape: Shape, generation: Generation, extras: Extras) -> Reply:
        async with self._admitted(generation):
            return await whole_answer(shape, generation, extras)

    async def _chunked(
        self, shape: Shape, generation: Generation, extras: Extras, body: DirectBody | None
    ) -> AsyncGenerator[bytes, None]:
        async with (
            self._admitted(generation),
            contextlib.aclosing(chunked_answer(shape, generation, extras, body)) as events,
        ):
            async for some in events:
                yield some

    @contextlib.asynccontextmanager
    async def _admitted(self, generation: Generation) -> AsyncIterator[None]:
        """Waits for the generation's turn, and tells admission what became of it."""
        async with self.admission.admit(generation.job.ask) as seat:
            generation.first_word = seat.first_word
            yield
            seat.spent = generation.spent

    def require_context(self) -> int:
        context = self.context
        if context is None:
            raise CapacityError(f"no decode worker for {self.model} is attached; try again later")
        return context
