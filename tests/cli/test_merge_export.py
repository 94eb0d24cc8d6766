"""denserl merge and denserl export as commands: a trained model through both, and a user's mistakes."""

import json
import shutil

import hub_server
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest

from denserl.cli.main import main as denserl
from denserl.models.reward_models import load_reward_model, new_reward_model
from denserl.models.scoring import token_rewards
from denserl.models.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    tiny_models.save_language_model(folder / "sft")
    rows = [json.dumps(row) for row in tiny_models.boat_pairs(8)]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    new_reward_model(str(folder / "sft"), "fp32").save_pretrained(folder / "rm")
    load_tokenizer(str(folder / "sft")).save_pretrained(folder / "rm")
    return folder


def in_code_of_its_own(folder):
    """The reward model as one of a type that only code in its folder knows."""
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "homemade", "auto_map": code}))
    (folder / "own.py").write_text("raise SystemExit('ran')")


def test_a_model_with_code_of_its_own_has_no_layout_for_others(files, tmp_path, capsys):
    shutil.copytree(files / "rm", tmp_path / "own")
    in_code_of_its_own(tmp_path / "own")
    with pytest.raises(SystemExit) as end:
        denserl(f"export --reward_model {tmp_path / 'own'} --layout hf --output_dir {tmp_path / 'new'}".split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and "code of its own" in said and "code is in transformers" in said


def scores(folder) -> torch.Tensor:
    ids = torch.tensor([[7, 20, 33, 64, 5]])
    with torch.no_grad():
        return token_rewards(load_reward_model(str(folder), "fp32"), ids, torch.ones_like(ids))


def accuracy_of(folder, pairs: int) -> str:
    """A run's last accuracy with the interval that scipy gives it, as commands write it."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    accuracy = [row["eval_accuracy"] for row in rows if "eval_accuracy" in row][-1]
    interval = binomtest(round(accuracy * pairs), pairs).proportion_ci(method="wilson")
    return f"accuracy {accuracy:.3f}, 95% interval [{interval.low:.3f}, {interval.high:.3f}], on {pairs} pairs"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving(monkeypatch, tmp_path / "hub") as hub:
        yield hub


def test_a_trained_model_is_merged_exported_and_read_back_with_equal_scores(files, tmp_path, hub):
    """Adapters, an MLP head and the language-model term, from text on; what is trained and exported goes to the hub."""
    pytest.importorskip("peft")
    sft, pairs = files / "sft", files / "pairs.jsonl"
    words = f"train-rm --model {sft} --data {pairs} --eval_data {pairs} --output_dir {tmp_path / 'rm'} --cache_dir {tmp_path}"
    words += " --batch_size 4 --micro_batch_size 4 --max_length 64 --max_prompt_length 48 --save_steps 0 --lr 1e-2"
    words += " --lora_rank 2 --head_type mlp --head_width 6 --reg_type sft --device cpu --push_to_hub somebody/rm"
    with tiny_models.restored_environment():
        denserl(words.split())
    card = " ".join((tmp_path / "rm/README.md").read_text().split())
    assert accuracy_of(tmp_path / "rm", pairs=8) in card and "--lora_rank 2" in card and str(tmp_path) not in card
    assert "library_name: peft" in (tmp_path / "rm/adapter/README.md").read_text()
    denserl(f"merge --model {sft} --adapter {tmp_path / 'rm/adapter'} --output_dir {tmp_path / 'merged'}".split())
    run, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("rm", "merged"))
    assert set(run) == set(merged) and all(torch.equal(run[name], merged[name]) for name in run)
    own, again = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("rm", "merged"))
    assert own | {"use_cache": True} == again and own["segment_reward"]["head"]["width"] == 6
    denserl(
        f"export --reward_model {tmp_path / 'merged'} --layout grm --output_dir {tmp_path / 'grm'} --push_to_hub a/grm".split()
    )
    sent = hub.repos["somebody/rm"]["files"]
    assert sent["README.md"] == (tmp_path / "rm/README.md").read_bytes() and b"# `somebody/rm`" in sent["README.md"]
    assert sent["model.safetensors"] == (tmp_path / "rm/model.safetensors").read_bytes()
    assert "adapter/adapter_model.safetensors" in sent and not {"command.json", "metrics.jsonl"} & {*sent}
    assert b"GRM" in hub.repos["a/grm"]["files"]["README.md"] and str(tmp_path).encode() not in b"".join(sent.values())
    denserl(f"export --reward_model {tmp_path / 'grm'} --layout denserl --output_dir {tmp_path / 'back'}".split())
    assert torch.equal(scores(tmp_path / "back"), scores(tmp_path / "rm"))
    assert "in the published layout of GRM" in (tmp_path / "grm/README.md").read_text()
    assert [name for name in ("merged", "back") if "RewardScorer" not in (tmp_path / name / "README.md").read_text()] == []


def test_a_reward_model_is_averaged_with_a_language_model(files, tmp_path):
    (tmp_path / "merge.yaml").write_text(f"model: {files / 'rm'}\nwith: [{files / 'sft'}]\nweight: 0.35\n")
    denserl(f"merge --config {tmp_path / 'merge.yaml'} --output_dir {tmp_path / 'new'}".split())
    # The trunk is that of the language model, from which the reward model was not trained away.
    torch.testing.assert_close(scores(tmp_path / "new"), scores(files / "rm"))
    assert json.loads((tmp_path / "new/command.json").read_text())[0]["settings"]["with_"] == [str(files / "sft")]


def test_what_a_failure_or_a_kill_left_half_written_is_no_model_and_is_replaced(files, tmp_path, monkeypatch):
    from denserl.models import export

    words = f"export --reward_model {files / 'rm'} --layout hf --output_dir {tmp_path / 'new'}".split()

    def failing(source, target):
        (target / "model.safetensors").write_bytes(b"half")
        assert not list((tmp_path / "new").glob("*.safetensors"))
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setitem(export.LAYOUTS, "hf", failing)
        with pytest.raises(OSError, match="no space left"):
            denserl(words)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"command.json"}
    # Of a kill, more is left.
    (tmp_path / "new/.partial").mkdir()
    (tmp_path / "new/.partial/model-00001-of-00002.safetensors").write_bytes(b"half")
    denserl(words)
    denserl([*words[:-1], str(tmp_path / "other")])
    left, other = ({path.name for path in (tmp_path / name).iterdir()} for name in ("new", "other"))
    assert left == other and "model.safetensors" in left and ".partial" not in left


@pytest.mark.parametrize(
    "words, says",
    [
        ("export --reward_model {rm} --output_dir {new}", ["--layout"]),
        ("export --reward_model {rm} --layout onnx --output_dir {new}", ["onnx", "hf", "grm", "denserl"]),
        ("export --reward_model {rm} --layout hf --out {new}", ["no option --out", "did you mean"]),
        ("export --reward_model /nowhere/rm --layout hf --output_dir {new}", ["no model folder '/nowhere/rm'", "fix: "]),
        ("export --reward_model {sft} --layout hf --output_dir {new}", ["holds no reward head", "denserl train-rm"]),
        ("export --reward_model {sft} --layout grm --output_dir {new}", ["holds no reward head", "denserl train-rm"]),
        ("export --reward_model {rm} --layout denserl --output_dir {new}", ["not in GRM's layout", "fix: "]),
        ("export --reward_model {rm} --layout hf --output_dir {rm}", ["holds a model already", "give a new folder"]),
        ("export --reward_model {rm} --layout hf --output_dir {rm}/config.json", ["is a file; expected a folder"]),
        ("merge --model {sft} --output_dir {new}", ["--adapter"]),
        ("merge --model {sft} --adapter {rm} --output_dir {new}", ["holds no adapters", "adapter/"]),
        ("merge --model {sft} --adapter /nowhere --output_dir {new}", ["holds no adapters"]),
        ("merge --model {sft} --adapter {rm} --dtype fp16 --output_dir {new}", ["fp16", "bf16"]),
        ("merge --model {sft} --adapter {rm} --output_dir {sft}", ["holds a model already", "give a new folder"]),
        ("merge --model {rm} --adapter {rm} --with {sft} --output_dir {new}", ["--adapter and --with: both given"]),
        ("merge --model {rm} --adapter {rm} --weight 0.5 --output_dir {new}", ["--weight 0.5 has no effect without --with"]),
        ("merge --model {rm} --with {sft} --weight 2 --output_dir {new}", ["--weight is 2.0", "at least 0 and at most 1"]),
        ("merge --model {sft} --with {rm} --output_dir {new}", ["holds no reward head", "language models as --with"]),
    ],
)
def test_a_mistake_is_a_message(files, tmp_path, capsys, words, says):
    line = words.format(sft=files / "sft", rm=files / "rm", new=tmp_path / "new").split()
    with pytest.raises(SystemExit) as end:
        denserl(line)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    said = " ".join(err.replace("│", " ").split())
    assert [part for part in says if part not in said] == [] and "Traceback" not in err and not out
    assert not list((tmp_path / "new").glob("*.safetensors"))
