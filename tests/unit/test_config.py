"""Every way to write a wrong configuration that we could think of, and the one line that each is answered with."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitor.config import FILE_BYTES, Config, budget, load, parse
from monitor.errors import ConfigError

#: Keys of the whole file.
KNOWN = "alertmanager, files, grafana, kafka, limits, monitors, reports, service"

KAFKA = "kafka: {bootstrap_servers: [a:1]}\n"
MODEL = "monitors: [{model: m, topic: t, reference: r}]\n"
GOOD = KAFKA + MODEL
BUDGET = ("monitors[0].alarm.max_false_alarms: expected false alarms per time or events such as '1 per 30 days' or "
          "'1 per 1000000 events', ")


def monitor(keys):
    return f"{KAFKA}monitors: [{{model: m, topic: t, reference: r, {keys}}}]\n"


def top(line):
    return f"{GOOD}{line}\n"


def refusal(text):
    with pytest.raises(ConfigError) as refused:
        parse(text)
    return str(refused.value)


WRONG = [
    ('',
     "configuration: expected a mapping with `monitors:`, got nothing; write one"),
    ('# only',
     "configuration: expected a mapping with `monitors:`, got nothing; write one"),
    ('[]',
     "configuration: expected a mapping with `monitors:`, got []; write one"),
    ('a',
     "configuration: expected a mapping with `monitors:`, got 'a'; write one"),
    ('3',
     "configuration: expected a mapping with `monitors:`, got 3; write one"),
    ('\t',
     "configuration: line 1 is not YAML: found character '\\t' that cannot start any token; mend it there"),
    ('a: [',
     "configuration: line 1 is not YAML: expected the node content, but found '<stream end>'; mend it there"),
    ('a: b: c',
     "configuration: line 1 is not YAML: mapping values are not allowed here; mend it there"),
    ('monitors: []',
     "monitors: expected a list of length >= 1, got []; mend it"),
    ('kafka: {bootstrap_servers: [a:1]}',
     "monitors: expected a value, got none; add it"),
    (top('kafak: {}'),
     "kafak: expected a known key, got `kafak`; did you mean `kafka`?"),
    (top('service: {lissten: x}'),
     "service.lissten: expected a known key, got `lissten`; did you mean `listen`?"),
    (top('service: {zzzzqq: x}'),
     "service.zzzzqq: expected a known key, "
     "got `zzzzqq`; known here: checkpoint_seconds, dead_letters, hosts, listen, log_level, "
     "replicas, state, tls, token_file"),
    (top('limits: {colums: 1}'),
     "limits.colums: expected a known key, got `colums`; did you mean `columns`?"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {mecanism: PLAIN}}',
     "kafka.security.mecanism: expected a known key, got `mecanism`; did you mean `mechanism`?"),
    (monitor('pane: {second: 1}'),
     "monitors[0].pane.second: expected a known key, got `second`; did you mean `seconds`?"),
    (monitor('schema: {colums: {}}'),
     "monitors[0].schema.colums: expected a known key, got `colums`; did you mean `columns`?"),
    (monitor('schema: {columns: {x: {rol: input}}}'),
     "monitors[0].schema.columns.x.rol: expected a known key, got `rol`; did you mean `role`?"),
    (monitor('alarm: {ignore_bellow: 1}'),
     "monitors[0].alarm.ignore_bellow: expected a known key, got `ignore_bellow`; did you mean `ignore_below`?"),
    (monitor('retrain: {launcher: {type: local, comand: [a]}}'),
     "monitors[0].retrain.launcher.comand: expected a known key, got `comand`; did you mean `command`?"),
    (monitor('retrain: {launcher: {type: locl, command: [a]}}'),
     "monitors[0].retrain.launcher.type: expected one of airflow, kfp, kubernetes, local, webhook, "
     "got 'locl'; did you mean local?"),
    (monitor('retrain: {launcher: {command: [a]}}'),
     "monitors[0].retrain.launcher.type: expected one of airflow, kfp, kubernetes, local, webhook, "
     "got nothing; choose one of them"),
    (monitor('retrain: {launcher: {type: [local]}}'),
     "monitors[0].retrain.launcher.type: expected one of airflow, kfp, kubernetes, local, webhook, "
     "got ['local']; did you mean local?"),
    (monitor('retrain: {launcher: {type: {a: b}}}'),
     "monitors[0].retrain.launcher.type: expected one of airflow, kfp, kubernetes, local, webhook, "
     "got {'a': 'b'}; choose one of them"),
    (monitor('retrain: {launcher: local}'),
     "monitors[0].retrain.launcher: expected a mapping, got 'local'; mend it"),
    (monitor('retrain: {launcher: [1]}'),
     "monitors[0].retrain.launcher: expected a mapping, got [1]; mend it"),
    (monitor('retrain: {launcher: null}'),
     "monitors[0].retrain.launcher: expected a mapping, got nothing; remove the key, or give it a value"),
    (monitor('retrain: {}'),
     "monitors[0].retrain.launcher: expected a value, got none; add it"),
    (monitor('retrain: {launcher: {type: local}}'),
     "monitors[0].retrain.launcher.command: expected a value, got none; add it"),
    (monitor('retrain: {launcher: {type: local, command: []}}'),
     "monitors[0].retrain.launcher.command: expected the trainer's command as a list, got []; name the program"),
    (monitor('retrain: {launcher: {type: local, command: ls}}'),
     "monitors[0].retrain.launcher.command: expected a list, got 'ls'; write [ls]"),
    (monitor('retrain: {launcher: {type: kubernetes, image: x, gpus: -1}}'),
     "monitors[0].retrain.launcher.gpus: expected a whole number >= 0, got -1; mend it"),
    (monitor('retrain: {launcher: {type: kubernetes, image: x, tolerations: [3]}}'),
     "monitors[0].retrain.launcher.tolerations[0]: expected a mapping, got 3; mend it"),
    (monitor('retrain: {launcher: {type: local, command: [a]}, promote: {type: fil, path: x}}'),
     "monitors[0].retrain.promote.type: expected one of file, kserve, webhook, got 'fil'; did you mean file?"),
    (monitor('retrain: {launcher: {type: local, command: [a]}, promote: {type: file}}'),
     "monitors[0].retrain.promote.path: expected a value, got none; add it"),
    (monitor('retrain: {launcher: {type: local, command: [a]}, promote: x}'),
     "monitors[0].retrain.promote: expected a mapping, got 'x'; mend it"),
    (monitor('retrain: {launcher: {type: local, command: [a]}, roles: [inputt]}'),
     "monitors[0].retrain.roles[0]: expected one of input, prediction, score, path, got 'inputt'; did you mean input?"),
    (monitor('retrain: {launcher: {type: local, command: [a]}, above: 0.05}'),
     "monitors[0].retrain.above: expected at least alarm.ignore_below (0.1), "
     "got 0.05; a retraining is worth more than an alarm"),
    (monitor('retrain: {launcher: {type: local, command: [a]}, above: .nan}'),
     "monitors[0].retrain.above: expected a finite number, got nan; mend it"),
    (monitor('retrain: {launcher: {type: local, command: [a]}, above: .inf}'),
     "monitors[0].retrain.above: expected a finite number, got inf; mend it"),
    (monitor('retrain: {launcher: {type: local, command: [a], deadline_hours: .inf}}'),
     "monitors[0].retrain.launcher.deadline_hours: expected a finite number, got inf; mend it"),
    (monitor('retrain: {launcher: {type: local, command: [a], environment: {A: 1}}}'),
     "monitors[0].retrain.launcher.environment.A: expected text, got 1; put it in quotes"),
    (monitor('retrain: {launcher: {type: local, command: [a], environment: [A]}}'),
     "monitors[0].retrain.launcher.environment: expected a mapping, got ['A']; mend it"),
    (monitor('pane: {seconds: 0}'),
     "monitors[0].pane.seconds: expected a whole number >= 1, got 0; mend it"),
    (monitor('pane: {seconds: 1.5}'),
     "monitors[0].pane.seconds: expected a whole number, got 1.5; mend it"),
    (monitor("pane: {seconds: '60'}"),
     "monitors[0].pane.seconds: expected a whole number, got '60'; mend it"),
    (monitor('pane: {seconds: true}'),
     "monitors[0].pane.seconds: expected a whole number, got true; mend it"),
    (monitor('pane: 60'),
     "monitors[0].pane: expected a mapping, got 60; mend it"),
    (monitor('pane: []'),
     "monitors[0].pane: expected a mapping, got []; mend it"),
    (monitor('pane: null'),
     "monitors[0].pane: expected a mapping, got nothing; remove the key, or give it a value"),
    (monitor('pane: {seconds: 99999999999999999999999}'),
     "monitors[0].pane.seconds: expected a number below 2^63, got a larger one; mend it"),
    (monitor('pane: {lateness_seconds: -1}'),
     "monitors[0].pane.lateness_seconds: expected a whole number >= 0, got -1; mend it"),
    (monitor('version: 1'),
     "monitors[0].version: expected text, got 1; put it in quotes"),
    (monitor('version: 1.10'),
     "monitors[0].version: expected text, got 1.1; put it in quotes"),
    (monitor("version: 'a b'"),
     "monitors[0].version: expected at most 63 letters, digits and . _ - that begin with a letter or a digit, "
     "got 'a b'; mend it"),
    (monitor('schema: {columns: [x]}'),
     "monitors[0].schema.columns: expected a mapping, got ['x']; mend it"),
    (monitor('schema: {columns: {x: input}}'),
     "monitors[0].schema.columns.x: expected a mapping, got 'input'; mend it"),
    (monitor('schema: {columns: {x: {role: feature}}}'),
     "monitors[0].schema.columns.x.role: expected one of input, prediction, score, path, label, "
     "got 'feature'; choose one of them"),
    (monitor('schema: {columns: {x: {aliases: a}}}'),
     "monitors[0].schema.columns.x.aliases: expected a list, got 'a'; write [a]"),
    (monitor('schema: {timestamp_unit: ms}'),
     "monitors[0].schema.timestamp_unit: expected one of seconds, milliseconds, iso8601, got 'ms'; choose one of them"),
    (monitor('alarm: {max_false_alarms: 3}'),
     "monitors[0].alarm.max_false_alarms: expected text, got 3; put it in quotes"),
    (monitor('alarm: {max_false_alarms: never}'),
     BUDGET + "got 'never'; write it so"),
    (monitor('alarm: {max_false_alarms: 0 per 3 days}'),
     BUDGET + "got '0 per 3 days'; write it so"),
    (monitor('alarm: {max_false_alarms: 1 per 0 days}'),
     BUDGET + "got '1 per 0 days'; write it so"),
    (monitor('alarm: {max_false_alarms: 1 per 30 daays}'),
     BUDGET + "got '1 per 30 daays'; write it so"),
    (monitor('alarm: {max_false_alarms: -1 per day}'),
     BUDGET + "got '-1 per day'; write it so"),
    (monitor('alarm: {ignore_below: 4}'),
     "monitors[0].alarm.ignore_below: expected a number <= 3, got 4; mend it"),
    (monitor('alarm: {ignore_below: x}'),
     "monitors[0].alarm.ignore_below: expected a number, got 'x'; mend it"),
    (monitor('alarm: {ignore_below: .nan}'),
     "monitors[0].alarm.ignore_below: expected a finite number, got nan; mend it"),
    (KAFKA + 'monitors: {model: m}',
     "monitors: expected a list, got {'model': 'm'}; mend it"),
    (KAFKA + 'monitors: [m]',
     "monitors[0]: expected a mapping, got 'm'; mend it"),
    (KAFKA + 'monitors: [null]',
     "monitors[0]: expected a mapping, got nothing; remove the key, or give it a value"),
    (KAFKA + 'monitors: [{model: m, topic: t}]',
     "monitors[0].reference: expected a value, got none; add it"),
    (KAFKA + "monitors: [{model: 'm m', topic: t, reference: r}]",
     "monitors[0].model: expected at most 63 letters, digits and . _ - that begin with a letter or a digit, "
     "got 'm m'; mend it"),
    (KAFKA + "monitors: [{model: m, topic: 't t', reference: r}]",
     "monitors[0].topic: expected at most 249 letters, digits and . _ -, got 't t'; mend it"),
    (KAFKA + "monitors: [{model: m, topic: 't', reference: ''}]",
     "monitors[0].reference: expected text of length >= 1, got ''; mend it"),
    (MODEL + 'kafka: {bootstrap_servers: a:1}',
     "kafka.bootstrap_servers: expected a list, got 'a:1'; write [a:1]"),
    (MODEL + 'kafka: {bootstrap_servers: [a]}',
     "kafka.bootstrap_servers[0]: expected HOST:PORT, got 'a'; one broker per entry"),
    (MODEL + "kafka: {bootstrap_servers: ['']}",
     "kafka.bootstrap_servers[0]: expected HOST:PORT, got ''; one broker per entry"),
    (MODEL + "kafka: {bootstrap_servers: [a:1], group: ''}",
     "kafka.group: expected text of length >= 1, got ''; mend it"),
    ('monitors: [{model: m, topic: t, reference: r}]',
     "kafka.bootstrap_servers: expected either brokers or files.paths, got neither; add one of them"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1]}\nfiles: {paths: [x.csv]}',
     "kafka.bootstrap_servers: expected either brokers or files.paths, got both; keep one of them"),
    (MODEL + 'files: {paths: x.csv}',
     "files.paths: expected a list, got 'x.csv'; write [x.csv]"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {protocol: SASL_SSL}}',
     "kafka.security.mechanism: expected a value for SASL_SSL, got none; add it"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {protocol: SASL_SSL, mechanism: PLAIN, username: u}}',
     "kafka.security.password_file: expected a value for SASL_SSL, got none; add it"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {protocol: SASL}}',
     "kafka.security.protocol: expected one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL, got 'SASL'; did you mean SSL?"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {mechanism: PLAIN, username: u, password_file: x}}',
     "kafka.security.protocol: expected SASL_SSL or SASL_PLAINTEXT beside mechanism, username or password_file, "
     "got PLAINTEXT; mend it, or remove them"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {protocol: SSL, key_file: u}}',
     "kafka.security: expected certificate_file and key_file together, got one; add the other"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {ca_file: u}}',
     "kafka.security.protocol: expected SSL or SASL_SSL beside ca_file, got PLAINTEXT; mend it, or remove that"),
    (MODEL + 'kafka: {bootstrap_servers: [a:1], security: {password: u}}',
     "kafka.security.password: expected a known key, got `password`; did you mean `password_file`?"),
    (top('service: {listen: 8080}'),
     "service.listen: expected text, got 8080; put it in quotes"),
    (top("service: {listen: ':8080'}"),
     "service.listen: expected HOST:PORT such as 127.0.0.1:8080, got ':8080'; mend it"),
    (top("service: {listen: 'a:b'}"),
     "service.listen: expected HOST:PORT such as 127.0.0.1:8080, got 'a:b'; mend it"),
    (top("service: {listen: 'a:99999'}"),
     "service.listen: expected HOST:PORT such as 127.0.0.1:8080, got 'a:99999'; mend it"),
    (top("service: {listen: 'a:²'}"),
     "service.listen: expected HOST:PORT such as 127.0.0.1:8080, got 'a:²'; mend it"),
    (top('service: {state: /tmp/x}'),
     "service.state: expected sqlite:///PATH (four slashes for an absolute path), got '/tmp/x'; mend it"),
    (top("service: {state: 'sqlite:///'}"),
     "service.state: expected sqlite:///PATH (four slashes for an absolute path), got 'sqlite:///'; mend it"),
    (top("service: {state: 'sqlite://x'}"),
     "service.state: expected sqlite:///PATH (four slashes for an absolute path), got 'sqlite://x'; mend it"),
    (top('service: {dead_letters: x}'),
     "service.dead_letters: expected `file:PATH`, `topic:NAME` or `none`, got 'x'; mend it"),
    (top("service: {dead_letters: 'topic:a b'}"),
     "service.dead_letters: expected `file:PATH`, `topic:NAME` or `none`, got 'topic:a b'; mend it"),
    (top("service: {dead_letters: 'file:'}"),
     "service.dead_letters: expected `file:PATH`, `topic:NAME` or `none`, got 'file:'; mend it"),
    (top('service: {dead_letters: "none\\n"}'),
     "service.dead_letters: expected `file:PATH`, `topic:NAME` or `none`, got 'none\\n'; mend it"),
    (top('service: {dead_letters: "file:a\\nb"}'),
     "service.dead_letters: expected `file:PATH`, `topic:NAME` or `none`, got 'file:a\\nb'; mend it"),
    (top('service: {checkpoint_seconds: 0}'),
     "service.checkpoint_seconds: expected a number > 0, got 0; mend it"),
    (top('service: {checkpoint_seconds: 61}'),
     "service.checkpoint_seconds: expected a number <= 60, got 61; mend it"),
    (top('service: {log_level: info}'),
     "service.log_level: expected one of DEBUG, INFO, WARNING, ERROR, got 'info'; did you mean INFO?"),
    (top('service: {token_file: 3}'),
     "service.token_file: expected text, got 3; put it in quotes"),
    (top('service: null'),
     "service: expected a mapping, got nothing; remove the key, or give it a value"),
    (top('service: []'),
     "service: expected a mapping, got []; mend it"),
    (top('limits: {memory_mb: 0}'),
     "limits.memory_mb: expected a whole number >= 1, got 0; mend it"),
    (top('limits: {memory_mb: 1e3}'),
     "limits.memory_mb: expected a whole number, got '1e3'; mend it"),
    (top('limits: {memory_mb: yes}'),
     "limits.memory_mb: expected a whole number, got true; mend it"),
    ('\nkafka: {bootstrap_servers: ["localhost:9092"]}\nmonitors:\n  - {model: m, topic: t, reference: ${TIDEMARK_NOPE}}\n',
     "configuration: line 4 is not YAML: expected ',' or '}', but got '{'; mend it there"),
    (GOOD + GOOD,
     "configuration: line 3 is not YAML: the key 'kafka' is given twice; mend it there"),
    ('a: &a [1]\nb: *a\nc: *zzz',
     "configuration: line 3 is not YAML: found undefined alias 'zzz'; mend it there"),
    ('? [1, 2]\n: 3',
     "configuration: line 1 is not YAML: a key that is not a plain word; mend it there"),
    ('? {a: b}\n: 3',
     "configuration: line 1 is not YAML: a key that is not a plain word; mend it there"),
    ('a: !!int x',
     "configuration: line 1 is not YAML: 'x' is not what it looks like; mend it there"),
    ('a: 2024-13-45',
     "configuration: line 1 is not YAML: '2024-13-45' is not what it looks like; mend it there"),
    ('--- 1\n--- 2',
     "configuration: line 2 is not YAML: but found another document; mend it there"),
    ('null: 3',
     "null: expected a known key, got `null`; known here: " + KNOWN),
    ('? null\n: 3',
     "null: expected a known key, got `null`; known here: " + KNOWN),
    ('<<: 3',
     "configuration: line 1 is not YAML: a key that is not a plain word; mend it there"),
    ('<<: [1]',
     "configuration: line 1 is not YAML: a key that is not a plain word; mend it there"),
    ('&a a: *a',
     "a: expected a known key, got `a`; known here: " + KNOWN),
    ('a: &a {b: *a}',
     "configuration: expected at most 1,000,000 values in 50 levels, got more; look for aliases (`*name`)"),
    ('a: &a [*a]',
     "configuration: expected at most 1,000,000 values in 50 levels, got more; look for aliases (`*name`)"),
    ('a: !!timestamp x',
     "configuration: line 1 is not YAML: 'x' is not what it looks like; mend it there"),
    ('a: 1:99999999999999999:1',
     "a: expected a known key, got `a`; known here: " + KNOWN),
    (top('x: .nan'),
     "x: expected a finite number, got nan; mend it"),
    ('\x00',
     "configuration: is not YAML: unacceptable character #x0000: special characters are not allowed; mend it there"),
    ('a: \ud800',
     "configuration: is not YAML: unacceptable character #xd800: special characters are not allowed; mend it there"),
    ("'\\x'",
     "configuration: expected a mapping with `monitors:`, got '\\\\x'; write one"),
    ('a: 2024-01-01',
     "a: expected a known key, got `a`; known here: " + KNOWN),
    ("1: 2\n'1': 3",
     "configuration: line 2 is not YAML: the key '1' is given twice; mend it there"),
    (top('1: 3'),
     "1: expected a known key, got `1`; known here: " + KNOWN),
    (top('service: {1: 3}'),
     "service.1: expected a known key, "
     "got `1`; known here: checkpoint_seconds, dead_letters, hosts, listen, log_level, "
     "replicas, state, tls, token_file"),
    (top('service: {true: 3}'),
     "service.true: expected a known key, "
     "got `true`; known here: checkpoint_seconds, dead_letters, hosts, listen, log_level, "
     "replicas, state, tls, token_file"),
    (top('service: {listen: 2024-01-01}'),
     "service.listen: expected text, got '2024-01-01'; put it in quotes"),
    (top('kafka: {bootstrap_servers: [b:2]}'),
     "configuration: line 3 is not YAML: the key 'kafka' is given twice; mend it there"),
    (monitor('schema: {columns: {x: null}}'),
     "monitors[0].schema.columns.x: expected a mapping, got nothing; remove the key, or give it a value"),
    (monitor('schema: {prefix: 3}'),
     "monitors[0].schema.prefix: expected text, got 3; put it in quotes"),
    (monitor("'${HOME}': 3"),
     "monitors[0].${HOME}: expected a known key, "
     "got `${HOME}`; known here: alarm, detectors, histograms_only, model, pane, quality, reference, retrain, schema, topic, "
     "version"),
    (monitor('detectors: [{name: psi}, {name: psi}]'),
     "monitors[0].detectors[1].name: expected a detector that is named once, got 'psi' as in monitors[0].detectors[0]; "
     "put their columns together"),
    (monitor('detectors: [{name: psi, columns: [a, b, a]}]'),
     "monitors[0].detectors[0].columns[2]: expected each column once, got 'a' again; remove one"),
    (monitor('detectors: [{name: psi, colums: [a]}]'),
     "monitors[0].detectors[0].colums: expected a known key, got `colums`; did you mean `columns`?"),
    (monitor('detectors: [{columns: [a]}]'), "monitors[0].detectors[0].name: expected a value, got none; add it"),
    (monitor('detectors: [{name: psi, window_panes: 129}]'),
     "monitors[0].detectors[0].window_panes: expected a whole number <= 128, got 129; mend it"),
    (monitor('detectors: [{name: psi, sample_rows: 9}]'),
     "monitors[0].detectors[0].sample_rows: expected a whole number >= 10, got 9; mend it"),
    (monitor('detectors: [{name: psi, threshold: .inf}]'),
     "monitors[0].detectors[0].threshold: expected a finite number, got inf; mend it"),
]


@pytest.mark.parametrize(("text", "line"), WRONG)
def test_each_wrong_configuration_is_answered_with_exactly_this_line(text, line):
    assert line == refusal(text)


def test_the_least_configuration_is_accepted_with_every_default():
    config = parse(GOOD)
    assert (config.monitors[0].model, config.monitors[0].pane.seconds, config.service.listen) == ("m", 60, "127.0.0.1:8080")


def test_two_monitors_of_one_model_are_refused():
    text = KAFKA + "monitors: [{model: m, topic: t, reference: r}, {model: m, topic: u, reference: s}]"
    assert refusal(text) == "monitors[1].model: expected a name used once, got 'm' as in monitors[0]; rename one"


@pytest.mark.parametrize("key", ["model", "topic", "version"])
def test_a_newline_behind_a_name_is_refused(key):
    names = {"model": "m", "topic": "t", "reference": "r"} | {key: "n\n"}
    text = yaml.safe_dump({"kafka": {"bootstrap_servers": ["a:1"]}, "monitors": [names]})
    assert f"monitors[0].{key}: expected one line, got 'n\\n'; mend it" == refusal(text)


def test_a_key_is_the_text_that_was_written():
    config = parse(monitor("schema: {columns: {no: {role: input}, 1.10: {role: input}, 2024-01-01: {role: input}}}"))
    assert list(config.monitors[0].schema.columns) == ["no", "1.10", "2024-01-01"]


def test_aliases_share_what_they_name():
    text = (KAFKA + "monitors: [{model: m, topic: t, reference: r, pane: &p {seconds: 7}}, "
            "{model: n, topic: t, reference: s, pane: *p}]")
    assert [one.pane.seconds for one in parse(text).monitors] == [7, 7]


def test_aliases_that_multiply_end_within_the_bound():
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert (refusal("\n".join(lines))
            == "configuration: expected at most 1,000,000 values in 50 levels, got more; look for aliases (`*name`)")


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "a: &a [*a]"])
def test_an_alias_inside_of_what_it_names_is_refused(text):
    assert "look for aliases" in refusal(text)


@pytest.mark.parametrize("text", ["[" * 50_000, "{" * 50_000, "a: " * 1])
def test_brackets_without_end_are_one_line(text):
    assert "\n" not in refusal(text)


def test_a_number_that_nothing_can_hold_is_refused():
    line = refusal(monitor("pane: {seconds: 0x" + "f" * 5000 + "}"))
    assert line == "monitors[0].pane.seconds: expected a number below 2^63, got a larger one; mend it"


@pytest.mark.parametrize("amount", ["9" * 400, "9" * 5000, "\u0661"])
def test_a_budget_of_digits_that_cannot_be_counted_with_is_refused(amount):
    assert refusal(monitor(f"alarm: {{max_false_alarms: '1 per {amount} days'}}")).startswith(BUDGET)


@pytest.mark.parametrize(("text", "panes"), [
    ("1 per 30 days", 43_200), ("2 per day", 720), ("1 per hour", 60), ("1 per week", 10_080), ("3 per 3 months", 43_200),
    (" 1  per  2 hours ", 120), ("1 per 120000 events", 120), ("1000000 per hour", 1)])
def test_a_budget_is_so_many_panes_of_a_minute(text, panes):
    assert panes == budget(text, "here").panes_per_false_alarm(60.0)


# -- the environment ---------------------------------------------------------------------------------------------------

def test_an_environment_variable_takes_the_place_of_its_name(monkeypatch):
    monkeypatch.setenv("TIDEMARK_TEST_FOLDER", "/models")
    assert parse(GOOD.replace("reference: r", 'reference: "${TIDEMARK_TEST_FOLDER}/r"')).monitors[0].reference == "/models/r"


def test_an_absent_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("TIDEMARK_TEST_NONE", raising=False)
    assert (refusal(GOOD.replace("reference: r", 'reference: "${TIDEMARK_TEST_NONE}"'))
            == "monitors[0].reference: expected the environment variable TIDEMARK_TEST_NONE to be set, got none; export it")


def test_what_stands_in_the_environment_is_never_shown(monkeypatch):
    monkeypatch.setenv("TIDEMARK_TEST_SECRET", "hunter2")
    for text in (monitor('pane: {seconds: "${TIDEMARK_TEST_SECRET}"}'), top('service: {log_level: "${TIDEMARK_TEST_SECRET}"}'),
                 monitor('schema: {columns: {x: {kind: "${TIDEMARK_TEST_SECRET}"}}}')):
        line = refusal(text)
        assert "${TIDEMARK_TEST_SECRET}" in line
        assert "hunter2" not in line


# -- the file ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def file(tmp_path):
    return tmp_path / "tidemark.yaml"


def test_an_absent_file_is_one_line(file):
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert f"{file}: cannot read the configuration: No such file or directory; give its path with -c" == str(refused.value)


def test_a_file_of_other_bytes_than_utf_8_is_one_line(file):
    file.write_bytes(b"service: {state: \xff\xfe}")
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert f"{file}: expected UTF-8 text, got other bytes; save it as UTF-8" == str(refused.value)


def test_a_huge_file_is_refused_unread(file):
    with open(file, "wb") as sparse:
        sparse.truncate(FILE_BYTES + 1)
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert (f"{file}: expected a configuration of at most {FILE_BYTES} bytes, got {FILE_BYTES + 1}; split the service"
            == str(refused.value))


def test_a_yaml_error_names_file_and_line(file):
    file.write_text("monitors:\n  - model: m\n - x\n")
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert str(refused.value).startswith(f"{file}: line 3 is not YAML: ")


# -- anything at all ---------------------------------------------------------------------------------------------------

def _known_words():
    words, stack = {"type", "local", "kubernetes", "file", "1 per 30 days", "a:1", "x"}, [Config]
    while stack:
        for name in stack.pop().__struct_fields__:
            words.add(name)
    return sorted(words | {
        "model", "topic", "reference", "schema", "pane", "alarm", "retrain", "launcher", "command", "columns", "role", "seconds",
        "bootstrap_servers", "security", "protocol", "paths", "listen", "promote", "path", "environment", "tolerations"})


WORDS = st.sampled_from(_known_words())
SCALARS = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS | st.dates()
           | st.just(math.inf) | st.binary(max_size=4))
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    WORDS | st.text(max_size=5) | st.integers() | st.booleans(), inner, max_size=4), max_leaves=25)


def accepted_or_one_line(text):
    try:
        assert isinstance(parse(text), Config)
    except ConfigError as error:
        line = str(error)
        assert line.isprintable()
        assert "Error" not in line.split(":")[0]


@given(st.dictionaries(st.sampled_from(["kafka", "files", "service", "limits", "monitors"]), TREES))
def test_any_tree_is_a_configuration_or_a_configuration_error(tree):
    accepted_or_one_line(yaml.safe_dump(tree))


@given(st.dictionaries(WORDS, TREES, max_size=4))
def test_a_sound_monitor_with_anything_beside_it_is_a_configuration_or_a_configuration_error(keys):
    tree = {"kafka": {"bootstrap_servers": ["a:1"]}, "monitors": [keys | {"model": "m", "topic": "t", "reference": "r"}]}
    accepted_or_one_line(yaml.safe_dump(tree))


@given(st.text(alphabet="ab:{}[]-&*!?|>'\"#%@`,\n\t 019.~<=$", max_size=60))
def test_any_text_is_a_configuration_or_a_configuration_error(text):
    accepted_or_one_line(text)
