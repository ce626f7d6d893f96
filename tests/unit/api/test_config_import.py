import pytest
import yaml

import tunesmith.api as api
from tunesmith.api.foreign_configs import TOOLS, Moves
from tunesmith.core.recipe import load_recipe
from tunesmith.errors import RecipeError
from tunesmith.stages import load_stages

LLAMA_FACTORY = """
model_name_or_path: ./base
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
resume_from_checkpoint: null
use_dora: false
"""

AXOLOTL = """
base_model: ./base
load_in_4bit: true
adapter: qlora
datasets:
  - path: data/chat.jsonl
    type: chat_template
    field_messages: turns
    roles_to_train: [assistant]
val_set_size: 0.05
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_steps: 10
bf16: auto
weight_decay: 0.0
wandb_project:
a_key_nobody_knows: 3
"""

TRL = """
model_name_or_path: ./base
dataset_name: data/rows.jsonl
use_peft: true
lora_r: 4
lora_alpha: 8
lora_target_modules: [q_proj, v_proj]
use_dora: true
max_steps: 200
warmup_steps: 20
learning_rate: 3e-4
per_device_train_batch_size: 4
adam_beta2: 0.95
max_length: 512
packing: true
neftune_noise_alpha: 5
push_to_hub: true
"""


def imported(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    made = api.import_config(tmp_path / "config.yaml", tmp_path / "recipe.yaml")
    return made, load_recipe(tmp_path / "recipe.yaml", load_stages())


def fates(made):
    return [fate.key for kind in (made.moved, made.always, made.lost, made.unknown) for fate in kind]


@pytest.mark.parametrize("text", [LLAMA_FACTORY, AXOLOTL, TRL], ids=["LLaMA-Factory", "axolotl", "TRL"])
def test_every_key_of_a_config_ends_in_one_list(tmp_path, text):
    made, _ = imported(tmp_path, text)
    named = [key for key in fates(made) if "[]" not in key]
    assert set(yaml.safe_load(text)) <= set(named)
    lost_and_moved = {fate.key for fate in made.lost} & {fate.key for fate in made.always}
    assert not lost_and_moved


def test_a_config_of_llama_factory_means_the_same(tmp_path):
    made, recipe = imported(tmp_path, LLAMA_FACTORY)
    assert made.tool == "LLaMA-Factory"
    train = recipe.tables["train"].spec
    assert (train.adapter.kind, train.adapter.rank, train.adapter.alpha, train.adapter.targets) == ("lora", 8, 16, None)
    assert (train.batch_size, train.learning_rate, train.num_train_epochs) == (8, 1e-4, 3.0)
    assert (train.lr_scheduler_type, train.warmup_ratio, train.dtype, train.seed) == ("cosine", 0.1, "bfloat16", 42)
    assert recipe.tables["contract"].spec.loss.max_tokens == 2048
    sources = recipe.tables["ingest"].spec.sources
    assert [source.dataset for source in sources] == ["identity", "alpaca_en_demo"]
    assert recipe.tables["split"].spec.shares.val == pytest.approx(0.1)
    assert {fate.key for fate in made.lost} == {"template", "max_samples"}
    assert not made.unknown


def test_a_config_of_axolotl_means_the_same_and_says_what_it_loses(tmp_path):
    made, recipe = imported(tmp_path, AXOLOTL)
    train = recipe.tables["train"].spec
    assert (train.adapter.rank, train.adapter.alpha, train.adapter.dropout) == (32, 16, 0.05)
    assert (train.batch_size, train.learning_rate, train.num_train_epochs) == (8, 2e-4, 4)
    assert train.dtype == "auto"
    (source,) = recipe.tables["ingest"].spec.sources
    assert source.columns == {"messages": "turns"}
    lost = {fate.key for fate in made.lost}
    assert lost == {"warmup_steps"}
    assert train.warmup_ratio == 0.05, "some warm-up was asked for"
    assert {"datasets[].type", "datasets[].roles_to_train"} <= {fate.key for fate in made.always}
    assert (train.adapter.kind, train.adapter.quantization.kind) == ("lora", "nf4")
    assert [fate.key for fate in made.unknown] == ["a_key_nobody_knows"]


@pytest.mark.parametrize(
    ("option", "value", "fate"),
    [
        ("split", "train[:10%]", "lost"),
        ("split", "train", "always"),
        ("type", "completion", "lost"),
        ("message_property_mappings", {"role": "from", "content": "value"}, "always"),
        ("message_property_mappings", {"role": "who", "content": "said"}, "lost"),
        ("train_on_eos", "last", "lost"),
        ("field_instruction", "question", "lost"),
        ("field_messages", "turns", "moved"),
    ],
)
def test_no_option_of_a_data_set_is_passed_over(tmp_path, option, value, fate):
    config = yaml.safe_load(AXOLOTL)
    config["datasets"] = [{"path": "data/chat.jsonl", option: value}]
    made, _ = imported(tmp_path, yaml.safe_dump(config))
    assert [item.key for item in getattr(made, fate)].count(f"datasets[].{option}") == 1


@pytest.mark.parametrize(("name", "told"), [("org/chats", True), ("data/rows.jsonl", False), ("org/here", False)])
def test_a_data_set_that_is_no_file_may_be_on_the_hub_and_is_told(tmp_path, name, told):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "here").write_text("")
    made, _ = imported(tmp_path, TRL.replace("data/rows.jsonl", name))
    assert ("ingest.hub" in " ".join(fate.why for fate in made.lost)) == told


