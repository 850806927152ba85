"""What people see, as code: reference pages, dashboards, rules and alerts, rendered from the metric catalogue.

Everything here is made from `monitor.metrics` and `monitor.config` and nothing else, so that a name which does not exist
is a Python error here before it is an empty panel there. What is rendered is checked in and compared in the tests; it
changes only by `make render`.
"""
