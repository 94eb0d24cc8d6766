"""Models on the hub, which is a local server: what is sent and what never is, who sees it, what is said where it fails."""

import json
from pathlib import Path

import hub_server
import pytest
import tiny_models
from huggingface_hub import ModelCard

from denserl import distributed
from denserl.cli.main import main as denserl
from denserl.errors import UserError
from denserl.models import publishing
from denserl.models.card import Making, is_as_written
from denserl.models.publishing import check_sharing, files_to_send, publish, push
from denserl.models.reward_models import new_reward_model
from denserl.models.reward_settings import sft_settings, store_settings
from denserl.models.tokenizers import load_tokenizer
from denserl.trainer.config import SFTConfig

NO_MODEL = (
    "command.json metrics.jsonl samples.jsonl trackers.json fits.json notes.txt pairs.jsonl own.py skipped/step-1.jsonl "
    "checkpoints/step-000001/model.safetensors denserl/events.out.tfevents.1 critic/config.json adapter/train.jsonl"
).split()
MODEL = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    return tiny_models.save_language_model(tmp_path_factory.mktemp("secret-project") / "sft")


@pytest.fixture
def folder(sft, tmp_path) -> Path:
    """What a training leaves: a reward model, its adapters, and all that is no model."""
    model, folder = new_reward_model(str(sft), "fp32"), tmp_path / "runs" / "rm"
    store_settings(model.config, **sft_settings(str(sft), "fp32:0123", str(folder)), entropy_threshold=5.3)
    model.save_pretrained(folder)
    load_tokenizer(str(sft)).save_pretrained(folder)
    for name in NO_MODEL:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    adapters = {"base_model_name_or_path": str(sft), "task_type": "SEQ_CLS", "r": 2}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(adapters))
    (folder / "adapter/config.json").write_text((folder / "config.json").read_text())
    (folder / "adapter/adapter_model.safetensors").write_bytes(b"weights")
    load_tokenizer(str(sft)).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving(monkeypatch, tmp_path / "hub") as hub:
        yield hub


def making(sft: Path, folder: Path, **options) -> Making:
    (folder.parent / "rows.jsonl").write_text('{"text": "private"}\n')
    config = SFTConfig(model=str(sft), data=[str(folder.parent / "rows.jsonl")], output_dir=str(folder), **options)
    return Making("train-rm", config, ["accuracy 0.7"], (0.7, 10), "fp32")


def test_a_model_and_nothing_else_is_sent_and_names_no_place_of_this_machine(folder, sft, hub, caplog):
    caplog.set_level("INFO")
    publish(folder, making(sft, folder, push_to_hub="somebody/rm"))
    repo = hub.repos["somebody/rm"]
    own = {"adapter_config.json", "adapter_model.safetensors"}
    assert repo["private"]
    assert set(repo["files"]) == MODEL | {f"adapter/{name}" for name in MODEL - {"model.safetensors"} | own}
    assert repo["files"]["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    sent = b"\n".join(repo["files"].values())
    assert b"private" not in sent
    assert not [place for place in (str(sft), str(folder.parent), "secret-project") if place.encode() in sent]
    settings = json.loads(repo["files"]["config.json"])["segment_reward"]
    assert settings["sft_model"] is settings["sft_from_here"] is None and settings["sft_fingerprint"] == "fp32:0123"
    assert json.loads((folder / "config.json").read_text())["segment_reward"]["sft_model"] == str(sft)
    assert json.loads(repo["files"]["adapter/adapter_config.json"])["base_model_name_or_path"] is None
    assert hub.tokens == {f"Bearer {hub_server.TOKEN}"} and hub_server.TOKEN not in caplog.text
    assert "pushed to" in caplog.text and "(private)" in caplog.text
    # The hub's own library reads the card.
    card = ModelCard(repo["files"]["README.md"].decode())
    assert card.data.library_name == "transformers" and card.data.base_model is None and card.data.license is None


def test_all_see_a_repository_where_that_is_asked_for(folder, hub):
    push(folder, "somebody/rm", public=True)
    assert not hub.repos["somebody/rm"]["private"]


def test_a_repository_that_all_see_gets_nothing_unasked(folder, hub):
    hub.repos["somebody/rm"] = {"private": False, "files": {}}
    with pytest.raises(UserError, match="is there already, and seen by all") as error:
        push(folder, "somebody/rm")
    assert hub.repos["somebody/rm"]["files"] == {} and "hub_public" in error.value.fix


def test_a_failed_push_leaves_the_model_and_says_how_to_push_again(folder, sft, hub, capsys):
    hub.refuses = 403
    with pytest.raises(UserError, match="is not on the hub as somebody/rm: .*403") as error:
        publish(folder, making(sft, folder, push_to_hub="somebody/rm"))
    assert error.value.fix == f"denserl push --model {folder} --push_to_hub somebody/rm"
    assert (folder / "model.safetensors").is_file() and is_as_written((folder / "README.md").read_text())
    assert hub.repos["somebody/rm"]["files"] == {}
    hub.refuses = None
    denserl(error.value.fix.split()[1:])
    assert MODEL <= set(hub.repos["somebody/rm"]["files"])


def test_no_hub_is_a_message(folder, monkeypatch):
    monkeypatch.setattr(publishing.HfApi, "create_repo", lambda *args, **kw: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(UserError, match="the model is in .* no route"):
        push(folder, "somebody/rm")


def test_a_card_that_somebody_wrote_on_the_hub_stays(folder, sft, hub, caplog):
    push(folder, "somebody/rm")
    assert "README.md" not in hub.repos["somebody/rm"]["files"]
    publish(folder, making(sft, folder, push_to_hub="somebody/rm"))
    own = hub.repos["somebody/rm"]["files"]["README.md"]
    # Its own earlier card is replaced, one with a licence added is not.
    publish(folder, making(sft, folder, push_to_hub="somebody/rm", lr=1e-3))
    newer = hub.repos["somebody/rm"]["files"]["README.md"]
    assert newer != own and b"--lr 0.001" in newer
    edited = newer.replace(b"---\nlibrary", b"---\nlicense: mit\nlibrary")
    hub.repos["somebody/rm"]["files"]["README.md"] = edited
    publish(folder, making(sft, folder, push_to_hub="somebody/rm"))
    assert hub.repos["somebody/rm"]["files"]["README.md"] == edited and "stays as it is" in caplog.text


def test_what_can_be_known_before_the_work_is_said_before_it(sft, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    config = SFTConfig(model=str(sft), data=["x"], output_dir=str(tmp_path), push_to_hub="somebody/rm")
    with pytest.raises(UserError, match="no token for the hub"):
        check_sharing(config)
    with pytest.raises(UserError, match="is no name of a repository"):
        check_sharing(SFTConfig(model=str(sft), data=["x"], output_dir=str(tmp_path), push_to_hub="a/b/c"))
    check_sharing(SFTConfig(model=str(sft), data=["x"], output_dir=str(tmp_path)))


def test_other_ranks_than_the_first_do_nothing(folder, sft, hub, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    publish(folder, making(sft, folder, push_to_hub="somebody/rm"))
    assert hub.repos == {} and not (folder / "README.md").exists()


def test_a_folder_without_a_model_is_refused(tmp_path, hub):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds no model"):
        push(tmp_path, "somebody/rm")
    assert files_to_send(tmp_path) == {} and hub.repos == {}
