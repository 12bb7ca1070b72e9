"""The streaming client: one request goes out, its answer comes in and is stamped. It knows neither users nor levels.

target                     the URL, and the head of a request (pure)
events, answer, template   bytes of an answer -> arrivals of tokens (pure)
exchange                   one request as it happens, and the protocol of a streaming client
reception                  the pieces of one response, read when the answer may have ended
stamps                     the kernel's time of arrival, on the monotonic clock
wire, connector            a connection, and how it is opened
redirects                  following a server that sends elsewhere
native, streaming          erhpc's own client, and the reference that is built on aiohttp
selection                  which of them a configuration asks for
"""
