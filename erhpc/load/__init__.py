"""The load of a level: users who ask, stream and measure. Several client processes share one level.

It reads no configuration file and computes no statistics: a client is told a `ClientSpec`, obeys a conductor, and
returns a `ClientPart`.

    messages                   what conductor and client processes say to each other
    conductor, steadiness      one warm-up, window and drain for all clients of a level
    sweep, search, stopping    which level comes next, and when there is none (pure)
    worker, journal            one client process during one level
    population, users, alarm   who asks when: users who stay, or conversations that begin on schedule
    process                    what a client process asks of its operating system and its interpreter
    null_expert, calibrating, calibration   what the client costs, and how far it is off
    progress                   rolling numbers for a live view
"""
