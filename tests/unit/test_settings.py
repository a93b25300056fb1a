"""The sources of settings, and the errors for wrong ones."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from waooaw_celery import AgentApp, create_app
from waooaw_celery.errors import ConfigurationError, SettingOverridden
from waooaw_celery.settings import WaooawSettings


def test_the_environment_wins_over_the_configuration() -> None:
    """WAOOAW_SENDER wins over waooaw_sender, as Celery's own variables do."""
    conf = {"waooaw_sender": "conf", "waooaw_ttl_seconds": 60}
    with pytest.warns(SettingOverridden, match=r"WAOOAW_SENDER .*'env'.* wins over waooaw_sender .*'conf'"):
        settings = WaooawSettings.read(conf, environ={"WAOOAW_SENDER": "env", "WAOOAW_AGENTS": "a, b"})
    assert (settings.sender, settings.ttl_seconds, settings.agents) == ("env", 60, ("a", "b"))


def test_equal_values_in_environment_and_code_are_no_conflict() -> None:
    """Values are compared as they are read: ``60`` in the environment is 60 in the code."""
    WaooawSettings.read({"waooaw_ttl_seconds": 60}, environ={"WAOOAW_TTL_SECONDS": "60.0"})


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("CELERY_BROKER_URL", "broker_url"),
        ("CELERY_BROKER_READ_URL", "broker_read_url"),
        ("CELERY_BROKER_WRITE_URL", "broker_write_url"),
        ("CELERY_RESULT_BACKEND", "result_backend"),
        ("WAOOAW_REDIS_URL", "waooaw_redis_url"),
        ("WAOOAW_DATABASE_URL", "waooaw_database_url"),
    ],
)
def test_an_overridden_url_is_warned_of(variable: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first use warns which server wins over which, and shows no password."""
    monkeypatch.setenv(variable, "redis://:hidden@production:6379/0")
    code = {"broker_url": "memory://", "waooaw_allow_unordered": True} | {setting: "redis://:own@tests/1"}
    with closing(create_app(**code)) as app, pytest.warns(SettingOverridden) as warned:
        _ = app.settings
    [text] = [str(each.message) for each in warned]
    wanted = f"{variable} in the environment (redis://production:6379/0) wins over {setting} in the code"
    assert text.startswith(f"{wanted} (redis://tests/1)")
    assert "hidden" not in text
    assert "own@" not in text


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
def test_a_variable_alone_is_no_conflict(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This package's own defaults, such as a result backend on the broker's Redis, are not the project's code."""
    monkeypatch.setenv(variable, "redis://production:6379/0")
    code = {} if variable == "CELERY_BROKER_URL" else {"broker_url": "redis://tests/1"}
    with closing(create_app(**code)) as app:
        assert getattr(app.conf, variable.lower()[7:]) == "redis://production:6379/0"
        _ = app.settings  # a warning would be an error here


def test_other_variables_are_not_settings() -> None:
    """The variables of the tests and of the command line are ignored."""
    WaooawSettings.read({}, environ={"WAOOAW_TEST_AMQP_URL": "x", "WAOOAW_APP": "y"})


@pytest.mark.parametrize(
    ("conf", "environ", "error"),
    [
        ({"waooaw_ttl": 1}, {}, "unknown setting waooaw_ttl: did you mean waooaw_ttl_seconds?"),
        ({}, {"WAOOAW_SENDR": "x"}, r"unknown environment variable WAOOAW_SENDR: did you mean WAOOAW_SENDER\?"),
        (
            {"waooaw_zzz": 1},
            {},
            "unknown setting waooaw_zzz: known: accept_codecs, .*, agents, allow_eviction, allow_unordered",
        ),
        ({"waooaw_ttl_seconds": "soon"}, {}, "waooaw_ttl_seconds is 'soon': it must be a number"),
        ({}, {"WAOOAW_REQUEST_TIMEOUT": "-1"}, "WAOOAW_REQUEST_TIMEOUT is '-1': it must be greater than 0"),
        ({"waooaw_agents": ["ok", "Not Ok"]}, {}, "waooaw_agents is .*: .*1 to 63 characters"),
        ({"waooaw_sender": "celery"}, {}, "waooaw_sender is 'celery': .*reserved"),
        ({"waooaw_breaker_failures": -1}, {}, "waooaw_breaker_failures is -1: it must be at least 0"),
        ({}, {"WAOOAW_BREAKER_WINDOW": "0"}, "WAOOAW_BREAKER_WINDOW is '0': it must be greater than 0"),
        ({"waooaw_breaker_open_seconds": "x"}, {}, "waooaw_breaker_open_seconds is 'x': it must be a number"),
        (
            {"waooaw_breaker_is_failure": "no path"},
            {},
            "waooaw_breaker_is_failure is .*: it must be a function, or",
        ),
        ({"waooaw_max_in_flight": {"a": 0}}, {}, "waooaw_max_in_flight .*: the limit of 'a' is 0: .*at least 1"),
        ({"waooaw_max_in_flight": {"a": 1.5}}, {}, "the limit of 'a' is 1.5: it must be a whole number"),
        ({"waooaw_max_in_flight": {"Not Ok": 1}}, {}, "the limit of 'Not Ok' is 1: .*1 to 63 characters"),
        ({"waooaw_max_in_flight": 5}, {}, "waooaw_max_in_flight is 5: it must be a mapping of agents"),
        ({}, {"WAOOAW_MAX_IN_FLIGHT": "a=many"}, "the limit of 'a' is 'many': it must be a number"),
    ],
)
def test_a_wrong_setting_is_refused(conf: dict[str, Any], environ: dict[str, str], error: str) -> None:
    """The error names the key as written, and either the nearest known key or what is wrong with the value."""
    with pytest.raises(ConfigurationError, match=error):
        WaooawSettings.read(conf, environ=environ)


def test_settings_may_come_from_a_namespaced_object() -> None:
    """With config_from_object(…, namespace="CELERY") the key is CELERY_WAOOAW_SENDER."""
    app = AgentApp("t")
    app.config_from_object({"CELERY_WAOOAW_SENDER": "shop", "CELERY_BROKER_URL": "redis://h"}, namespace="CELERY")
    assert app.settings.sender == "shop"
    app.close()


@pytest.mark.parametrize(
    ("key", "default", "own"),
    [
        ("worker_prefetch_multiplier", 1, 7),
        ("task_acks_late", True, False),
        ("broker_transport_options", {}, {"socket_timeout": 9}),
    ],
)
def test_a_projects_own_configuration_wins_over_our_defaults(key: str, default: Any, own: Any) -> None:
    """A project can set a key in any of Celery's ways."""
    plain = create_app(broker_url="redis://h")
    by_keyword = create_app(broker_url="redis://h", **{key: own})
    by_object = create_app(broker_url="redis://h")
    by_object.config_from_object({key: own, "broker_url": "redis://h"})
    assert plain.conf[key] == default
    assert by_keyword.conf[key] == by_object.conf[key] == own
    for app in (plain, by_keyword, by_object):
        app.close()


def test_a_projects_transport_options_are_merged_with_our_defaults() -> None:
    """An option that the project does not set has our default, on the connection too."""
    app = create_app(broker_url="redis://h", broker_transport_options={"visibility_timeout": 3600})
    for options in (app.transport_options, app.connection_for_write().transport_options):
        assert (options["visibility_timeout"], options["socket_timeout"]) == (3600, 3.0)
    app.close()


@pytest.mark.parametrize("urls", [["redis://a/1", "redis://b/1"], "redis://a/1;redis://b/1"])
def test_several_brokers_are_accepted(urls: Any) -> None:
    """They are a list, or separated by semicolons; the first determines the kind of broker and the defaults."""
    app = create_app(broker_url=urls)
    app.check()
    assert (app.driver, app.conf.task_acks_late, app.conf.result_backend) == ("redis", True, "redis://a/1")
    app.close()


def test_kubernetes_variables_are_ignored() -> None:
    """A service named waooaw-redis puts WAOOAW_REDIS_PORT and others into each container."""
    variables = ("SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_6379_TCP_ADDR", "SERVICE_PORT_HTTP")
    WaooawSettings.read({}, environ={f"WAOOAW_REDIS_{name}": "x" for name in variables})
    assert WaooawSettings.read({}, environ={"WAOOAW_HEALTH_PORT": "tcp://10.0.0.1:80"}).health_port is None
    assert WaooawSettings.read({}, environ={"WAOOAW_HEALTH_PORT": "8080"}).health_port == 8080


def test_one_url_is_enough_on_redis() -> None:
    """By default, the result backend is the broker if that is Redis."""
    app = create_app(broker_url="redis://h:1/2")
    assert app.conf.result_backend == "redis://h:1/2"
    app.close()


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({}, "no broker is set: .*CELERY_BROKER_URL"),
        (
            {"broker_url": "memory://"},
            "'memory' does not order messages by priority.*waooaw_allow_unordered = True",
        ),
        ({"broker_url": "carrier-pigeon://h"}, "Kombu cannot use the broker URL"),
        ({"broker_url": "localhost"}, "broker_url cannot be read: it must begin with a scheme"),
        ({"broker_url": "amqp://h"}, "no Redis is configured .* set waooaw_redis_url"),
        ({"broker_url": "redis://h", "waooaw_redis_url": "http://h"}, "waooaw_redis_url must begin with redis://"),
        ({"broker_url": "redis://h", "waooaw_tt": 1}, "did you mean waooaw_ttl_seconds"),
    ],
)
def test_check_refuses_a_configuration_that_cannot_work(config: dict[str, Any], error: str) -> None:
    """check() names the setting that is missing or wrong."""
    app = create_app(**config)
    with pytest.raises(ConfigurationError, match=error):
        app.check()
    app.close()