@pytest.mark.parametrize("key", ["fsdp", "fsdp_config", "deepspeed"])
def test_several_processes_are_pointed_to_their_key(tmp_path, key):
    made, _ = imported(tmp_path, f"{TRL}{key}: full_shard\n")
    (lost,) = (fate for fate in made.lost if fate.key == key)
    assert "train.parallel" in lost.why


@pytest.mark.parametrize(
    ("keys", "kind", "double"),
    [
        ("use_peft: true\nload_in_4bit: true\nbnb_4bit_quant_type: nf4", "nf4", False),
        ("use_peft: true\nload_in_4bit: true\nuse_bnb_nested_quant: true", "nf4", True),
        ("use_peft: true\nload_in_8bit: true", "int8", None),
        ("finetuning_type: lora\ntemplate: llama3\nquantization_bit: 4\ndouble_quantization: false", "nf4", False),
        ("finetuning_type: lora\ntemplate: llama3\nquantization_bit: 8", "int8", None),
    ],
)
def test_a_base_in_fewer_bits_is_imported(tmp_path, keys, kind, double):
    data = "dataset_name: data/rows.jsonl\nmax_length: 64" if "use_peft" in keys else "dataset: rows\nstage: sft"
    made, recipe = imported(tmp_path, f"model_name_or_path: ./base\n{data}\n{keys}\n")
    quantization = recipe.tables["train"].spec.adapter.quantization
    assert (quantization.kind, getattr(quantization, "double_quant", None)) == (kind, double)
    assert not {"load_in_4bit", "load_in_8bit", "quantization_bit"} & {fate.key for fate in made.lost}


def test_a_config_of_trl_means_the_same(tmp_path):
    made, recipe = imported(tmp_path, TRL)
    train = recipe.tables["train"].spec
    assert (train.adapter.kind, train.adapter.rank, train.adapter.targets) == ("dora", 4, ("q_proj", "v_proj"))
    assert (train.max_steps, train.warmup_ratio, train.batch_size) == (200, 0.1, 4)
    assert (train.optimizer.beta2, train.neftune_noise_alpha) == (0.95, 5)
    assert train.seed == 42  # TRL's default, not ours
    assert any(fate.key == "seed" and fate.by_default for fate in made.moved)
    assert sorted(fate.key for fate in made.lost) == ["assistant_only_loss", "push_to_hub"]


@pytest.mark.parametrize(
    ("text", "keys", "checkpointing"),
    [
        (TRL, "", True),
        (TRL, "gradient_checkpointing: false\n", False),
        (LLAMA_FACTORY, "", True),
        (LLAMA_FACTORY, "disable_gradient_checkpointing: true\n", False),
        (AXOLOTL, "", False),
    ],
)
def test_activations_are_computed_again_where_the_tool_does_so(tmp_path, text, keys, checkpointing):
    """TRL's and LLaMA-Factory's default is to, axolotl's is not."""
    text = text.replace("gradient_checkpointing: true\n", "")
    _, recipe = imported(tmp_path, text + keys)
    assert recipe.tables["train"].spec.gradient_checkpointing is checkpointing


