"""What a plan will measure, before it is queued: every level played through by the twin, with an interval and a cause.

`demand` draws what the users of a workload ask, `routes` sends it where the router would, `fleet` models the replicas;
`outcome` reads a simulated level, `causes` says what holds it back, `prediction` does all of that for a plan,
`placements` for others of the same experts; `rendering` shows it and `saving` leaves it beside the plan. It may read
prompts, traces and a classifier, and starts nothing. No number of this room was measured, and each says so.
"""