def test_an_unordered_broker_can_be_accepted() -> None:
    """waooaw_allow_unordered accepts a broker that ignores priority."""
    app = create_app(broker_url="memory://", waooaw_allow_unordered=True, waooaw_redis_url="redis://h")
    app.check()
    assert app.driver == "memory"
    app.close()


def test_a_password_is_not_shown_in_an_error() -> None:
    """The broker's password is not part of the error."""
    app = create_app(broker_url="nosuch://user:secret@h")
    with pytest.raises(ConfigurationError) as caught:
        app.check()
    assert "secret" not in str(caught.value)
    app.close()


def test_a_mapping_is_read_from_the_environment() -> None:
    """It is written as name=choice, separated by commas."""
    settings = WaooawSettings.read({}, environ={"WAOOAW_AGENT_SERIALIZERS": "worker-1=msgpack, legacy=json"})
    assert settings.agent_serializers == {"worker-1": "msgpack", "legacy": "json"}
    assert WaooawSettings.read({"waooaw_agent_compressions": {"a": "none"}}).agent_compressions == {"a": "none"}


def test_a_secret_is_not_shown() -> None:
    """The error for a setting that holds keys does not show its value."""
    with pytest.raises(ConfigurationError, match="waooaw_encryption_keys is invalid: it must be") as refused:
        WaooawSettings.read({"waooaw_encryption_keys": {"2026": "c2VjcmV0"}}, environ={})
    assert "c2Vj" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"waooaw_accept_codecs": ["zlib", "gzap"]}, "there is no codec 'gzap': choose one of"),
        ({"waooaw_encryption_keys": ["id=AAAA"]}, "encryption key number 1 is invalid"),
    ],
)
def test_an_unknown_codec_or_invalid_key_is_an_error_at_start_up(settings: dict[str, Any], error: str) -> None:
    """The worker ends before it consumes anything."""
    with closing(create_app(broker_url="redis://", **settings)) as app:
        with pytest.raises(ConfigurationError, match=error):
            app.check()
        assert app.transport_options["max_nodes"] > 0  # Celery prints the broker first


def test_kombus_own_encoding_accepts_none_and_auto() -> None:
    """Where Kombu encodes a body, "none" and "auto" are not names of codecs."""
    with closing(create_app(broker_url="memory://", waooaw_allow_unordered=True)) as app:
        producer = app.amqp.Producer(None)
        for word in ("none", "auto", None):
            assert producer._prepare("x", "json", None, None, word, {})[0] == '"x"'


def test_limits_of_open_requests_are_read_from_text() -> None:
    """``*`` stands for every agent that is not named."""
    settings = WaooawSettings.read({}, environ={"WAOOAW_MAX_IN_FLIGHT": "writer=5, *=20"})
    assert settings.max_in_flight == {"writer": 5, "*": 20}
