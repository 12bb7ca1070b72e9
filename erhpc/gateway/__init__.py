"""The gateway: an OpenAI-compatible HTTP server that hosts a router and relays the chosen replica's answer.

`server` starts it, `app` holds the routes, `requests` reads what clients send, `relay` talks to replicas, `replicas`
and `prober` know which of them are live, `metrics` counts. This room knows neither plan nor Slurm nor any model.
"""
