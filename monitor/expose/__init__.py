"""What people and Prometheus see: one snapshot behind `/metrics`, the probes and the API.

Read in this order: `snapshot` (the frozen values), `exporter` (who makes them visible), `streams` and `exposition` (how
they become text within the series budget), `views` and `api` (how programs read the same). The loop calls the exporter;
the HTTP thread only reads what it published.
"""
