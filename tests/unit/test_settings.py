"""Settings: where they come from, and what is said when one is wrong."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from waooaw_celery import AgentApp, create_app
from waooaw_celery.app.celery_defaults import CELERY_DEFAULTS
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.settings import WaooawSettings


def test_the_environment_wins_over_the_configuration() -> None:
    """WAOOAW_SENDER is taken before waooaw_sender, as Celery's own variables are."""
    conf = {"waooaw_sender": "conf", "waooaw_ttl_seconds": 60}
    settings = WaooawSettings.read(conf, environ={"WAOOAW_SENDER": "env", "WAOOAW_AGENTS": "a, b"})
    assert (settings.sender, settings.ttl_seconds, settings.agents) == ("env", 60, ("a", "b"))


def test_other_variables_are_not_settings() -> None:
    """The variables of the tests and of the command line are no settings, and no error."""
    WaooawSettings.read({}, environ={"WAOOAW_TEST_AMQP_URL": "x", "WAOOAW_APP": "y"})


@pytest.mark.parametrize(
    ("conf", "environ", "sentence"),
    [
        ({"waooaw_ttl": 1}, {}, "unknown setting waooaw_ttl: did you mean waooaw_ttl_seconds?"),
        ({}, {"WAOOAW_SENDR": "x"}, r"unknown environment variable WAOOAW_SENDR: did you mean WAOOAW_SENDER\?"),
        (
            {"waooaw_zzz": 1},
            {},
            "unknown setting waooaw_zzz: known are accept_codecs, .*, agents, allow_eviction, allow_unordered",
        ),
        ({"waooaw_ttl_seconds": "soon"}, {}, "waooaw_ttl_seconds: .*number.*'soon'"),
        ({}, {"WAOOAW_REQUEST_TIMEOUT": "-1"}, "WAOOAW_REQUEST_TIMEOUT: .*greater than 0"),
        ({"waooaw_agents": ["ok", "Not Ok"]}, {}, "waooaw_agents: .*1 to 63 characters"),
        ({"waooaw_sender": "celery"}, {}, "waooaw_sender: .*reserved"),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(
    conf: dict[str, Any], environ: dict[str, str], sentence: str
) -> None:
    """The sentence names the key as it was written, and the nearest known one or what is wrong with the value."""
    with pytest.raises(ConfigurationError, match=sentence):
        WaooawSettings.read(conf, environ=environ)


def test_settings_may_come_from_a_namespaced_object() -> None:
    """With config_from_object(…, namespace="CELERY") the key is CELERY_WAOOAW_SENDER."""
    app = AgentApp("t")
    app.config_from_object({"CELERY_WAOOAW_SENDER": "shop", "CELERY_BROKER_URL": "redis://h"}, namespace="CELERY")
    assert app.settings.sender == "shop"
    app.close()


@pytest.mark.parametrize("key", ["worker_prefetch_multiplier", "task_acks_late", "broker_transport_options"])
def test_a_projects_own_configuration_wins_over_our_defaults(key: str) -> None:
    """Defaults hold until a project sets the key itself, in whichever way Celery offers."""
    own: Any = {"socket_timeout": 9} if key == "broker_transport_options" else 7
    plain = create_app(broker_url="redis://h")
    by_keyword = create_app(broker_url="redis://h", **{key: own})
    by_object = create_app(broker_url="redis://h")
    by_object.config_from_object({key: own, "broker_url": "redis://h"})
    assert plain.conf[key] == CELERY_DEFAULTS.get(key, plain.conf[key]) != own
    assert by_keyword.conf[key] == by_object.conf[key] == own
    for app in (plain, by_keyword, by_object):
        app.close()


def test_naming_one_transport_option_keeps_our_deadlines() -> None:
    """What a project says wins, and what it does not say is ours: also on the connection itself."""
    app = create_app(broker_url="redis://h", broker_transport_options={"visibility_timeout": 3600})
    for options in (app.transport_options, app.connection_for_write().transport_options):
        assert (options["visibility_timeout"], options["socket_timeout"]) == (3600, 3.0)
    app.close()


@pytest.mark.parametrize("urls", [["redis://a/1", "redis://b/1"], "redis://a/1;redis://b/1"])
def test_several_brokers_are_taken(urls: Any) -> None:
    """A list, or several with a semicolon between: the first says which kind it is, and our defaults hold."""
    app = create_app(broker_url=urls)
    app.check()
    assert (app.driver, app.conf.task_acks_late, app.conf.result_backend) == ("redis", True, "redis://a/1")
    app.close()


def test_the_variables_of_kubernetes_are_not_ours() -> None:
    """A service named waooaw-redis puts WAOOAW_REDIS_PORT and the like into every container."""
    variables = ("SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_6379_TCP_ADDR", "SERVICE_PORT_HTTP")
    WaooawSettings.read({}, environ={f"WAOOAW_REDIS_{name}": "x" for name in variables})


def test_one_url_is_enough_on_redis() -> None:
    """The result backend is the broker, when that is Redis and nothing else is said."""
    app = create_app(broker_url="redis://h:1/2")
    assert app.conf.result_backend == "redis://h:1/2"
    app.close()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "no broker is set: .*CELERY_BROKER_URL"),
        (
            {"broker_url": "memory://"},
            "'memory' does not order messages by priority.*waooaw_allow_unordered = True",
        ),
        ({"broker_url": "carrier-pigeon://h"}, "Kombu cannot use the broker URL"),
        ({"broker_url": "localhost"}, "Kombu cannot use the broker URL"),
        ({"broker_url": "amqp://h"}, "no Redis is configured .* set waooaw_redis_url"),
        ({"broker_url": "redis://h", "waooaw_redis_url": "http://h"}, "waooaw_redis_url must begin with redis://"),
        ({"broker_url": "redis://h", "waooaw_tt": 1}, "did you mean waooaw_ttl_seconds"),
    ],
)
def test_start_up_refuses_what_cannot_work(config: dict[str, Any], sentence: str) -> None:
    """check() names the setting that is missing or wrong."""
    app = create_app(**config)
    with pytest.raises(ConfigurationError, match=sentence):
        app.check()
    app.close()


