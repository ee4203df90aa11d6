from __future__ import annotations

from pathlib import Path

import pytest

from triptych.config import ClusterConfig, cache_dir, dump_config, load_config, parse_config
from triptych.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def refusal(*settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, settings)
    return str(caught.value)


def test_no_file_means_all_defaults() -> None:
    assert load_config() == ClusterConfig()


def test_an_empty_file_means_all_defaults(write: Path) -> None:
    write.write_text("# nothing yet\n")
    assert load_config(write) == ClusterConfig()


def test_an_unknown_key_is_refused_with_its_file_and_path(write: Path) -> None:
    write.write_text("engine: {chunk_token: 64}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(write)
    assert str(caught.value) == f"{write}: engine.chunk_token: unknown key"


def test_every_wrong_key_is_named_at_once() -> None:
    message = refusal("engine.chunk_tokens=1", "router.port=65536", "colour=red")
    assert "engine.chunk_tokens: " in message
    assert "router.port: " in message
    assert "colour: unknown key" in message


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["pools=[]"], "a cluster needs at least one decode worker"),
        (["pools=[{name: p, role: prefill}]"], "a cluster needs at least one decode worker"),
        (["pools=[{name: a, role: decode}, {name: a, role: decode}]"], "two pools share a name"),
        (["pools=[{name: A_b, role: decode}]"], "pools.0.name: "),
        (["transport.require=nixl"], "transport.require: nixl is not among transport.links"),
        (["transport.require=nixl:rdma"], "nixl:rdma is not among transport.links"),
        (["transport.links=[]"], "transport.links: "),
        (
            ["pools=[{name: a, role: decode}, {name: b, role: prefill, kv: {block_tokens: 64}}]"],
            "kv.block_tokens: all pools must agree",
        ),
    ],
)
def test_a_cluster_that_cannot_work_is_refused(settings: list[str], problem: str) -> None:
    message = refusal(*settings)
    assert message.startswith("config: ")
    assert problem in message
    assert "Value error" not in message


def test_an_override_wins_over_the_file(write: Path) -> None:
    write.write_text("engine: {chunk_tokens: 64, max_running: 2}\n")
    config = load_config(write, ["engine.chunk_tokens=128"])
    assert (config.engine.chunk_tokens, config.engine.max_running) == (128, 2)


def test_a_later_override_wins_over_an_earlier_one() -> None:
    assert load_config(None, ["drain_s=1", "drain_s=2"]).drain_s == 2


def test_overrides_take_sizes_lists_and_nothing() -> None:
    config = load_config(
        None, ["kv.memory=256MiB", "transport.links=[tcp]", "served_model_name=null"]
    )
    assert config.kv.memory == 256 << 20
    assert config.transport.links == ("tcp",)
    assert config.served_model_name is None


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("drain_s", "expected key=value"),
        ("model.name=x", "model is not a section"),
        ("drain_s=[", "--set drain_s=[: "),
    ],
)
def test_a_broken_override_is_quoted(write: Path, override: str, problem: str) -> None:
    write.write_text("model: some-model\n")
    with pytest.raises(ConfigError, match="--set") as caught:
        load_config(write, [override])
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(write: Path) -> None:
    with pytest.raises(ConfigError, match=str(write)):
        load_config(write)
    write.write_bytes(b"model: \xff\n")
    with pytest.raises(ConfigError, match=str(write)):
        load_config(write)
    write.write_text("model: [\n")
    with pytest.raises(ConfigError, match=str(write)):
        load_config(write)
    write.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="expected a mapping at the top, got list"):
        load_config(write)


def test_a_dumped_config_reads_back_equal(write: Path) -> None:
    config = load_config(
        None,
        [
            "kv.memory=100KiB",
            "transport={links: [nixl, tcp], require: nixl}",
            "router.api_keys=['0123', 'yes']",
            "pools=[{name: d, role: decode, threads: 2, kv: {memory: 1GiB}}]",
        ],
    )
    write.write_text(dump_config(config))
    assert load_config(write) == config


def test_a_pool_without_settings_of_its_own_has_the_clusters() -> None:
    config = parse_config(
        {
            "engine": {"chunk_tokens": 64},
            "pools": [
                {"name": "a", "role": "decode"},
                {"name": "b", "role": "decode", "engine": {"max_running": 3}},
            ],
        }
    )
    assert config.engine_of(config.pool("a")).chunk_tokens == 64
    assert config.engine_of(config.pool("b")).max_running == 3
    assert config.kv_of(config.pool("b")) == config.kv
    with pytest.raises(ConfigError, match="no pool named 'c'"):
        config.pool("c")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ClusterConfig().drain_s = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "name"),
    [("smollm2-135m", "smollm2-135m"), ("/models/tiny.gguf", "tiny"), ("/models/dir/", "dir")],
)
def test_the_api_names_a_model_by_its_last_part(model: str, name: str) -> None:
    assert ClusterConfig(model=model).served_name == name
    assert ClusterConfig(model=model, served_model_name="mine").served_name == "mine"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("TRIPTYCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_dir() == Path("/caches/triptych")


def test_a_bare_off_is_off_although_yaml_reads_it_as_false(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("speculation: {mode: off}\ntransport: {digest: off}\n")
    config = load_config(file)
    assert (config.speculation.mode, config.transport.digest) == ("off", "off")
    assert load_config(None, ["speculation.mode=off"]).speculation.mode == "off"


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("{drafters: [{kind: suffix}, {kind: suffix}]}", "drafters"),
        ("{mode: fixed, drafters: []}", "drafters"),
        ("{drafters: [{kind: ngram, min_n: 6}]}", "min_n"),
        ("{drafters: [{kind: oracle}]}", "drafters"),
        ("{max_nodes: 0}", "max_nodes"),
    ],
)
def test_speculation_that_makes_no_sense_is_refused_by_its_field(
    tmp_path: Path, section: str, field: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"speculation: {section}\n")
    with pytest.raises(ConfigError, match=rf"speculation.*{field}"):
        load_config(file)


def test_the_models_of_a_cluster_are_the_targets_and_those_that_drafters_load() -> None:
    draft = "{kind: draft_model, model: hf://org/small}"
    alone = load_config(None, ["model=hf://org/large", f"speculation.drafters=[{draft}]"])
    assert alone.models == ("hf://org/large", "hf://org/small")
    switching = f"speculation.drafters=[{{kind: switching, between: [{{kind: ngram}}, {draft}]}}]"
    assert load_config(None, [switching]).models == ("smollm2-135m", "hf://org/small")
    assert load_config(None, [switching, "speculation.mode=off"]).models == ("smollm2-135m",)
    wrong = f"speculation.drafters=[{draft.replace('org/', '')}]"
    assert "speculation.drafters: model: hf://small: no source of weights" in refusal(wrong)
