"""Dashboards and alert rules over what `/metrics` shows; docs/monitoring.md says how to run them."""
