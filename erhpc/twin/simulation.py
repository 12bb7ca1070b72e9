"""A level played through without a GPU: users or arrivals, the gateway, and the replicas behind it, in simulated time.

Pure: requests, routing and times come as arrays, so it knows no text, no prompt file and no classifier. Users send
(closed loop) or requests are due (open loop); each passes the gateway, which serves one at a time and then picks a
replica of the request's pool; the replica decides as vLLM's scheduler does and takes as long as its model of step
times says. Nothing here was measured, and `Prediction` is where that is still known: who stores it says `predicted`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from struct import Struct
from sys import maxsize
from typing import Any

import numpy as np
import numpy.typing as npt

from erhpc.twin.balancing import make_balancer
from erhpc.twin.decode_times import DecodeTimes
from erhpc.twin.demand import (
    ClosedLoop,
    Demand,
    GatewayModel,
    OpenLoop,
    ReplicaModel,
    Rows,
    check_demand,
    check_due,
)
from erhpc.twin.replica import Replica
from erhpc.twin.sequence import Sequence as Asked
from erhpc.twin.timeline import Floats, Integers, Timeline

Send = tuple[float, int, int, int, int]
"""When to send, in which order it was planned, user, which of the user's, row."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What became of every request, in the order in which they were sent; all arrays of shape (num_requests,).

    Times are seconds since the level began. Every request was answered; requests that only kept up the load at the
    level's end are left out, all of which were sent later.
    """

    replicas: Sequence[ReplicaModel]
    row: Integers
    """Which row of the demand it is."""
    user: Integers
    """Which user sent it; in an open loop the number of the request."""
    sequence: Integers
    """Which request of its user it is, from 0."""
    replica: Integers
    """Index into `replicas`."""
    sent_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    tokens_in: Integers
    tokens_out: Integers
    num_preemptions: int
    """Of all replicas."""
    first_step: Integers
    """The step of its replica that yielded the first token since it was last preempted; of most, the first of all."""
    last_step: Integers
    """The step that yielded its last token."""
    earlier_spells: Mapping[int, Sequence[tuple[int, int]]]
    """Of requests that were preempted: first and last of the steps that yielded tokens, up to each preemption."""
    timeline: Timeline
    """When the steps ended."""

    def token_times_s(self, request: int) -> Floats:
        """When the tokens of the answer to a request came, shape (tokens_out,)."""
        spells = [*self.earlier_spells.get(request, ()), (self.first_step[request], self.last_step[request])]
        steps = np.concatenate([np.arange(first, last + 1) for first, last in spells])
        return self.timeline.ends_s(int(self.replica[request]), steps)


def simulate(
    pools: Sequence[Sequence[ReplicaModel]],
    demand: Demand,
    load: ClosedLoop | OpenLoop,
    gateway: GatewayModel | None = None,
) -> Prediction:
    """Play `load` through until the last request that counts is answered.

    In a closed loop request i of user k is row (i * users + k) modulo the number of rows, so that users ask the same
    things however fast they are answered.

    Args:
        pools: replicas among which the gateway picks by rule: those of one expert.
        demand: lengths and routing of the requests.
        load: who sends when.
        gateway: what stands before the replicas; None: nothing that takes time.

    Raises:
        ConfigError: there is no replica, or the rule is not simulated.
        InputError: there is no request, a row is malformed, or a request does not fit the experts it is routed to.
    """
    rows = check_demand(pools, demand)
    level = _Level(pools, rows, gateway or GatewayModel())
    if isinstance(load, ClosedLoop):
        level.invite(load)
    else:
        level.expect(check_due(load, rows), load.num_counted)
    level.play()
    return level.report()


class _Level:
    """The clock and who acts next: senders, the gateway, replicas; at one moment in this order."""

    def __init__(self, pools: Sequence[Sequence[ReplicaModel]], rows: Rows, gateway: GatewayModel) -> None:
        self._models = [model for pool in pools for model in pool]
        self._rows = rows
        self._gateway = gateway
        self._replicas = _build_replicas(self._models)
        self._pool_of = [index for index, pool in enumerate(pools) for _ in pool]
        self._first_of = [self._pool_of.index(index) for index in range(len(pools))]
        self._balancers = [make_balancer(gateway.rule, len(pool)) for pool in pools]
        self._has_choice = [len(pool) > 1 for pool in pools]
        """Of which pools a replica is picked once the request is there; else it is known, and told of it ahead."""
        self._sent: list[Asked] = []
        """All requests that count, in the order in which they were sent."""
        self._first_sends: deque[Send] = deque()
        """What is sent however fast answers come, in order."""
        self._sends: list[Send] = []
        """Heap of what is to be sent besides, once users have thought."""
        self._num_planned = 0
        self._arrivals: deque[tuple[float, Asked]] = deque()
        """When, and which request will have passed the gateway, where a replica is to be picked then."""
        self._due: list[tuple[float, int]] = []
        """Heap of when, and which replica has to act; entries that its `due_s` does not match are void."""
        self._gateway_free_s = 0.0
        self._users = 0
        self._num_left = 0
        """How many more requests are sent (closed loop)."""
        self._num_counted = 0
        """So many requests count, those that are sent first."""
        self._num_open = 0
        """How many of these have not been answered."""
        self._others: set[Asked] = set()
        """The others that were sent."""

    def invite(self, load: ClosedLoop) -> None:
        """Let the users of a closed loop come."""
        self._users = load.users
        self._num_counted = self._num_open = load.num_requests
        first = load.users if load.keeps_load else min(load.users, load.num_requests)
        self._num_left = maxsize if load.keeps_load else load.num_requests - first
        num_rows = len(self._rows.pool)
        self._num_planned = first
        self._first_sends.extend(
            (user * load.ramp_s / load.users, user, user, 0, user % num_rows) for user in range(first)
        )

    def expect(self, due_s: list[float], num_counted: int | None) -> None:
        """Let requests come when they are due."""
        self._num_counted = self._num_open = len(due_s) if num_counted is None else num_counted
        self._first_sends.extend((at_s, number, number, 0, number) for number, at_s in enumerate(due_s))

    def play(self) -> None:
        """Let everything happen, in order of time."""
        first_sends, sends, arrivals, due, replicas = (
            self._first_sends, self._sends, self._arrivals, self._due, self._replicas,
        )  # fmt: skip
        while self._num_open:
            send_s = inf
            if first_sends or sends:
                is_first = bool(first_sends) and not (sends and sends[0] < first_sends[0])
                send_s = first_sends[0][0] if is_first else sends[0][0]
            arrival_s = arrivals[0][0] if arrivals else inf
            due_s, index = due[0] if due else (inf, -1)
            if send_s <= arrival_s and send_s <= due_s:
                self._send(*(first_sends.popleft() if is_first else heappop(sends)))
            elif arrival_s <= due_s:
                self._arrive(*arrivals.popleft())
            else:
                heappop(due)
                if replicas[index].due_s == due_s:
                    self._step(index, due_s)

    def _send(self, now_s: float, _: int, user: int, index: int, row: int) -> None:
        rows, gateway = self._rows, self._gateway
        sequence = Asked(
            now_s,
            row,
            user,
            index,
            rows.pool[row],
            rows.prompt_tokens[row],
            rows.answer_tokens[row],
            rows.cached_tokens[row],
        )
        if len(self._sent) < self._num_counted:
            self._sent.append(sequence)
        else:
            self._others.add(sequence)
        begun_s = self._gateway_free_s
        self._gateway_free_s = passed_s = (begun_s if begun_s > now_s else now_s) + gateway.service_s
        if self._has_choice[sequence.pool]:
            self._arrivals.append((passed_s + gateway.latency_s, sequence))
        else:
            self._arrive(passed_s + gateway.latency_s, sequence)

    def _arrive(self, at_s: float, sequence: Asked) -> None:
        """Pick the replica of a request that arrives at `at_s`: now, or later where there is only one to pick."""
        pool = sequence.pool
        sequence.replica = index = self._first_of[pool] + self._balancers[pool].take()
        replica = self._replicas[index]
        if replica.arrive(sequence, at_s):
            heappush(self._due, (replica.due_s, index))

    def _step(self, index: int, now_s: float) -> None:
        """A replica ends its steps, which lets users send, and begins the next ones."""
        replica = self._replicas[index]
        finished = replica.finish()
        if finished:
            pool, others, arrivals = self._pool_of[index], self._others, self._arrivals
            self._balancers[pool].release(index - self._first_of[pool], len(finished))
            self._num_open -= sum(sequence not in others for sequence in finished) if others else len(finished)
            if self._num_left:
                self._ask_again(finished[: self._num_left], now_s)
                while arrivals and arrivals[0][0] <= now_s:
                    self._arrive(*arrivals.popleft())
        replica.start(now_s)
        if replica.due_s != inf:
            heappush(self._due, (replica.due_s, index))

    def _ask_again(self, answered: list[Asked], now_s: float) -> None:
        """Let users send their next requests, or plan to."""
        pauses_s, users, num_rows = self._rows.think_s, self._users, len(self._rows.pool)
        self._num_left -= len(answered)
        for sequence in answered:
            user, index = sequence.user, sequence.index + 1
            row = (index * users + user) % num_rows
            think_s = pauses_s[sequence.row]
            if think_s:
                heappush(self._sends, (now_s + think_s, self._num_planned, user, index, row))
                self._num_planned += 1
            else:
                self._send(now_s, 0, user, index, row)

    def report(self) -> Prediction:
        """Everything that happened to the requests that count."""
        known = _tabulate(self._sent)
        num_preemptions = sum(replica.num_preemptions for replica in self._replicas)
        earlier = {number: one.spells for number, one in enumerate(self._sent) if one.spells} if num_preemptions else {}
        very_first_step = known["begun"].copy()
        for number, spells in earlier.items():
            very_first_step[number] = spells[0][0]
        timeline = Timeline([replica.stretches for replica in self._replicas])
        return Prediction(
            replicas=self._models,
            row=known["row"],
            user=known["user"],
            sequence=known["index"],
            replica=known["replica"],
            sent_s=known["sent_s"],
            first_token_s=timeline.ends_s(known["replica"], very_first_step),
            last_token_s=timeline.ends_s(known["replica"], known["last"]),
            tokens_in=known["prompt"],
            tokens_out=known["answer"],
            num_preemptions=num_preemptions,
            first_step=known["begun"],
            last_step=known["last"],
            earlier_spells=earlier,
            timeline=timeline,
        )


def _tabulate(sent: Sequence[Asked]) -> dict[str, npt.NDArray[Any]]:
    """Columns of what is known of requests, by the names of attributes; packed, it takes a fourth of the time."""
    pack = Struct("=d8q").pack
    packed = [
        pack(one.sent_s, one.row, one.user, one.index, one.replica, one.prompt, one.answer, one.begun, one.last)
        for one in sent
    ]
    names = ("row", "user", "index", "replica", "prompt", "answer", "begun", "last")
    table = np.frombuffer(b"".join(packed), dtype=[("sent_s", np.float64), *((name, np.int64) for name in names)])
    return {name: table[name].copy() for name in ("sent_s", *names)}


def _build_replicas(models: Sequence[ReplicaModel]) -> list[Replica]:
    """Replicas that have their model of step times in common share its pieces."""
    shared: dict[tuple[int, int], DecodeTimes] = {}
    replicas = []
    for model in models:
        step_time, most_tokens = model.step_time, model.limits.kv_capacity_tokens
        if not isinstance(step_time, DecodeTimes):
            step_time = shared.setdefault((id(step_time), most_tokens), DecodeTimes(step_time, most_tokens))
        replicas.append(Replica(model.limits, step_time))
    return replicas
