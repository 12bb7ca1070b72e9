"""HTTP/1.1 as bytes: heads and bodies of messages, for whoever holds the sockets. Pure.

head, body               of a response, taken apart: the client
requests, framing        of a request, and where a response ends without taking it apart: the gateway
"""
