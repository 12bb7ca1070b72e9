"""The load of a level: users who ask, stream and measure. One client process runs one share of one level.

It reads no configuration file and computes no statistics: it is told a `ClientSpec` and returns a `ClientPart`.

    tokenizer                  a model's tokenizer, read from its file
    lengths, words, texts      how long texts are, and texts of that length (pure, seeded)
    bodies, pool, requests     what is asked: a user's conversations as bodies of requests (pure, seeded)
    events, answer             bytes of an answer -> arrivals of tokens (pure)
    exchange                   one request as it happens, and the protocol of a streaming client
    streaming                  the client that is built on aiohttp
    journal, users, level      who asks when, phase by phase; one record per request
    progress                   rolling numbers for a live view
    process                    what a client process asks of its operating system and its interpreter
"""
