"""The platform on one machine: servers, Ray, Serve and jobs, started, watched and stopped as one.

``local`` is the way in (``up``, ``status``, ``down``); ``launcher`` is the one wrapper on Ray's job and
Serve interfaces; ``watcher`` is the process that keeps every part alive. See ``docs/architecture.md``.
"""
