"""A level played through without a GPU: users or arrivals, the gateway, and the replicas behind it, in simulated time.

Pure: requests, routing and times come as arrays, so it knows no text, no prompt file and no classifier. Users send
(closed loop) or requests are due (open loop); each passes the gateway, which serves one at a time and then picks a
replica of the request's pool; the replica decides as vLLM's scheduler does and takes as long as its model of step
times says. Nothing here was measured, and `Prediction` is where that is still known: who stores it says `predicted`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf
from sys import maxsize

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

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


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
    spells: Sequence[Sequence[tuple[int, int]]]
    """First and last step of its replica that yielded tokens; several spells where it was preempted in between."""
    step_ends_s: Sequence[Floats]
    """Of each replica: when its steps ended; step s at index s - 1."""

    def token_times_s(self, request: int) -> Floats:
        """When the tokens of the answer to a request came, shape (tokens_out,)."""
        ends_s = self.step_ends_s[self.replica[request]]
        return np.concatenate([ends_s[first - 1 : last] for first, last in self.spells[request]])


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
        self._sent: list[Asked] = []
        """All requests that count, in the order in which they were sent."""
        self._sends: list[tuple[float, int, int, int, int]] = []
        """Heap of what is to be sent: when, in which order it was planned, user, which of the user's, row."""
        self._num_planned = 0
        self._arrivals: deque[tuple[float, Asked]] = deque()
        """When, and which request has passed the gateway."""
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
        self._sends = [(user * load.ramp_s / load.users, user, user, 0, user % num_rows) for user in range(first)]

    def expect(self, due_s: list[float], num_counted: int | None) -> None:
        """Let requests come when they are due."""
        self._num_counted = self._num_open = len(due_s) if num_counted is None else num_counted
        self._sends = [(at_s, number, number, 0, number) for number, at_s in enumerate(due_s)]

    def play(self) -> None:
        """Let everything happen, in order of time."""
        heapify(self._sends)
        sends, arrivals, due, replicas = self._sends, self._arrivals, self._due, self._replicas
        while self._num_open:
            send_s = sends[0][0] if sends else inf
            arrival_s = arrivals[0][0] if arrivals else inf
            due_s, index = due[0] if due else (inf, -1)
            if send_s <= arrival_s and send_s <= due_s:
                _, _, user, index, row = heappop(sends)
                self._send(send_s, user, index, row)
            elif arrival_s <= due_s:
                self._arrive(*arrivals.popleft())
            else:
                heappop(due)
                if replicas[index].due_s == due_s:
                    self._step(index, due_s)

    def _send(self, now_s: float, user: int, index: int, row: int) -> None:
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
        self._arrivals.append((passed_s + gateway.latency_s, sequence))

    def _arrive(self, now_s: float, sequence: Asked) -> None:
        pool = sequence.pool
        sequence.replica = index = self._first_of[pool] + self._balancers[pool].take()
        replica = self._replicas[index]
        if replica.arrive(sequence, now_s):
            heappush(self._due, (replica.due_s, index))

    def _step(self, index: int, now_s: float) -> None:
        """A replica ends its steps, which lets users send, and begins the next ones."""
        replica, arrivals = self._replicas[index], self._arrivals
        finished = replica.finish()
        if finished:
            pool = self._pool_of[index]
            balancer, member = self._balancers[pool], index - self._first_of[pool]
            for _ in finished:
                balancer.release(member)
            others = self._others
            self._num_open -= sum(sequence not in others for sequence in finished) if others else len(finished)
            if self._num_left:
                for sequence in finished[: self._num_left]:
                    self._ask_again(sequence, now_s)
                while arrivals and arrivals[0][0] <= now_s:
                    self._arrive(*arrivals.popleft())
        replica.start(now_s)
        if replica.due_s != inf:
            heappush(self._due, (replica.due_s, index))

    def _ask_again(self, answered: Asked, now_s: float) -> None:
        rows = self._rows
        self._num_left -= 1
        user, index = answered.user, answered.index + 1
        row = (index * self._users + user) % len(rows.pool)
        think_s = rows.think_s[answered.row]
        if think_s:
            heappush(self._sends, (now_s + think_s, self._num_planned, user, index, row))
            self._num_planned += 1
        else:
            self._send(now_s, user, index, row)

    def report(self) -> Prediction:
        """Everything that happened to the requests that count."""
        sent = self._sent
        replica = _integers([sequence.replica for sequence in sent])
        spells = [(*(sequence.spells or ()), (sequence.begun, sequence.last)) for sequence in sent]
        ends_s = [_end_steps(replica.stretches) for replica in self._replicas]
        offsets = np.cumsum([0, *(ends.size for ends in ends_s)])[:-1][replica] - 1
        all_ends_s = np.concatenate(ends_s)
        return Prediction(
            replicas=self._models,
            row=_integers([sequence.row for sequence in sent]),
            user=_integers([sequence.user for sequence in sent]),
            sequence=_integers([sequence.index for sequence in sent]),
            replica=replica,
            sent_s=np.array([sequence.sent_s for sequence in sent]),
            first_token_s=all_ends_s[offsets + _integers([spell[0][0] for spell in spells])],
            last_token_s=all_ends_s[offsets + _integers([spell[-1][1] for spell in spells])],
            tokens_in=_integers([sequence.prompt for sequence in sent]),
            tokens_out=_integers([sequence.answer for sequence in sent]),
            num_preemptions=sum(replica.num_preemptions for replica in self._replicas),
            spells=spells,
            step_ends_s=ends_s,
        )


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


def _end_steps(stretches: array[float]) -> Floats:
    """When each step ended (see `Replica.stretches`)."""
    start_s, num_steps, step_s, growth_s = np.frombuffer(stretches, dtype=np.float64).reshape(-1, 4).T
    counts = num_steps.astype(np.int64)
    firsts = np.cumsum(counts) - counts
    nth = np.arange(counts.sum()) - np.repeat(firsts, counts) + 1
    ends_s: Floats = np.repeat(start_s, counts) + nth * np.repeat(step_s, counts)
    ends_s += nth * (nth - 1) // 2 * np.repeat(growth_s, counts)
    return ends_s


def _integers(values: Sequence[int]) -> Integers:
    return np.array(values, dtype=np.int64)
