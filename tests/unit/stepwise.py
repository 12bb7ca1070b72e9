"""The simulation as it is meant: every step of every replica taken singly by the Scheduler, in order of time.

Slow and plain, so that the jumping simulation can be held against it.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from erhpc.config import RouterConfig
from erhpc.routing.rules import make_rule
from erhpc.twin.demand import ClosedLoop
from erhpc.twin.scheduler import Request, Scheduler

HAIR_S = 1e-9


@dataclass
class Answered:
    """What became of a request."""

    row: int
    user: int
    sequence: int
    sent_s: float
    replica: int = -1
    token_times_s: list[float] = field(default_factory=list)


class Server:
    """One replica; `in_flight` and `name` are what the gateway's rules read."""

    def __init__(self, model, index) -> None:
        self.name = model.replica
        self.index = index
        self.in_flight = 0
        self.scheduler = Scheduler(model.limits)
        self.step_time = model.step_time
        self.steps = deque()
        self.is_busy = False
        self.ended_s = self.ends_s = -1.0
        """When the last step ended, and when the one that runs will."""

    def finish(self):
        self.is_busy = False
        self.ended_s = self.ends_s
        self.steps.popleft()
        return self.scheduler.finish_step()

    def start(self, now_s):
        """Schedule as far ahead as may be and begin the next step; when it ends, None if there is none."""
        while len(self.steps) <= self.scheduler.limits.asynchronous:
            step = self.scheduler.schedule()
            if not step.shares:
                break
            self.steps.append(self.step_time.step_s(step.batch))
        self.is_busy = bool(self.steps)
        if not self.steps:
            return None
        self.ends_s = now_s + self.steps[0]
        return self.ends_s


def simulate_stepwise(pools, demand, load, gateway):
    """Every request in the order of sending, the number of preemptions, and whether a hair decided between two orders.

    A request that arrives at the very moment at which a step ends is in the next step or not by how times were
    rounded. Without a gateway one thing is the cause of the other, and their order is sure.
    """
    servers, groups = [], []
    for pool in pools:
        groups.append([Server(model, len(servers) + index) for index, model in enumerate(pool)])
        servers += groups[-1]
    rules = [make_rule(gateway.rule, group, RouterConfig(), random.Random(0)) for group in groups]
    answered, tickets, free_s, num_left, is_tied = [], count(), 0.0, 0, False
    # (time, kind, ticket, what): at one moment senders come before arrivals, these before steps and their beginnings.
    events = []

    def push(at_s, kind, what):
        heapq.heappush(events, (at_s, kind, next(tickets), what))

    if isinstance(load, ClosedLoop):
        first = min(load.users, load.num_requests)
        num_left = load.num_requests - first
        for user in range(first):
            push(user * load.ramp_s / load.users, 0, (user, 0))
    else:
        for number, at_s in enumerate(load.due_s):
            push(at_s, 0, (number, 0))

    def send(now_s, user, sequence):
        nonlocal free_s
        row = (sequence * load.users + user) % len(demand.prompt_tokens) if isinstance(load, ClosedLoop) else user
        answered.append(Answered(row, user, sequence, now_s))
        free_s = max(free_s, now_s) + gateway.service_s
        push(free_s + gateway.latency_s, 1, len(answered) - 1)

    def arrive(now_s, number):
        nonlocal is_tied
        group = groups[demand.pool[answered[number].row]]
        if gateway.latency_s:
            is_tied |= any(abs(end_s - now_s) < HAIR_S for one in group for end_s in (one.ended_s, one.ends_s))
        server = group[rules[demand.pool[answered[number].row]].pick(range(len(group)), None)]
        answered[number].replica = server.index
        server.in_flight += 1
        row = answered[number].row
        server.scheduler.add(
            Request(str(number), demand.prompt_tokens[row], demand.answer_tokens[row], demand.cached_tokens[row])
        )
        if not server.is_busy:
            push(now_s, 3, server)

    def end_step(now_s, server):
        nonlocal num_left
        finished = []
        for request in server.finish():
            answered[int(request.request_id)].token_times_s.append(now_s)
            finished += [request] if request.is_finished else []
        server.in_flight -= len(finished)
        for request in finished[:num_left]:
            num_left -= 1
            before = answered[int(request.request_id)]
            think_s = demand.think_s[before.row]
            if think_s:
                push(now_s + think_s, 0, (before.user, before.sequence + 1))
            else:
                send(now_s, before.user, before.sequence + 1)
        push(now_s, 3, server)

    while events:
        now_s, kind, _, what = heapq.heappop(events)
        if kind == 0:
            send(now_s, *what)
        elif kind == 1:
            arrive(now_s, what)
        elif kind == 2:
            end_step(now_s, what)
        elif not what.is_busy and (end_s := what.start(now_s)) is not None:
            push(end_s, 2, what)
    return answered, sum(server.scheduler.num_preemptions for server in servers), is_tied
