"""The load of a level: who asks what when, how answers are streamed and stamped, and which level comes next.

A client process runs one share of one level. It reads no configuration and computes no statistics: it is told a
`ClientSpec`, obeys the conductor, and returns a `ClientPart`.

what is asked, pure and seeded:
    tokenizer                   a model's tokenizer, read from its file (not pure)
    lengths, words, texts       how long texts are, and texts of that length
    traces                      recorded workloads: when requests came, how long they were (reads files)
    pool, requests, bodies      prompts of a workload; a user's conversations; the bytes of a request's body
when it is asked:
    arrivals, profile           schedules of open loops, think times; how the load changes within a window (pure)
    alarm, users, population    waking in time; one user; all users or arrivals of a client process
how it is streamed:
    exchange, client            one request as it happens, and the protocol of a streaming client; which one it is
    native, wire, connector     erhpc's own client; one connection; how connections are opened
    target, redirects           whom a client asks; where a server sends it instead
    stamps, reception           who stamps arrivals; one response as it comes in
    head, body, events          the framings of a response: HTTP's head, its body, server-sent events (pure)
    template, answer            frames -> tokens, usage, errors, the end (pure)
    streaming                   the reference on aiohttp that `native` is tested against
one level:
    conductor, steadiness       leads all clients through warm-up, window and drain; when a warm-up is over (pure)
    messages                    what conductor and clients say to each other
    worker, journal, process    one client process; what happened in it; what it asks of its operating system
    progress                    rolling numbers for a live view
all levels:
    sweep, stopping, search     which level comes next, when to stop, the largest load that meets the SLO (pure)
what the client says of itself:
    null_expert                 an expert that costs next to nothing, whose tokens are the times at which it sent them
    calibrating, calibration    the client against it: running it, and what it costs and how far it is off (pure)
"""