@pytest.mark.parametrize("epochs", ["", "num_train_epochs: 1\n"])
@pytest.mark.parametrize("num_rows", [3, 1000])
def test_as_many_steps_are_done_as_the_config_says_however_few_the_rows(tmp_path, epochs, num_rows):
    """transformers: max_steps overrides num_train_epochs, and goes over the rows again and again."""
    from tunesmith.train.batches import count_steps

    _, recipe = imported(tmp_path, f"{TRL}{epochs}")
    train = recipe.tables["train"].spec
    steps = count_steps(
        num_rows, batch_size=train.batch_size, num_epochs=train.num_train_epochs, max_steps=train.max_steps
    )
    assert steps == 200


@pytest.mark.parametrize(
    ("keys", "told"),
    [("", True), ("assistant_only_loss: true", False), ("completion_only_loss: true", False),
     ("assistant_only_loss: false", True)],
)  # fmt: skip
def test_a_config_of_trl_that_trains_whole_conversations_is_told_that_only_answers_train(tmp_path, keys, told):
    made, _ = imported(tmp_path, f"{TRL}{keys}\n")
    assert [fate.key for fate in made.lost].count("assistant_only_loss") == told


def test_a_config_of_trl_without_targets_is_told_that_all_layers_are_adapted(tmp_path):
    made, recipe = imported(tmp_path, TRL.replace("lora_target_modules: [q_proj, v_proj]\n", ""))
    assert recipe.tables["train"].spec.adapter.targets is None
    assert "lora_target_modules" in {fate.key for fate in made.lost}


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ("fp16: true\nbf16: false", "float16"),
        ("bf16: true\nfp16: false", "bfloat16"),
        ("bf16: true\ndtype: float32", "bfloat16"),
        ("bf16: true\ntorch_dtype: auto", "bfloat16"),
        ("bf16: false\ndtype: bfloat16", "bfloat16"),
        ("bf16: false", "float32"),
        ("dtype: bfloat16", "bfloat16"),
    ],
)
def test_steps_compute_in_what_the_config_says(tmp_path, keys, dtype):
    made, recipe = imported(tmp_path, f"{TRL}{keys}\n")
    assert recipe.tables["train"].spec.dtype == dtype
    assert set(yaml.safe_load(keys)) <= set(fates(made))


def test_full_fine_tuning_leaves_no_adapter_keys_behind(tmp_path):
    _, recipe = imported(tmp_path, LLAMA_FACTORY.replace("finetuning_type: lora", "finetuning_type: full"))
    assert recipe.tables["train"].spec.adapter.kind == "full"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage: dpo\nfinetuning_type: lora\ntemplate: x\nmodel_name_or_path: ./b\ndataset: a", "stage is 'dpo'"),
        ("learning_rate: 1e-4\nseed: 3", "cannot tell which tool"),
        ("- a\n- b", "no mapping of keys"),
        ("a: [", "cannot read the config"),
        ("finetuning_type: freeze\nmodel_name_or_path: ./b\ndataset: a\ntemplate: x", "freeze has no counterpart"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        api.import_config(tmp_path / "config.yaml")
    assert said in str(error.value)


def test_a_recipe_is_never_overwritten(tmp_path):
    imported(tmp_path, TRL)
    with pytest.raises(RecipeError, match="already"):
        api.import_config(tmp_path / "config.yaml", tmp_path / "recipe.yaml")


def test_every_target_of_the_tables_is_a_key_that_exists():
    stages = load_stages()
    from tunesmith.core.fields import key_docs

    known = {f"{name}.{doc.key}" for name, stage in stages.items() for doc in key_docs(stage.spec_type)}
    for tool in TOOLS:
        for key, rule in tool.rules.items():
            if isinstance(rule, Moves):
                assert rule.to in known, (tool.name, key)
