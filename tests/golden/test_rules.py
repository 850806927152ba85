"""Rules, runbooks and routes: complete, agreeing with one another, and doing what they say by the word of promtool and amtool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from dashboards import command, rules
from dashboards.rules import Settings, recordings, series
from dashboards.rules_alerts import LOWER_IS_BETTER, alerts
from dashboards.rules_files import document, pages, text
from monitor import alert_words, cli, config, metrics
from monitor.alert_words import ACTION_LABEL, ACTION_RETRAIN
from monitor.errors import ConfigError
from monitor.expose import alertmanager
from monitor.metrics import CATALOGUE
from tests.conftest import missing

CHECKOUT = Path(__file__).resolve().parents[2]
CASES = yaml.safe_load((Path(__file__).parent / "rules" / "cases.yaml").read_text())
KNOWN = CASES.pop("known")
ALL = Settings(observed=True)
ALERTS = {alert.name: alert for alert in alerts(ALL)}
RUNBOOKS, ALERTMANAGER = CHECKOUT / "docs" / "runbooks", CHECKOUT / "deploy" / "alertmanager"
RULES = {rule["alert"]: rule for group in document(ALL)["groups"] for rule in group["rules"] if "alert" in rule}
TIDEMARK_SERIES = re.compile(r"(?<![\w:])tidemark_[a-z_]+(?![\w:])")


@pytest.fixture(scope="session")
def amtool_binary() -> str:
    """Path of the `amtool` program."""
    return shutil.which("amtool") or missing("alertmanager", "no `amtool` on PATH; run tests/setup_components.sh")


def ran(*argv: object, **options: object) -> str:
    """What the program printed; its complaint, where it failed."""
    done = subprocess.run([str(arg) for arg in argv], check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- promtool ---------------------------------------------------------------------------------------------------------

def cases_of(name: str) -> list[dict[str, object]]:
    """The cases of one alert in promtool's form: links and summary are the rule's, all else is written in the case."""
    case, rule = CASES[name], RULES[name]
    made = []
    for fires in (case["fires"], *case.get("also", ())):
        annotations = {"summary": rule["annotations"]["summary"], "description": fires["says"],
                       "runbook_url": rule["annotations"]["runbook_url"],
                       "dashboard_url": rule["annotations"]["dashboard_url"].replace("{{ $labels.model }}", "loans")}
        if "report" in fires:
            annotations["report_url"] = f"{ALL.service_url}/{fires['report']}"
        expected = [{"exp_labels": {"severity": ALERTS[name].severity, **fires["labels"]}, "exp_annotations": annotations}]
        made.append(in_form(name, fires, [(fires["at"], expected)]))
    return made + [in_form(name, silent, [(at, []) for at in silent["at"]]) for silent in case["silent"]]


def in_form(name, case, expected):
    given = {key: values for used in case["use"] for key, values in KNOWN[used].items()} | case.get("series", {})
    return {"interval": case.get("every", "1m"), "name": case.get("why", "it fires"),
            "input_series": [{"series": key, "values": values} for key, values in given.items()],
            "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": alerts} for at, alerts in expected]}


@pytest.mark.parametrize("name", list(ALERTS))
def test_every_alert_fires_saying_all_of_this_and_stays_silent_next_to_it(name, promtool_binary, tmp_path):
    (tmp_path / "rules.yaml").write_text(text(ALL))
    made = cases_of(name)
    for interval in sorted({str(test["interval"]) for test in made}):
        (tmp_path / f"{interval}.yaml").write_text(yaml.safe_dump({
            "rule_files": ["rules.yaml"], "evaluation_interval": interval,
            "group_eval_order": [group["name"] for group in document(ALL)["groups"]],
            "tests": [test for test in made if test["interval"] == interval]}, width=10_000))
        ran(promtool_binary, "test", "rules", tmp_path / f"{interval}.yaml")


def test_promtool_finds_no_fault_in_the_rules(promtool_binary, tmp_path):
    (tmp_path / "rules.yaml").write_text(text(ALL))
    assert f"{len(ALERTS) + len(recordings(ALL))} rules found" in ran(promtool_binary, "check", "rules", tmp_path / "rules.yaml")


def test_a_configuration_moves_the_limits_of_its_own_models_and_of_no_other(promtool_binary, tmp_path):
    slow = config.parse("""
        kafka: {bootstrap_servers: ["k:9092"]}
        monitors:
          - {model: slow.model, topic: slow, reference: r.json, pane: {seconds: 3600, lateness_seconds: 600},
             retrain: {launcher: {type: local, command: [train], deadline_hours: 20}}}
          - {model: fast, topic: fast, reference: r.json}
        """)
    (tmp_path / "rules.yaml").write_text(text(Settings.of(slow)))
    models = ("slow.model", "slowXmodel", "fast")
    given = {f'{name}{{model="{model}"}}': "7x5" for model in models
             for name in ("tidemark_events_total", "tidemark_launch_state_timestamp_seconds")}
    expected = {rules.STALE: (3 * 3600 + 600, 900, 900), rules.OVERDUE: (21 * 3600, 7 * 3600, 7 * 3600)}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump({
        "rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [{
            "interval": "1m", "input_series": [{"series": key, "values": values} for key, values in given.items()],
            "promql_expr_test": [{"expr": name, "eval_time": "2m", "exp_samples": [
                {"labels": f'{name}{{model="{model}"}}', "value": value} for model, value in zip(models, values, strict=True)]}
                for name, values in expected.items()]}]}))
    ran(promtool_binary, "test", "rules", tmp_path / "cases.yaml")


# ---- names ------------------------------------------------------------------------------------------------------------

def test_rules_cases_and_runbooks_have_the_same_names_in_the_same_order():
    index = re.findall(r"\]\((\w+)\.md\)", (RUNBOOKS / "README.md").read_text())
    assert list(ALERTS) == list(CASES) == index
    assert sorted(ALERTS) == sorted(page.stem for page in RUNBOOKS.glob("Tidemark*.md"))


def test_every_metric_that_a_rule_or_a_runbook_names_is_in_the_catalogue_and_every_recorded_series_is_recorded():
    recorded = {one.name for one in recordings(ALL)}
    pages = {page.name: page.read_text() for page in RUNBOOKS.glob("*.md")}
    for where, words in {"rules": text(ALL), **pages}.items():
        named = {re.sub(r"_bucket$", "", name) for name in TIDEMARK_SERIES.findall(words)}
        assert named - set(CATALOGUE) - {"tidemark_action"} == set(), where
        assert set(re.findall(r"\b\w+:tidemark_\w+:\w+", words)) <= recorded, where


def test_every_alert_that_the_routes_name_exists():
    routes = (ALERTMANAGER / "alertmanager.yml").read_text()
    named = set(re.findall(r"Tidemark[A-Z]\w+", routes))
    assert named
    assert named <= set(ALERTS)


def test_every_alert_links_its_runbook_a_dashboard_that_there_is_and_only_alarms_a_report():
    uids = {re.search(r'"uid": ?"(tidemark-\w+)"', page.read_text())[1]
            for page in (CHECKOUT / "dashboards" / "generated").glob("*.json")}
    for name, rule in RULES.items():
        links = rule["annotations"]
        assert links["runbook_url"] == f"https://tidemark.example/docs/runbooks/{name}.md"
        assert re.fullmatch(r"https://grafana\.example/d/([\w-]+)(\?.*)?", links["dashboard_url"])[1] in uids
        assert ("report_url" in links) == ("tidemark_alarm_open" in rule["expr"] and "tidemark_retrain" not in rule["expr"])
        assert set(links) - {"report_url"} == {"summary", "description", "runbook_url", "dashboard_url"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


def test_an_alert_on_what_was_judged_is_joined_with_how_fresh_the_judgement_is():
    judged = ("tidemark_state", "tidemark_score", 'tidemark_alarm_open{kind="drift"')
    for name, rule in RULES.items():
        if any(word in rule["expr"] for word in judged):
            assert f"({rules.FRESH} == 1)" in rule["expr"], name


def test_no_label_of_an_alert_changes_with_a_restart_or_with_a_value():
    for name, rule in RULES.items():
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"(?:max|min|sum) by \(([^)]*)\)", rule["expr"]))))
        assert not kept & {"instance", "pod", "column", "role", "state", "reason", "partition"}, name
        assert not any("{{" in value for value in rule["labels"].values()), name


def test_each_runbook_answers_the_four_questions_and_no_other():
    for page in RUNBOOKS.glob("Tidemark*.md"):
        words = page.read_text()
        assert words.startswith(f"# {page.stem}\n"), page.name
        assert re.findall(r"^## (.+)$", words, re.M) == ["Meaning", "Impact", "Diagnosis", "Mitigation"], page.name
        for section in re.split(r"^## .+$", words, flags=re.M)[1:]:
            assert len(section.split()) >= 12, page.name
        assert ALERTS[page.stem].severity in words.split("## ")[0], page.name


def test_every_command_that_a_runbook_or_an_alert_asks_for_exists():
    for words in (text(ALL), *(page.read_text() for page in RUNBOOKS.glob("*.md"))):
        for asked in re.findall(r"`tidemark ([a-z-]+)", words) + re.findall(r"^tidemark ([a-z-]+)", words, re.M):
            assert asked in cli.COMMANDS, asked


def test_each_expression_that_a_runbook_gives_is_promql(promtool_binary, tmp_path):
    found = [(page.name, query.strip()) for page in sorted(RUNBOOKS.glob("*.md"))
             for query in re.findall(r"```promql\n(.+?)```", page.read_text(), re.S)]
    assert len(found) >= 15
    group = {"name": "runbooks", "rules": [{"record": f"r{n}", "expr": query} for n, (_, query) in enumerate(found)]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    ran(promtool_binary, "check", "rules", tmp_path / "rules.yaml")


def test_metrics_of_quality_of_which_less_is_better_are_the_errors():
    known = get_args(get_type_hints(config.Retrain)["metric"])
    assert {name for name in known if "error" in name or "loss" in name} == set(LOWER_IS_BETTER)


def test_alerts_of_further_detectors_are_off_unless_asked_for():
    assert set(ALERTS) - {alert.name for alert in alerts(Settings())} == {"TidemarkObservedDrift"}


def test_a_matcher_on_a_label_that_the_metric_lacks_is_refused():
    with pytest.raises(ValueError, match="tidemark_lag_events: expected one of the labels topic, partition, got 'model'"):
        series(metrics.LAG, 'model="x"')


# ---- deploy/ ----------------------------------------------------------------------------------------------------------

def test_prometheus_takes_the_scrape_configuration_with_the_rules_beside_it(promtool_binary, tmp_path):
    shutil.copy(CHECKOUT / "deploy" / "prometheus" / "prometheus.yml", tmp_path)
    (tmp_path / "rules.yaml").write_text(text(Settings()))
    assert "33 rules found" in ran(promtool_binary, "check", "config", tmp_path / "prometheus.yml")
    [job] = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == Settings().job
    assert job["sample_limit"] > config.Limits().series


def test_the_service_monitor_finds_the_service_and_its_port():
    monitor = yaml.safe_load((CHECKOUT / "deploy" / "prometheus" / "servicemonitor.yaml").read_text())
    service = yaml.safe_load((CHECKOUT / "deploy" / "kubernetes" / "service" / "service.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
    assert [end["port"] for end in monitor["spec"]["endpoints"]] == [port["name"] for port in service["spec"]["ports"]]
    assert service["metadata"]["name"] == Settings().job            # the operator's `job` label


def test_amtool_finds_no_fault_in_the_routes_and_no_secret_stands_in_them(amtool_binary):
    said = ran(amtool_binary, "check-config", ALERTMANAGER / "alertmanager.yml")
    assert "5 inhibit rules" in said
    assert "1 templates" in said
    words = (ALERTMANAGER / "alertmanager.yml").read_text()
    assert re.findall(r"^\s*(slack_api_url|api_url|smtp_auth_password|credentials|bearer_token|password):", words, re.M) == []


def test_the_way_back_posts_to_the_receiver_with_the_token_of_a_file_and_nothing_that_is_over():
    routes = yaml.safe_load((ALERTMANAGER / "alertmanager.yml").read_text())
    [trigger] = next(one for one in routes["receivers"] if one["name"] == "tidemark-trigger")["webhook_configs"]
    service = yaml.safe_load((CHECKOUT / "deploy" / "kubernetes" / "service" / "service.yaml").read_text())
    name, port = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc", service["spec"]["ports"][0]["port"]
    assert trigger["url"] == f"http://{name}:{port}{alertmanager.PATH}"
    assert trigger["http_config"]["authorization"] == {
        "type": "Bearer", "credentials_file": "/etc/alertmanager/secrets/tidemark-token"}
    assert (trigger["send_resolved"], trigger.get("max_alerts", 0)) == (False, 0)
    matchers = [route["matchers"] for route in routes["route"]["routes"][0]["routes"] if route["receiver"] == "tidemark-trigger"]
    assert matchers == [[f'{ACTION_LABEL}="{ACTION_RETRAIN}"']]


def test_every_alert_that_the_service_sends_itself_is_named_on_its_page_and_has_a_rule():
    page = (CHECKOUT / "docs" / "alertmanager.md").read_text()
    listed = re.findall(r"Tidemark[A-Z]\w+", page.split("### The same alerts by either way")[1].split("What differs")[0])
    assert listed == [words.name for words in alert_words.ALL]
    assert set(listed) <= set(ALERTS)


@pytest.mark.parametrize(("labels", "receivers"), [
    (["alertname=TidemarkSevereDrift", "severity=critical"], "tidemark-now"),
    (["alertname=TidemarkSevereDrift", "severity=critical", "tidemark_action=retrain"], "tidemark-trigger,tidemark-now"),
    (["alertname=TidemarkDrift", "severity=warning"], "tidemark-day"),
    (["alertname=TidemarkLateEvents", "severity=info"], "nobody"),
    (["alertname=NodeDown", "severity=critical"], "nobody"),
])
def test_each_alert_reaches_those_whom_its_severity_concerns(labels, receivers, amtool_binary):
    said = ran(amtool_binary, "config", "routes", "test", "--config.file", ALERTMANAGER / "alertmanager.yml", *labels)
    assert said.strip() == receivers


#: A drift that is open and a link that would call a channel, were it not escaped.
MESSAGE = {
    "receiver": "r", "status": "firing", "externalURL": "http://am", "groupLabels": {"model": "loans"},
    "commonLabels": {"alertname": "TidemarkDrift", "model": "loans", "severity": "warning"},
    "commonAnnotations": {"summary": "It moved.", "dashboard_url": "http://g/d/m"},
    "alerts": [{
        "status": "firing", "labels": {"alertname": "TidemarkDrift", "model": "loans", "severity": "warning"},
        "annotations": {"summary": "It moved.", "description": "Most: <!channel> & co by 0.82.", "dashboard_url": "http://g/d/m",
                        "runbook_url": "http://r/TidemarkDrift.md"},
        "startsAt": "2026-01-31T12:00:00.123456789Z", "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "1"}]}


@pytest.mark.parametrize(("piece", "form", "expected"), [
    ("title", "text", "[FIRING] loans: It moved."),
    ("link", "text", "http://g/d/m"),
    ("color", "text", "warning"),
    ("slack", "text", "Most: &lt;!channel&gt; &amp; co by 0.82.\n<http://g/d/m|Dashboard> · <http://r/TidemarkDrift.md|Runbook>"),
    ("text", "text", "TidemarkDrift (warning), firing, since 2026-01-31 12:00:00 UTC\n\nMost: <!channel> & co by 0.82.\n\n"
                     "Dashboard: http://g/d/m\nRunbook:   http://r/TidemarkDrift.md"),
    ("html", "html", '<p>Most: &lt;!channel&gt; &amp; co by 0.82.</p>\n<p><a href="http://g/d/m">Dashboard</a> · '
                     '<a href="http://r/TidemarkDrift.md">Runbook</a></p>'),
])
def test_the_templates_say_it_readably_in_slack_and_in_mail(piece, form, expected, amtool_binary, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(MESSAGE))
    said = ran(amtool_binary, "template", "render", f"--template.glob={ALERTMANAGER / 'templates' / '*.tmpl'}",
               f"--template.type={form}", f'--template.text={{{{ template "tidemark.{piece}" . }}}}',
               f"--template.data={tmp_path / 'data.json'}")
    assert expected == said.strip() or (form == "html" and expected in said)


def test_a_message_of_what_is_over_says_so(amtool_binary, tmp_path):
    alert = MESSAGE["alerts"][0] | {"status": "resolved", "endsAt": "2026-01-31T13:00:00Z"}
    (tmp_path / "data.json").write_text(json.dumps(MESSAGE | {"status": "resolved", "alerts": [alert]}))
    said = [ran(amtool_binary, "template", "render", f"--template.glob={ALERTMANAGER / 'templates' / '*.tmpl'}",
                f'--template.text={{{{ template "tidemark.{piece}" . }}}}', f"--template.data={tmp_path / 'data.json'}").strip()
            for piece in ("title", "color", "slack")]
    assert said[:2] == ["[RESOLVED] loans: It moved.", "good"]
    assert said[2].startswith("*Over* since 2026-01-31 13:00:00 UTC.\n")


# ---- tidemark render --------------------------------------------------------------------------------------------------

def test_the_command_renders_what_is_checked_in_but_for_its_first_line(tmp_path, capsys):
    assert cli.main(["render", "-o", str(tmp_path)]) == 0
    assert "23 alerts for any model" in capsys.readouterr().out
    for name, path in (("rules.yaml", "dashboards/generated/rules.yaml"),
                       ("prometheusrule.yaml", "deploy/prometheus/prometheusrule.yaml")):
        assert (tmp_path / name).read_text().splitlines()[1:] == pages()[path].splitlines()[1:]


def test_addresses_and_labels_of_an_installation_are_in_every_alert(tmp_path):
    assert cli.main(["render", "-o", str(tmp_path), "--grafana-url", "http://g:3000/", "--label", "team=ml", "--retrain-label",
                     "--operator-label", "release=kube-prometheus-stack", "--job", "drift"]) == 0
    manifest = yaml.safe_load((tmp_path / "prometheusrule.yaml").read_text())
    assert manifest["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    written = manifest["spec"]["groups"][1]["rules"]
    assert {rule["labels"]["team"] for rule in written} == {"ml"}
    assert all(rule["annotations"]["dashboard_url"].startswith("http://g:3000/d/tidemark-") for rule in written)
    assert [rule["alert"] for rule in written if "tidemark_action" in rule["labels"]] == ["TidemarkSevereDrift"]
    assert 'absent(up{job="drift"})' in (tmp_path / "rules.yaml").read_text()


@pytest.mark.parametrize(("flags", "said"), [
    (["--grafana-url", "grafana"], "--grafana-url: expected an address such as https://grafana.example, got 'grafana'"),
    (["--service-url", "http://a/{{ x }}"], "--service-url: expected an address"),
    (["--label", "team"], "--label: expected NAME=VALUE such as team=platform, got 'team'"),
    (["--label", "a=b{{ $value }}"], "--label: expected NAME=VALUE"),
    (["--label", "severity=info"], "--label: expected a label of your own, got 'severity'"),
    (["--job", ""], "--job: expected some text, got ''"),
])
def test_a_flag_that_would_break_the_rules_is_one_line(flags, said, tmp_path, capsys):
    assert cli.main(["render", "-o", str(tmp_path), *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    parser = cli._Parser()
    command.arguments(parser)
    with pytest.raises(ConfigError, match="-o: expected a folder to write in"):
        command.run(parser.parse_known_args(["-o", str(tmp_path / "file" / "below")])[0])
