"""Tiny Qwen-VL models with heads of a size that vLLM's CPU kernels take, and prompts with images."""

import copy
import json

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast, set_seed

from rollout_sft import RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.inputs.choose import make_adapter
from rollout_sft.rollouts.hf import HFBackend
from rollout_sft.rollouts.vllm.backend import VLLMBackend
from rollout_sft.rollouts.vllm.image_prompts import engine_config
from rollout_sft.rollouts.vllm.served import ServedBackend
from rollout_sft.rollouts.vllm.server import ServerEngine
from tests.tiny_images import CONFIGS, END, IMAGE, START, VIDEO, image_processor, image_tokenizer, picture
from tests.vllm.conftest import Live

EOS, PAD = 1, 0
SEEN = (START, IMAGE, END)
SMALL, TALL, RESIZED = picture(16, 24, seed=1), picture(40, 16, seed=2), picture(61, 45, seed=3)

# The long prompts fill whole blocks of vLLM's prefix cache, with an image before and behind them.
PROMPTS = [
    ([20, *SEEN, 21, 22], (SMALL,)),
    ([23, *SEEN, 24, *SEEN, 25], (TALL, RESIZED)),
    ([30, 31, 32], ()),
    ([29, *SEEN, *[10 + i % 50 for i in range(300)]], (RESIZED,)),
    ([*[10 + (7 * i) % 50 for i in range(200)], *SEEN, 26], (SMALL,)),
]


def tokenizer():
    """Under the names by which vLLM finds the places of images."""
    text = image_tokenizer().backend_tokenizer.to_str()
    for ours, theirs in (("<image>", "<|image_pad|>"), ("<video>", "<|video_pad|>")):
        text = text.replace(json.dumps(ours), json.dumps(theirs))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )


def image_config(family, *, tied):
    fields = copy.deepcopy(CONFIGS[family])
    fields["text_config"] |= {"hidden_size": 64, "head_dim": 32, "num_key_value_heads": 2}
    fields["text_config"]["rope_parameters"] |= {"mrope_section": [8, 4, 4]}
    fields["vision_config"]["hidden_size" if family == "qwen2_vl" else "out_hidden_size"] = 64
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    return AutoConfig.for_model(family, **fields, **ids, tie_word_embeddings=tied)


class ImageLive(Live):
    """A live image model, and what belongs to it."""

    def __init__(self, family, *, tied=False):
        set_seed(0)
        config = image_config(family, tied=tied)
        super().__init__(AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval())
        self.processors = tokenizer(), image_processor(family)
        self.inputs = make_adapter(config, *self.processors)

    def requests(self):
        return [
            RolloutRequest(prompt_ids=self.inputs.expand(ids, images), seed=2**61 + i, images=images)
            for i, (ids, images) in enumerate(PROMPTS)
        ]

    def by_hf(self, requests=None, **decoding):
        """What Hugging Face's `generate` answers."""
        decoding = Decoding(**{"max_new_tokens": 24, **decoding})
        backend = HFBackend(
            lambda: self.model, decoding, eos_token_ids=[EOS], pad_token_id=PAD, batch_size=8, inputs=self.inputs
        )
        return backend.generate(self.requests() if requests is None else requests)

    def backend(self, engine, **decoding):
        decoding = Decoding(**{"max_new_tokens": 24, **decoding})
        kind = ServedBackend if isinstance(engine, ServerEngine) else VLLMBackend
        made = kind(engine, self.weights, decoding, eos_token_ids=[EOS], inputs=self.inputs)
        made.sync()
        return made

    def prefer_media(self):
        """Makes the tokens of media likelier than the token that the first response begins with."""
        first = self.by_hf()[0].response_ids[0]
        head = self.model.get_output_embeddings().weight
        with torch.no_grad():
            head[[IMAGE, VIDEO]] = 2 * head[first]
        self.weights.changed()

    def save(self, folder):
        """Writes what a server starts from."""
        self.model.save_pretrained(folder)
        for part in (engine_config(self.model.config), *self.processors):
            part.save_pretrained(folder)
