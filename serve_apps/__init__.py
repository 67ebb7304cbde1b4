"""The two HTTP services: the definition service and the query server, one ASGI application on both ports."""
