"""Tiny models in fp32, where vLLM and Hugging Face agree token for token, and prompts of both kinds."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, set_seed

from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutRequest, RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.config.decoding import Decoding
from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.rollouts.end_tokens import find_end_tokens
from rollout_sft.rollouts.endings import make_endings
from rollout_sft.rollouts.hf import HFBackend
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.image_prompts import SERVER_ARGUMENTS
from rollout_sft.rollouts.vllm.served import ServedBackend
from rollout_sft.rollouts.vllm.server import ServerEngine
from rollout_sft.rollouts.vllm.weight_transfer import make_transfer

TOKENIZER = build_digits_tokenizer()
EOS, PAD = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
ENGINE_ARGS = {"kv_cache_memory_bytes": 64 << 20}
LONGEST = 1024

# The long prompts fill whole blocks of vLLM's prefix cache (128 tokens on a CPU); the short ones never do.
SHORT = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16]]
LONG = [[10 + i % 80 for i in range(340)], [3 + (7 * i) % 90 for i in range(401)]]
PROMPTS = [*SHORT, *LONG]


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.vllm)


def make_model(*, tied=True, seed=0, **overrides):
    set_seed(seed)
    shape = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 96,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.2,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "tie_word_embeddings": tied,
    }
    return AutoModelForCausalLM.from_config(Qwen3Config(**{**shape, **overrides}), dtype=torch.float32)


def requests(prompts=PROMPTS):
    return [RolloutRequest(prompt_ids=list(p), seed=2**61 + i) for i, p in enumerate(prompts)]


def by_hf(model, asked=None, *, ends=(EOS,), endings=None, **decoding):
    """What Hugging Face's `generate` answers: the reference for every engine."""
    decoding = Decoding(**{"max_new_tokens": 24, **decoding})
    backend = HFBackend(lambda: model, decoding, eos_token_ids=ends, pad_token_id=PAD, batch_size=8, endings=endings)
    return backend.generate(requests() if asked is None else asked)


def ends_that_only_the_model_names(model):
    """All end tokens of a model whose `generation_config` names the third token of one response and of another."""
    named = [rollout.response_ids[2] for rollout in by_hf(model)[:2]]
    assert len({*named, EOS}) == 3
    return sorted(find_end_tokens(TOKENIZER, generation_config=GenerationConfig(eos_token_id=named)).ids)


def compare_ends(backend, model, ends):
    """Every one of them ends a response, alone and with the others, where it ends Hugging Face's."""
    for some in (ends, *([end] for end in ends if end != EOS)):
        backend_answers = backend(some).generate(requests())
        assert backend_answers == by_hf(model, ends=some)
        assert any(not rollout.truncated for rollout in backend_answers)


def perturb(model, scale=0.05):
    """Other weights, as an optimizer step would leave them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


class Live:
    """A model and the counter of its changes."""

    def __init__(self, model):
        self.model = model
        self.weights = LiveWeights(lambda: self.model)

    def change(self):
        perturb(self.model)
        self.weights.changed()


def make_trainer(folder, *, model=None, vllm=None, **overrides):
    arguments = {
        "output_dir": str(folder),
        "global_max_length": 512,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "decoding": {"max_new_tokens": 12},
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "packing_min_fill_ratio": 0.0,
        "train_sampling_strategy": "sequential",
        "post_rollout_pack_scope": "window",
        "rollout_backend": "vllm",
        "vllm": {"engine_args": ENGINE_ARGS, **(vllm or {})},
    }
    return RolloutSFTTrainer(
        model=model or make_model(),
        args=RolloutSFTConfig(**{**arguments, **overrides}),
        processing_class=TOKENIZER,
        train_dataset=DigitsDataset("train", 36, seed=5, max_digits=5),
        eval_dataset=DigitsDataset("eval", 4, seed=1, max_digits=3),
    )


def colocate_config(**overrides):
    return VLLMConfig(engine_args=ENGINE_ARGS, max_model_len=LONGEST, **overrides)


def compare_every_window(trainer):
    """Lets every window's rollouts be compared with Hugging Face's on the weights of that moment."""
    backend, compared = trainer.generation.train, []
    inner, endings = backend.generate, make_endings(trainer.args.end_rollouts, trainer.target_builder)

    def generate(asked):
        answers = inner(asked)
        longest = trainer.args.decoding.max_new_tokens
        expected = by_hf(trainer.model, asked, max_new_tokens=longest, endings=endings)
        compared.append(answers == expected)
        return answers

    backend.generate = generate
    return compared


class Trained:
    """A live model, and backends that reach it through servers."""

    def __init__(self, live, folder):
        self.live, self.folder = live, folder
        self.engines = []

    @property
    def model(self):
        return self.live.model

    def backend(self, *servers, timeout=120.0, retries=3, transfer="folder", ends=(EOS,), endings=None, **decoding):
        urls = [server.url for server in servers]
        config = VLLMConfig(mode="server", base_url=urls, timeout=timeout, retries=retries, weight_transfer=transfer)
        engine = ServerEngine(config, make_transfer(config, default_folder=self.folder), show_progress=False)
        self.engines.append(engine)
        decoding = Decoding(**{"max_new_tokens": 24, **decoding})
        return ServedBackend(engine, self.live.weights, decoding, eos_token_ids=ends, endings=endings)


@pytest.fixture
def trained(tmp_path):
    made = []

    def make(*, tied=True, **overrides):
        made.append(Trained(Live(make_model(tied=tied, **overrides)), tmp_path / "weights"))
        return made[-1]

    yield make
    for each in made:
        for engine in each.engines:
            engine.close()


@pytest.fixture(scope="session", autouse=True)
def servers(tmp_path_factory, request):
    """Four servers, which start while other tests run; `.wait()` before use."""
    if not any(
        item.path.name
        in (
            "test_server.py",
            "test_streams.py",
            "test_waves.py",
            "test_hostile_proxy.py",
            "test_images.py",
            "test_two_ranks.py",
        )
        for item in request.session.items
    ):
        yield {}
        return
    from tests.vllm.image_models import ImageLive
    from tests.vllm.servers import RealServer

    folder, running = tmp_path_factory.mktemp("servers"), {}
    for name, tied, tokenizer in (
        ("tied", True, TOKENIZER),
        ("untied", False, TOKENIZER),
        ("other tokenizer", True, other_tokenizer()),
    ):
        home = folder / name.replace(" ", "-")
        make_model(tied=tied, seed=7).save_pretrained(home)
        tokenizer.save_pretrained(home)
        running[name] = RealServer(home, folder).start()
    ImageLive("qwen3_vl").save(folder / "images")
    running["images"] = RealServer(folder / "images", folder, *SERVER_ARGUMENTS).start()
    yield running
    for server in running.values():
        server.kill()


def other_tokenizer():
    """The same number of tokens under other ids."""
    import json

    from transformers import PreTrainedTokenizerFast

    state = json.loads(TOKENIZER.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = dict(zip(vocabulary, reversed(list(vocabulary.values())), strict=True))
    for token in state["added_tokens"]:
        token["id"] = state["model"]["vocab"][token["content"]]
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=TOKENIZER.eos_token
    )