def test_an_unordered_broker_can_be_accepted() -> None:
    """waooaw_allow_unordered takes a broker that ignores priority."""
    app = create_app(broker_url="memory://", waooaw_allow_unordered=True, waooaw_redis_url="redis://h")
    app.check()
    assert app.driver == "memory"
    app.close()


def test_a_password_is_not_shown_in_an_error() -> None:
    """The broker's password does not reach the sentence of an error."""
    app = create_app(broker_url="nosuch://user:secret@h")
    with pytest.raises(ConfigurationError) as caught:
        app.check()
    assert "secret" not in str(caught.value)
    app.close()


def test_a_mapping_is_read_from_the_environment() -> None:
    """What is chosen for each agent is written as name=choice, with commas between."""
    settings = WaooawSettings.read({}, environ={"WAOOAW_AGENT_SERIALIZERS": "worker-1=msgpack, legacy=json"})
    assert settings.agent_serializers == {"worker-1": "msgpack", "legacy": "json"}
    assert WaooawSettings.read({"waooaw_agent_compressions": {"a": "none"}}).agent_compressions == {"a": "none"}


def test_a_secret_is_not_shown() -> None:
    """A wrong value of a setting that holds keys is told without the value."""
    with pytest.raises(ConfigurationError, match=r"waooaw_encryption_keys: .*it is a secret") as refused:
        WaooawSettings.read({"waooaw_encryption_keys": {"2026": "c2VjcmV0"}}, environ={})
    assert "c2Vj" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"waooaw_accept_codecs": ["zlib", "gzap"]}, "there is no codec 'gzap': choose one of"),
        ({"waooaw_encryption_keys": ["id=AAAA"]}, "random bytes in base64; number 1 is not"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_at_start_up(settings: dict[str, Any], sentence: str) -> None:
    """A codec that there is not, or a key that is none, ends the worker before it has begun."""
    with closing(create_app(broker_url="redis://", **settings)) as app:
        with pytest.raises(ConfigurationError, match=sentence):
            app.check()
        assert app.transport_options["max_nodes"] > 0  # Celery prints the broker first


def test_the_protocol_of_old_may_be_told_to_pack_nothing() -> None:
    """Where Kombu itself writes a body, this package's words for a choice are no codec's name."""
    with closing(create_app(broker_url="memory://", waooaw_allow_unordered=True)) as app:
        producer = app.amqp.Producer(None)
        for word in ("none", "auto", None):
            assert producer._prepare("x", "json", None, None, word, {})[0] == '"x"'
