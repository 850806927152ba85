"""What every field of the configuration is, in which unit, and why its default is what it is: pure data.

`monitor.config` holds types, bounds and defaults; this page holds the words, so that the structs stay readable at a
glance and the words can be as long as they must. `docs/configuration.md` is rendered from both; a test fails when a
field is not described here, or something is described that is no field. Each entry is (unit, text); the unit is ""
where there is none, and the text says what the field is and, after a full stop, the reason for the default.

The part on retraining stands in `config_reference_retrain`.
"""

from __future__ import annotations

from collections.abc import Mapping

from monitor.config_reference_retrain import RETRAIN_FIELDS

#: struct -> field -> (unit, text)
FIELDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Config": {
        "monitors": ("", "The models to watch, each with its topic and reference. There is no default: without one there "
                         "is nothing to do."),
        "service": ("", "Where the process listens and keeps its state."),
        "kafka": ("", "The brokers to read from; either this or `files`."),
        "files": ("", "Files to read instead of Kafka."),
        "limits": ("", "Bounds that protect the process."),
        "grafana": ("", "Where `tidemark dashboards push` writes dashboards and the marks of what happened."),
        "reports": ("", "The reports of alarms, at `/reports/{alarm}`."),
        "alertmanager": ("", "Where the service sends its alerts itself, if no Prometheus evaluates rules."),
    },
    "Service": {
        "listen": ("", "HOST:PORT of metrics, probes and API; port 0 takes a free one. The default is reachable from this "
                       "machine only, because opening a port is a decision; in a container write `0.0.0.0:8080`."),
        "state": ("", "Where panes, offsets, alarms and launches are kept: `sqlite:///relative` or `sqlite:////absolute`. "
                      "A file is enough for one process and needs no server; put it on a volume that survives a restart."),
        "token_file": ("", "File with the bearer token that `/api` asks for; without one the API is as open as the port. A "
                           "file, because a token in the configuration would be copied with it."),
        "tls": ("", "Certificate and key, to serve https in place of http. None, since in a cluster a mesh or an ingress often "
                    "does it; without either, the token crosses the network readable."),
        "hosts": ("", "Names by which programs and people reach the port; a request for another name is refused, so that a "
                      "foreign page cannot have a browser read it under a name of its own. On a port of this machine only, "
                      "addresses and `localhost` are known besides; on any other port every name is, where none is given."),
        "checkpoint_seconds": ("seconds", "Longest time between two checkpoints. 1, because a restart repeats at most that "
                                          "much work."),
        "dead_letters": ("", "Where refused records go: `file:PATH`, `topic:NAME` or `none`. A file, because it works "
                             "without rights to write to Kafka; nothing that is refused disappears unseen."),
        "log_level": ("", "Least important message that is logged. INFO tells decisions, never single events."),
        "replicas": ("", "Several processes that share the work, see docs/replicas.md; `state` then is a cache of each. None: "
                         "one process keeps everything in `state`, which needs no rights to write to Kafka."),
    },
    "Replicas": {
        "topic": ("", "The compacted topic that holds panes, alarms and launches; made at the start where that is allowed. "
                      "A name of its own beside the topics of events."),
        "partitions": ("", "Partitions of that topic: so many replicas at most decide about models, however many count. 8, "
                           "because each costs a connection and it cannot be changed later."),
        "replication": ("", "Copies of the topic that is made. 3, as of every topic that must survive a broker."),
        "transaction_seconds": ("seconds", "A transaction that a dead replica left open holds decisions back for so long. 10: "
                                           "a slow broker answers within it, and a model waits no longer."),
        "name": ("", "A name that this replica alone has and keeps when it is restarted, such as `${HOSTNAME}` of a "
                     "StatefulSet: what its predecessor left open is then ended at once. Without one it is ended by time."),
    },
    "Kafka": {
        "bootstrap_servers": ("", "HOST:PORT of some brokers; the others are found through them."),
        "group": ("", "Consumer group: replicas of one service share it, two services do not."),
        "security": ("", "Encryption and login."),
        "client_id": ("", "Name that brokers log and set quotas by."),
        "start": ("", "Where a partition is begun that no checkpoint knows. `earliest`, because what was produced before "
                      "the first start should be judged, too; `latest` leaves it out."),
        "poll_records": ("records", "Most records that one batch takes. 10,000: decoding and counting cost least per event "
                                    "from some 4,000 on, and a batch of 10,000 events of 20 columns takes 8 MB."),
        "idle_seconds": ("seconds", "A partition that is read to its end and brings nothing for so long no longer holds the "
                                    "watermark back. 30, so that one silent partition delays decisions by less than a "
                                    "default pane; a producer that pauses longer has its events counted as late."),
        "session_timeout_seconds": ("seconds", "The broker gives partitions to another member after so long without a sign "
                                               "of life. 45 is Kafka's own default."),
        "transport": ("", "The client library. `kafka-python` needs nothing besides; `librdkafka` takes a fifth of its processor "
                          "time per event, and needs `pip install 'tidemark[fast]'`. Both read the same, in the same order."),
        "decoder": ("", "How JSON becomes columns: `msgspec`, or `columns`, compiled, which gives the same values in a fifth "
                        "of the time and takes 120 MB and some seconds at the start (extra `fast`). `auto` takes it beside "
                        "librdkafka where it can be had: who asks for the one wants the other."),
        "fetch_bytes": ("bytes", "Most bytes that are held fetched and not yet decoded; unpacked they take several times as "
                                 "much. 16 MiB: more makes nothing faster, and it was the largest part of a small monitor's "
                                 "memory."),
    },
    "Security": {
        "protocol": ("", "How brokers are spoken to. PLAINTEXT as Kafka's own default; use SASL_SSL wherever the network is "
                         "not yours alone."),
        "mechanism": ("", "How to log in, with the SASL protocols."),
        "username": ("", "Name to log in with."),
        "password_file": ("", "File with the password; a newline at its end is not part of it. Passwords never stand in "
                              "this file."),
        "ca_file": ("", "Certificates (PEM) that the brokers' are checked against; without one, those of the system."),
        "certificate_file": ("", "Our own certificate (PEM), where brokers ask for one; together with `key_file`."),
        "key_file": ("", "The key (PEM) of our own certificate."),
        "check_hostname": ("", "Whether a broker's certificate must be made out to its name. True: without it, any "
                               "certificate of the same authority passes for the broker."),
    },
    "Files": {
        "paths": ("", "Parquet, CSV or JSON lines files, read in this order as one partition each. The service ends when "
                      "they are read."),
    },
    "Reports": {
        "enabled": ("", "Whether evidently draws the alarm's window against the reference, from sampled rows. None: where "
                        "evidently is installed and the reference keeps rows; `true` refuses to start without evidently; `false` "
                        "keeps no rows. Our own half of a report, from counts, is there either way."),
        "rows": ("rows", "Rows that are kept of each pane for it, chosen by a hash of their offsets, of the latest 136 panes; "
                         "fewer where a reference has more than 200 columns. 100: a window of one pane can be drawn, one of 16 "
                         "is drawn well, and it costs some 13 kB of the state per pane at 20 columns."),
        "keep": ("alarms", "Reports that are kept, those of the latest alarms. 30 are at most 150 MB on disk."),
        "seconds": ("seconds", "Longest time that one may take before it is ended and called failed. 300: it takes some 15 on a "
                               "free core, but it runs at the lowest priority, and a busy machine gives it little."),
        "folder": ("", "Where they are kept. None: beside the state, in a folder of its name and `.reports`."),
    },
    "Grafana": {
        "url": ("", "Its address, with the sub-path where there is one. None: `--url` gives it, or nothing is pushed."),
        "token_file": ("", "File with the token of a service account: role Editor, or Admin where a data source is made. "
                           "Tokens never stand in this file."),
        "ca_file": ("", "Certificates (PEM) that Grafana's is checked against; without one, those that come with the client."),
        "prometheus_url": ("", "Address of Prometheus as Grafana reaches it; a data source of its own is made for it. None: the "
                               "dashboards use one that is there, as most installations have."),
        "service_url": ("", "Address at which people reach this service, for the dashboards' links to reports. None: the "
                            "variable `Service address` at a dashboard's top says it."),
        "folder": ("", "Title of the folder of the dashboards, if it has to be made; one that is there keeps its title."),
    },
    "Alertmanager": {
        "urls": ("", "Their addresses, with the path where they are served below one; with a cluster, those of all its members, "
                     "because each must hear of every alert. None: nothing is sent, as is right where Prometheus evaluates the "
                     "rules of `tidemark render`."),
        "token_file": ("", "File with the bearer token that they ask for. It is read anew for every post; tokens never stand in "
                           "this file."),
        "username": ("", "Name to log in with, where they ask for a password; together with `password_file`."),
        "password_file": ("", "File with the password; blanks around it are not part of it. It is read anew for every post."),
        "ca_file": ("", "Certificates (PEM) that theirs are checked against; without one, those of the system."),
        "resend_seconds": ("seconds", "Time between two posts of everything that is open. 60, as Prometheus does: an alert that "
                                      "nobody repeats for three times as long is over for Alertmanager."),
        "labels": ("", "Labels of every alert, for your routing. `job` has the value that Prometheus would give, so that the "
                       "inhibitions of `deploy/alertmanager` fit."),
        "retrain_label": ("", "Whether TidemarkSevereDrift carries the label `tidemark_action=\"retrain\"`, by which "
                              "Alertmanager routes it back as a trigger. False: the service starts retrainings by itself "
                              "where a monitor has `retrain`."),
        "service_url": ("", "Address at which people reach this service, for the link to the report. None: that of "
                            "`grafana.service_url`; without either, alerts have no such link."),
        "grafana_url": ("", "Address of Grafana, for the link to the dashboard. None: `grafana.url`; without either, no such "
                            "link."),
        "runbooks_url": ("", "Address of the folder of the runbook pages. None: alerts have no such link."),
    },
    "Tls": {
        "certificate_file": ("", "Certificate with its chain, PEM. It is read anew when it changes, without a restart."),
        "key_file": ("", "Its key, PEM."),
        "key_password_file": ("", "File with the key's password, where it has one."),
        "client_ca_file": ("", "Certificates of the authority whose clients are let in; who has none ends in the handshake, "
                               "Prometheus and the probes, too. None lets everybody speak, and `token_file` decides."),
    },
    "Limits": {
        "message_bytes": ("bytes", "A larger record is refused unread, with the reason `too_large`. 1 MiB is what a broker "
                                   "takes by default."),
        "unpacked_bytes": ("bytes", "An Arrow message whose buffers unpack to more, or whose rows take more as columns, is "
                                    "refused unread, with the reason `too_large`; and about so much is decoded at a time. "
                                    "16 MiB: 95,000 events of 20 columns, 2,000 of 1,000."),
        "columns": ("columns", "Most columns of one monitor; more are refused at start. 2,000: beyond, a pane's scan takes "
                               "longer than people wait for a page."),
        "open_panes": ("panes", "How far one partition may be read ahead of the slowest, and so how many panes one monitor "
                                "holds open. Events beyond it wait, and their partition is paused; memory is "
                                "columns x bins x panes x 8 bytes."),
        "memory_mb": ("MiB", "The process must fit in so much by the formula of docs/operations.md, or the service refuses to "
                             "start and says what it needs and which setting lowers it most. Set the container's limit to it. "
                             "2,048: six models of 20 columns, 36 with `open_panes: 60`."),
        "capture_mb": ("MiB", "Captured rows of all models that wait in memory and in the state for `retrain.capture_uri`, in "
                              "equal shares; a storage that stays away longer loses the oldest, counted. 128: about 700,000 rows "
                              "of 20 columns."),
        "series": ("series", "Most series in a scrape. Beyond it the columns with the highest scores are shown and the rest "
                             "is one `__other__`. 50,000 is what a small Prometheus takes from one target without effort."),
        "launches": ("launches", "Most trainings under way over all models; beyond it an alarm waits. 4, so that one change in "
                                 "the world that moves every model does not take the whole cluster."),
        "dead_letter_bytes": ("bytes", "A dead-letter file stops growing here; what comes after is counted as dropped. "
                                       "1 GiB, so that a broken producer does not fill the disk that the state is on."),
    },
    "Monitor": {
        "model": ("", "Name of the model: the label `model` in metrics, and the key in the API. Letters, digits, dots, "
                      "dashes, underscores; at most 63."),
        "topic": ("", "Kafka topic with its inferences."),
        "reference": ("", "File that `tidemark fit` made: what the model was accepted on."),
        "version": ("", "Version of the model that is in production. Without one, the version that the reference was fitted "
                        "for; a promotion changes it by itself."),
        "schema": ("", "Where the columns stand in a message. By default each is a top-level key of its own name."),
        "pane": ("", "How event time is cut."),
        "alarm": ("", "How many false alarms are accepted, and what is too small to matter."),
        "quality": ("", "Faults of the data that no column shows."),
        "retrain": ("", "When to retrain and how; without it tidemark watches and retrains nothing."),
        "histograms_only": ("", "Whether no value of an event is stored anywhere, counts alone. False, since retraining, samples "
                                "and dead letters need values; with true, what would store one is refused at start."),
        "detectors": ("", "Further detectors to show beside the decision, by name. None: the decision needs none of them."),
    },
    "Detector": {
        "name": ("", "What is computed: a distance or test on counts (`psi`), a joint one on rows (`mmd`), `evidently:` and "
                     "one of its tests, `cusum` or `river:` and one of its classes on a series. Each once per monitor; "
                     "`docs/detectors.md` lists them. A distance that is shown anyway is then shown for these columns and "
                     "this window only."),
        "columns": ("", "Columns to look at; `error` is the series of the model's errors, where events carry a label. None: "
                        "all columns that the detector fits."),
        "threshold": ("as the score", "Score from which on it is shown as drift. None: its authors' own, where they have one. "
                                      "Nothing else comes of it: neither an alarm nor a retraining."),
        "every_panes": ("panes", "It is computed when a pane of which this is a divisor ends. 1: as often as the decision; "
                                 "take more for what takes seconds."),
        "window_panes": ("panes", "It looks at the latest so many. 16 are calm enough to read and follow a change within a "
                                  "quarter of an hour, at panes of a minute."),
        "sample_rows": ("rows", "Rows that are kept of each pane, if it needs rows, chosen by a hash of their offsets. 200, of "
                                "which 16 panes make 3,200: more say little more, and cost time and disk. The largest of a "
                                "monitor's detectors holds."),
        "options": ("", "Its own parameters by name, such as `delta` of `river:ADWIN`. None: its authors' defaults."),
    },
    "Schema": {
        "format": ("", "What a message is: `json`, one event as a JSON object; or `arrow`, many events as an Arrow IPC stream "
                       "(docs/arrow.md). JSON, since most producers write it; it is not guessed, so that a producer that "
                       "changes is a fault that is told."),
        "prefix": ("", "Dotted path of the object that holds the columns, such as `features`. None: columns are top-level "
                       "keys."),
        "timestamp": ("", "Path of the event time. Without one, the time that Kafka keeps with each record."),
        "timestamp_unit": ("", "What the event time is written in. Milliseconds, as Kafka's own; `iso8601` is text such as "
                               "`2026-01-31T12:00:00Z`."),
        "id": ("", "Path of an identifier that is kept with captured events, so that labels can be joined later."),
        "columns": ("", "What differs from the reference, per column; columns that are not named are read as it says."),
    },
    "SchemaColumn": {
        "path": ("", "Dotted path of the value; a dot within a key is written `\\.`. By default `schema.prefix`, then the "
                     "column's name as one key."),
        "kind": ("", "What the value is: a number, one of several levels, true or false, an `embedding` (a list of as many "
                     "numbers as the reference's vectors have) or `text` to read (watched by its length, words and "
                     "vocabulary). By default what the reference was fitted on; another kind is refused."),
        "role": ("", "What the column is for. By default the reference's; `label` adds a column that is kept for "
                     "retraining and not watched."),
        "aliases": ("", "Further paths, tried in order where the first is missing: for keys that were renamed."),
    },
    "Pane": {
        "seconds": ("seconds", "Length of a pane in event time; a decision is taken once per pane, over the last 1, 2, 4 ... "
                               "128 of them. 60, so that a broken producer is seen within minutes and a slow drift within "
                               "two hours. Take longer ones where a minute has fewer than some 50 events."),
        "lateness_seconds": ("seconds", "How long a pane waits for late events after its end. 120: producers that batch for "
                                        "a minute are still in time; an event that comes later joins the open pane."),
    },
    "Quality": {
        "max_refused_share": ("", "Share of records that may be refused (another type, not JSON, no event time ...) before an "
                                  "alarm of kind `quality` is raised; it must surely be exceeded. 0.001: single broken records "
                                  "are nobody's concern, one in a thousand is a producer that changed. `null`: no alarm."),
        "volume_factor": ("", "How many times fewer or more events than usual raise an alarm: than the median of the last 7 "
                              "days (10,080 panes at most), and than at the same time yesterday and a week ago. 10, because "
                              "traffic that is a fifth or fivefold is often real. `null`: no alarm."),
        "silent_panes": ("panes", "Panes without any event that raise an alarm, where events were to be expected. 10: shorter "
                                  "pauses are restarts and deployments. `null`: no alarm."),
    },
    "AlarmPolicy": {
        "max_false_alarms": ("", "False alarms you accept when nothing drifts, over all columns, windows and looks "
                                 "together: `1 per 30 days`, or `1 per 1000000 events`. Once a month is rare enough to be "
                                 "read and frequent enough to keep the threshold low."),
        "method": ("", "What raises alarms. `scan` compares the windows of the last 1 to 128 panes with the reference; `esr` "
                       "bets against the reference pane by pane and promises the rate of false alarms by a theorem, for "
                       "independent events, at a longer delay for weak shifts. Effect, columns and severity come from the "
                       "scan's windows either way."),
        "ignore_below": ("reference standard deviations", "Movements surely smaller than this are no alarm, however certain. "
                                                          "0.1 is a PSI of about 0.01: visible with enough events, and "
                                                          "harmless to nearly every model."),
    },
    **RETRAIN_FIELDS,
}
